"""What happens to a batch on the device before the network sees it: colour jitter, normalisation, erasing, mixing.

Every draw is a function of (the run's key, step, a record's place in the global batch), so that a batch is the same on any
number of devices, and can be made again by itself.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxcls.config import Config
from jaxcls.data.constants import MEAN, STD
from jaxcls.train.mixup import block_size, cutmix, mixup, mixup_or_cutmix

ERASED_AREA = (0.02, 0.33)  # of a box, as a share of the picture
ERASED_ASPECT = (0.3, 3.3)  # of its height over its width
ERASING_TRIES = 10

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, as Pillow's `L`

# What is folded into a step's key; mixup and CutMix take 0 to 3.
_JITTER, _ERASING = 4, 5


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentations on the device; by default none.

    Attributes:
      mixup_alpha, cutmix_alpha: of their Beta distributions; 0: off. Where both are on, each batch gets one of them.
      block: records among which these mix.
      color_jitter: strengths of brightness, contrast, saturation and hue, or empty.
      random_erasing: probability, for each record.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    block: int = 1
    color_jitter: tuple[float, ...] = ()
    random_erasing: float = 0.0


NO_AUGMENTATION = Augment()


def augment_of(config: Config) -> Augment:
    """The augmentations that a config asks for."""
    return Augment(
        mixup_alpha=config.train.mixup_alpha,
        cutmix_alpha=config.train.cutmix_alpha,
        block=block_size(config.train.batch_size),
        color_jitter=config.data.color_jitter,
        random_erasing=config.data.random_erasing,
    )


def augment_batch(
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array,
    step: jax.Array | int,
    *,
    augment: Augment,
    num_classes: int,
    dtype: jnp.dtype,
    first_record: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Colour jitter, normalisation, random erasing, then mixup or CutMix, in this order.

    Args:
      images: uint8 `[N, H, W, 3]`, consecutive records of the global batch.
      labels: int32 `[N]`.
      key: the run's key, the same at every step.
      step: steps taken before.
      augment: what to do.
      num_classes: C.
      dtype: float, of the arithmetic and of the results.
      first_record: place of the first of these records in the global batch, a multiple of `augment.block`.

    Returns:
      images `[N, H, W, 3]`, normalised, and targets `[N, C]`, which sum to 1.
    """
    step_key = jax.random.fold_in(key, step)
    if augment.color_jitter:
        keys = _record_keys(step_key, _JITTER, images.shape[0], first_record)
        images = _standardize(color_jitter(keys, _unit(images, dtype), augment.color_jitter))
    else:
        images = normalize_images(images, dtype)
    if augment.random_erasing > 0:
        keys = _record_keys(step_key, _ERASING, images.shape[0], first_record)
        images = random_erasing(keys, images, augment.random_erasing)
    targets = jax.nn.one_hot(labels, num_classes, dtype=dtype)
    return _mixed(step_key, images, targets, augment, first_record)


def normalize_images(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """uint8 `[N, H, W, 3]` to `dtype`: scaled to 0-1, ImageNet's mean subtracted, divided by its deviation."""
    return _standardize(_unit(images, dtype))


def color_jitter(keys: jax.Array, images: jax.Array, strengths: tuple[float, ...]) -> jax.Array:
    """Brightness, contrast, saturation and hue of each record, changed in this order by factors of its own.

    The arithmetic is torchvision's `ColorJitter`: the first three blend with black, with the mean grey of the record and
    with its grey picture, by factors uniform in `[max(0, 1 - x), 1 + x]`; the hue turns by a uniform part of `[-x, x]`
    turns. A strength of 0 leaves its operation out.

    Args:
      keys: `[N]`.
      images: `[N, H, W, 3]` float, 0-1.
      strengths: four, of brightness, contrast, saturation, hue.

    Returns:
      images of the same shape and dtype, clipped to 0-1 after each operation.
    """
    brightness, contrast, saturation, hue = strengths
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (4,), images.dtype))(keys)

    def factor(place: int, strength: float) -> jax.Array:
        least = max(0.0, 1 - strength)
        return (least + uniform[:, place] * (1 + strength - least))[:, None, None, None]  # [N,1,1,1]

    if brightness:
        images = _blend(images, 0, factor(0, brightness))
    if contrast:
        images = _blend(images, _grey(images).mean((1, 2, 3), keepdims=True), factor(1, contrast))
    if saturation:
        images = _blend(images, _grey(images), factor(2, saturation))
    if hue:
        images = turn_hue(images, hue * (2 * uniform[:, 3] - 1))
    return images


def turn_hue(images: jax.Array, turns: jax.Array) -> jax.Array:
    """RGB `[N, H, W, 3]`, 0-1, with the hue of record n turned by `turns[n]` full turns; HSV's S and V stay.

    Formulas: A. R. Smith, "Color gamut transform pairs", SIGGRAPH 1978, as in Python's `colorsys`.
    """
    red, green, blue = (images[..., channel] for channel in range(3))  # [N,H,W]
    value = images.max(-1)
    chroma = value - images.min(-1)
    divisor = jnp.where(chroma > 0, chroma, 1)
    hue = jnp.where(  # in sixths of a turn
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turns[:, None, None]
    # A channel is at its least for two sixths of the turn, rises over one, stays at the most for two, and falls.
    place = jnp.mod(hue[..., None] + jnp.array((5, 3, 1), images.dtype), 6)  # [N,H,W,3]
    lack = jnp.clip(jnp.minimum(place, 4 - place), 0, 1)
    return jnp.clip(value[..., None] - chroma[..., None] * lack, 0, 1)


def random_erasing(keys: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Sets a random box of a record to 0, with some probability (Zhong et al., 2017, arXiv:1708.04896).

    As torchvision's `RandomErasing`: the first of ten boxes (`ERASED_AREA` uniform, `ERASED_ASPECT` log-uniform) that is
    smaller than the picture both ways, at a uniform place; no box if none fits.

    Args:
      keys: `[N]`.
      images: `[N, H, W, 3]` float.
      probability: that a record is to lose a box.

    Returns:
      images of the same shape and dtype.
    """
    height, width = images.shape[1:3]

    def erased(key: jax.Array) -> jax.Array:
        """`[H, W]` bool, of one record."""
        drawn = jax.random.uniform(key, (3 + 2 * ERASING_TRIES,))  # one draw: each is long to compile
        areas, aspects = drawn[3:].reshape(2, ERASING_TRIES)
        area = height * width * (ERASED_AREA[0] + areas * (ERASED_AREA[1] - ERASED_AREA[0]))
        aspect = ERASED_ASPECT[0] * (ERASED_ASPECT[1] / ERASED_ASPECT[0]) ** aspects
        sides = jnp.round(jnp.sqrt(jnp.stack((area * aspect, area / aspect)))).astype(jnp.int32)  # [2,tries]
        space = jnp.array((height, width))[:, None] - sides
        fits = (space > 0).all(0)
        chosen = jnp.argmax(fits)  # the first that fits
        side = sides[:, chosen]
        start = (drawn[1:3] * (space[:, chosen] + 1)).astype(jnp.int32)
        row, column = jnp.arange(height)[:, None] - start[0], jnp.arange(width) - start[1]
        inside = (row >= 0) & (row < side[0]) & (column >= 0) & (column < side[1])
        return inside & fits.any() & (drawn[0] < probability)

    return jnp.where(jax.vmap(erased)(keys)[..., None], 0, images)


def _record_keys(step_key: jax.Array, purpose: int, records: int, first_record: jax.Array | int) -> jax.Array:
    """A key for each record, `[records]`, by its place in the global batch."""
    key = jax.random.fold_in(step_key, purpose)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(first_record + jnp.arange(records))


def _mixed(
    step_key: jax.Array, images: jax.Array, targets: jax.Array, augment: Augment, first_record: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    blocks = {"block": augment.block, "first_block": first_record // augment.block}
    alphas = {"mixup_alpha": augment.mixup_alpha, "cutmix_alpha": augment.cutmix_alpha}
    if min(alphas.values()) > 0:
        return mixup_or_cutmix(step_key, images, targets, **alphas, **blocks)
    if augment.mixup_alpha > 0:
        return mixup(step_key, images, targets, alpha=augment.mixup_alpha, **blocks)
    if augment.cutmix_alpha > 0:
        return cutmix(step_key, images, targets, alpha=augment.cutmix_alpha, **blocks)
    return images, targets


def _unit(images: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return images.astype(dtype) / 255


def _standardize(images: jax.Array) -> jax.Array:
    return (images - jnp.array(MEAN, images.dtype)) / jnp.array(STD, images.dtype)


def _grey(images: jax.Array) -> jax.Array:
    """`[N, H, W, 3]` -> `[N, H, W, 1]`."""
    return (images * jnp.array(GREY, images.dtype)).sum(-1, keepdims=True)


def _blend(images: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)
