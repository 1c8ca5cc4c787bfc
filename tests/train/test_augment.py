import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from PIL import Image, ImageEnhance

from jaxcls.config import default_config
from jaxcls.resolve import resolve
from jaxcls.train import augment, steps
from jaxcls.train.augment import Augment, augment_batch, augment_of, color_jitter, normalize_images, random_erasing, turn_hue

PER_RECORD = Augment(color_jitter=(0.4, 0.4, 0.4, 0.1), random_erasing=0.5)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def pixels(*shape):
    return np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def only(place, strength):
    return tuple(strength if place == i else 0.0 for i in range(4))


def test_images_are_normalised_as_torchvision_does():
    images = np.array([0, 128, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = (np.array([0, 128, 255]) / 255 - MEAN) / STD
    np.testing.assert_allclose(normalize_images(images, jnp.float32)[0, 0, 0], expected, rtol=1e-5)
    plain, targets = augment_batch(
        images, np.array([2]), jax.random.key(0), 5, augment=Augment(), num_classes=4, dtype="float32"
    )
    np.testing.assert_allclose(plain[0, 0, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(targets, [[0, 0, 1, 0]])


# Colour jitter


@pytest.mark.parametrize(
    ("place", "kind"), [(0, ImageEnhance.Brightness), (1, ImageEnhance.Contrast), (2, ImageEnhance.Color)]
)
@pytest.mark.parametrize(("strength", "drawn", "factor"), [(0.4, 0.75, 1.2), (1.5, 0.2, 0.5), (0.5, 0.0, 0.5)])
def test_brightness_contrast_and_saturation_as_pillow(monkeypatch, place, kind, strength, drawn, factor):
    monkeypatch.setattr(jax.random, "uniform", lambda *_: jnp.full(4, drawn))
    images = pixels(2, 16, 20)
    found = 255 * color_jitter(keys(2), images.astype(np.float32) / 255, only(place, strength))
    for image, result in zip(images, found, strict=True):
        expected = np.asarray(kind(Image.fromarray(image)).enhance(factor)).astype(float)
        # Pillow rounds the grey to whole numbers, and then cuts off the result's fraction.
        np.testing.assert_allclose(result - 0.5, expected, atol=1.01)


def test_hue_turns_as_in_colorsys():
    images = pixels(3, 8, 8) / 255
    images[:, 0, :4] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0]]
    images[:, 1, :3] = [[0.7, 0.7, 0.2], [0.2, 0.7, 0.7], [0.7, 0.2, 0.7]]
    turns = np.array([0.3, -0.45, 0.0])
    found = np.asarray(turn_hue(jnp.asarray(images, jnp.float32), jnp.asarray(turns, jnp.float32)))
    for image, turn, result in zip(images, turns, found, strict=True):
        for rgb, actual in zip(image.reshape(-1, 3), result.reshape(-1, 3), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
            np.testing.assert_allclose(actual, colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), atol=2e-6)


def test_jitter_goes_brightness_contrast_saturation_hue_and_clips_after_each(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda *_: jnp.array([0.9, 0.8, 0.7, 0.8]))
    images = pixels(1, 4, 5) / 255
    found = np.asarray(color_jitter(keys(1), jnp.asarray(images, jnp.float32), (1.0, 1.0, 1.0, 0.25)))
    grey = np.array([0.299, 0.587, 0.114])
    x = np.clip(1.8 * images, 0, 1)
    x = np.clip(1.6 * x - 0.6 * (x @ grey).mean(), 0, 1)
    x = np.clip(1.4 * x - 0.4 * (x @ grey)[..., None], 0, 1)
    hsv = [colorsys.rgb_to_hsv(*rgb) for rgb in x.reshape(-1, 3)]
    expected = [colorsys.hsv_to_rgb((hue + 0.15) % 1, saturation, value) for hue, saturation, value in hsv]
    np.testing.assert_allclose(found.reshape(-1, 3), expected, atol=1e-5)
    assert (x == 1).any() and (x == 0).any()


def test_factors_are_uniform_and_each_operation_and_record_has_its_own():
    # Two pixels, their mean grey 0.3: 0.2 and 0.4. Then one of which only the red differs from its grey.
    count = 3000
    two = np.broadcast_to(np.array([0.2, 0.4], np.float32)[:, None], (count, 1, 2, 3))
    factors = [
        np.asarray(color_jitter(keys(count), two, only(0, 0.4)))[:, 0, 0, 0] / 0.2,
        (np.asarray(color_jitter(keys(count), two, only(1, 0.4)))[:, 0, 1, 0] - 0.3) / 0.1,
    ]
    red = np.array([0.5, 0.3, 0.3], np.float32)
    grey = red @ [0.299, 0.587, 0.114]
    tinted = np.broadcast_to(red, (count, 1, 1, 3))
    factors.append((np.asarray(color_jitter(keys(count), tinted, only(2, 0.4)))[:, 0, 0, 0] - grey) / (red[0] - grey))
    turned = np.asarray(color_jitter(keys(count), tinted, only(3, 0.1)))[:, 0, 0]
    hues = np.array([(colorsys.rgb_to_hsv(*rgb)[0] + 0.5) % 1 - 0.5 for rgb in turned.tolist()])
    factors.append(1 + 4 * hues)  # from +-0.1 to 1 +- 0.4
    for values in factors:
        np.testing.assert_allclose(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]), [0.6, 0.8, 1, 1.2, 1.4], atol=0.03)
    assert np.abs(np.corrcoef(factors) - np.eye(4)).max() < 0.08
    wide = np.asarray(color_jitter(keys(count), two, only(0, 2.0)))[:, 0, 0, 0] / 0.2
    np.testing.assert_allclose(np.quantile(wide, [0, 0.5, 1]), [0, 1.5, 3], atol=0.1)  # from max(0, 1 - 2)


# Random erasing


def erase(keys, images, probability):
    return np.asarray(jax.jit(random_erasing, static_argnums=2)(keys, images, probability))


def boxes(height, width, count, rng):
    """Heights and widths of the erased boxes as torchvision draws them; 0 where none of ten fits."""
    result = np.zeros((count, 2), int)
    for i in range(count):
        for _ in range(10):
            area, aspect = height * width * rng.uniform(0.02, 0.33), np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
            h, w = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if h < height and w < width:
                result[i] = h, w
                break
    return result


@pytest.mark.parametrize(("height", "width"), [(40, 40), (12, 64)])
def test_erased_boxes_are_torchvisions(height, width):
    count = 3000
    images = np.full((count, height, width, 3), 2.5, np.float32)
    found = erase(keys(count), images, 1.0)
    assert set(np.unique(found)) == {0.0, 2.5}
    erased = (found == 0).all(-1)
    np.testing.assert_array_equal(erased, (found == 0).any(-1))
    rows, columns = erased.any(2), erased.any(1)
    np.testing.assert_array_equal(erased, rows[:, :, None] & columns[:, None])  # rows and columns of a grid,
    for lines in (rows, columns):  # each without a gap: a box
        assert (np.abs(np.diff(np.pad(lines, ((0, 0), (1, 1))).astype(int))).sum(1) <= 2).all()
    sides, expected = np.stack([rows.sum(1), columns.sum(1)], 1), boxes(height, width, count, np.random.default_rng(0))
    for quantity in (lambda s: s.prod(1) / (height * width), lambda s: s[:, 0] / height, lambda s: s[:, 1] / width):
        quantiles = [0.01, 0.1, 0.5, 0.9, 1]
        np.testing.assert_allclose(*(np.quantile(quantity(s), quantiles) for s in (sides, expected)), atol=0.03)
    # Any place alike: a box's distance from the top is on average half of what is free.
    free, top = height - sides[:, 0], rows.argmax(1)
    assert (top[free > 0] / free[free > 0]).mean() == pytest.approx(0.5, abs=0.03)
    assert (top == 0).any() and (top == free).any()


def test_erasing_has_its_probability():
    images = np.ones((3000, 16, 16, 3), np.float32)
    found = erase(keys(3000), images, 0.25)
    assert (found == 0).any((1, 2, 3)).mean() == pytest.approx(0.25, abs=0.025)


def test_a_picture_that_no_box_fits_stays():
    images = np.ones((50, 1, 64, 3), np.float32)  # a box is lower than the picture only if its height rounds to 0
    found = erase(keys(50), images, 1.0)
    np.testing.assert_array_equal(found, images)


# Together


def batch():
    """Every record is of a class of its own, so that targets say who went into whom."""
    return pixels(32, 16, 16), np.arange(32, dtype=np.int32)


def augmented(options, key=1, step=3):
    """The whole batch, on one device."""

    def run(images, labels, key, step):
        return augment_batch(images, labels, key, step, augment=options, num_classes=32, dtype=jnp.float32)

    return [np.asarray(array) for array in jax.jit(run)(*batch(), jax.random.key(key), step)]


def test_a_batch_is_the_same_on_one_device_and_split_over_four():
    mesh = steps.make_mesh(jax.devices()[:4])

    def share(images, labels):
        first = jax.lax.axis_index(steps.AXIS) * images.shape[0]
        how = {"augment": PER_RECORD, "num_classes": 32, "dtype": jnp.float32, "first_record": first}
        return augment_batch(images, labels, jax.random.key(1), 3, **how)

    split = PartitionSpec(steps.AXIS)
    run = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(split, split), out_specs=split, check_vma=False))
    images, targets = augmented(PER_RECORD)
    for whole, shares in zip((images, targets), run(*batch()), strict=True):
        assert whole.dtype == shares.dtype == np.float32
        np.testing.assert_allclose(shares, whole, atol=1e-5)  # the compiler rounds differently for other shapes
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_a_batch_depends_on_key_and_step():
    options = Augment(random_erasing=1.0)
    images = augmented(options)[0]
    np.testing.assert_array_equal(augmented(options)[0], images)
    for other in (augmented(options, step=4), augmented(options, key=2)):
        assert ((other[0] != images).any((1, 2, 3))).all()


def test_erasing_sets_normalised_pixels_to_zero():
    erased, own = augmented(Augment(random_erasing=1.0))
    hole = (erased == 0).all(-1)
    assert hole.any((1, 2)).all() and len({mask.tobytes() for mask in hole}) > 30
    np.testing.assert_allclose(erased[~hole], ((batch()[0] / 255 - MEAN) / STD)[~hole], atol=1e-5)
    np.testing.assert_array_equal(own, np.eye(32))


@pytest.mark.parametrize(
    ("name", "alphas"),
    [
        ("mixup", {"mixup_alpha": 0.2}),
        ("cutmix", {"cutmix_alpha": 1.0}),
        ("mixup_or_cutmix", {"mixup_alpha": 0.2, "cutmix_alpha": 1.0}),
    ],
)
def test_what_is_mixed_is_erased_already(monkeypatch, name, alphas):
    calls = []

    def turned_around(key, images, targets, **how):
        calls.append((key, how))
        return images[::-1], targets[::-1]

    monkeypatch.setattr(augment, name, turned_around)
    images, labels = batch()
    options = {"num_classes": 32, "dtype": jnp.float32, "first_record": 64}
    erased, targets = augment_batch(
        images, labels, jax.random.key(1), 3, augment=Augment(random_erasing=1.0, block=8), **options
    )
    mixed = augment_batch(
        images, labels, jax.random.key(1), 3, augment=Augment(random_erasing=1.0, block=8, **alphas), **options
    )
    np.testing.assert_array_equal(mixed[0], erased[::-1])
    np.testing.assert_array_equal(mixed[1], targets[::-1])
    ((key, how),) = calls
    assert key == jax.random.fold_in(jax.random.key(1), 3)  # as `draw` is called by the comparison with PyTorch
    only = {"alpha": next(iter(alphas.values()))} if len(alphas) == 1 else alphas
    assert how == {"block": 8, "first_block": 8} | only


def test_jitter_comes_before_normalisation():
    found = augmented(Augment(color_jitter=(0.4, 0.0, 0.0, 0.0)))[0] * STD + MEAN
    factors = []
    for record, result in zip(batch()[0] / 255, found, strict=True):
        inside = (record > 0.1) & (record < 0.7)  # where nothing is clipped
        ratio = result[inside] / record[inside]
        assert np.ptp(ratio) < 1e-4
        factors.append(ratio.mean())
    assert 0.6 <= min(factors) < 0.8 and 1.2 < max(factors) <= 1.4


def test_a_config_says_what_is_done():
    config = default_config()
    config.data.update(source="synthetic", color_jitter=(0.4, 0.3, 0.2, 0.1), random_erasing=0.25)
    config.train.update(batch_size=12, mixup_alpha=0.2, cutmix_alpha=1.0)
    expected = Augment(mixup_alpha=0.2, cutmix_alpha=1.0, block=4, color_jitter=(0.4, 0.3, 0.2, 0.1), random_erasing=0.25)
    assert augment_of(resolve(config)[0]) == expected
