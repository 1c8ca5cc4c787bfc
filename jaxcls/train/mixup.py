"""Mixup (Zhang et al., 2017, arXiv:1710.09412) and CutMix (Yun et al., 2019, arXiv:1905.04899) on the device.

One Beta draw a batch. Partners are permuted inside fixed blocks of consecutive records that never straddle a device, so
that the mixed batch is the same on any number of devices, and nothing is exchanged between them.
"""

import math

import jax
import jax.numpy as jnp

BLOCK = 8  # records, or the largest power of two below it that divides the global batch

# What is folded into a step's key for further draws; `draw` splits the same key, which takes 0 and 1.
_BOX, _CHOICE = 2, 3


def block_size(batch_size: int) -> int:
    """Records of a mixing block for a global batch of `batch_size` records."""
    return math.gcd(batch_size, BLOCK)


def draw(
    key: jax.Array, records: int, *, alpha: jax.Array | float, block: int, first_block: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """The batch's weight `w ~ Beta(alpha, alpha)`, a scalar, and each record's partner, its position: `[records]` int.

    Arguments as of `mixup`.
    """
    key_weight, key_partner = jax.random.split(key)

    def permute(index):
        return jax.random.permutation(jax.random.fold_in(key_partner, index), block)

    blocks = jnp.arange(records // block)
    # [blocks, block] positions inside each block -> [records] positions in this share
    partner = (jax.vmap(permute)(blocks + first_block) + blocks[:, None] * block).reshape(-1)
    return jax.random.beta(key_weight, alpha, alpha), partner


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float, block: int, first_block: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Mixes every record with a partner of its block: `w * x + (1 - w) * x[partner]`, `w ~ Beta(alpha, alpha)`.

    Args:
      key: the same on every device.
      images: `[N, H, W, 3]` float, this device's share of the batch.
      targets: `[N, C]` float.
      alpha: of the Beta distribution, above 0.
      block: records in a block; divides N.
      first_block: index in the global batch of this share's first block.

    Returns:
      mixed images and targets, of the shapes and dtypes given.
    """
    weight, partner = draw(key, images.shape[0], alpha=alpha, block=block, first_block=first_block)
    return _mix(images, partner, weight), _mix(targets, partner, weight)


def cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float, block: int, first_block: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Puts a box of each record's partner into it, one box for the batch; targets are mixed by the areas.

    The box takes a share `1 - w` of the area, `w ~ Beta(alpha, alpha)`, before it is cut off at the picture's border.
    Arguments and results as of `mixup`.
    """
    weight, partner = draw(key, images.shape[0], alpha=alpha, block=block, first_block=first_block)
    outside, kept = _outside_of_box(key, weight, *images.shape[1:3])
    return _mix(images, partner, outside), _mix(targets, partner, kept)


def mixup_or_cutmix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float,
    cutmix_alpha: float,
    block: int,
    first_block: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
    """`mixup` or `cutmix` of the whole batch, each with probability one half (as timm's `mixup_switch_prob`).

    Arguments and results as of `mixup`. Neither is computed in vain: both are a weighted sum, and only weights differ.
    """
    cut = jax.random.bernoulli(jax.random.fold_in(key, _CHOICE))
    alpha = jnp.where(cut, cutmix_alpha, mixup_alpha)
    weight, partner = draw(key, images.shape[0], alpha=alpha, block=block, first_block=first_block)
    outside, kept = _outside_of_box(key, weight, *images.shape[1:3])
    return _mix(images, partner, jnp.where(cut, outside, weight)), _mix(targets, partner, jnp.where(cut, kept, weight))


def _mix(x: jax.Array, partner: jax.Array, weight: jax.Array) -> jax.Array:
    """`weight * x + (1 - weight) * x[partner]`; exactly one of the two where the weight is 1 or 0."""
    w = weight.astype(x.dtype)
    return w * x + (1 - w) * jnp.take(x, partner, axis=0)


def _outside_of_box(key: jax.Array, weight: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """1 outside and 0 inside of a random box, `[height, width, 1]`, and the share of pixels that are outside, a scalar.

    As in the paper's code: the sides are `sqrt(1 - weight)` of the picture's, in whole pixels; the centre is any pixel;
    what hangs over the border is cut off.
    """

    def inside(place: jax.Array, side: int) -> jax.Array:
        half = (side * jnp.sqrt(1 - weight)).astype(jnp.int32) // 2
        position = jnp.arange(side) - (place * side).astype(jnp.int32)
        return (position >= -half) & (position < half)

    places = jax.random.uniform(jax.random.fold_in(key, _BOX), (2,))
    rows, columns = inside(places[0], height), inside(places[1], width)
    outside = 1 - (rows[:, None] & columns).astype(weight.dtype)
    return outside[..., None], outside.mean()
