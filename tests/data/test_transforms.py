import math

import numpy as np
import pytest
from PIL import Image

from jaxcls.data import policies
from jaxcls.data.decode import Box, DecodeError, open_image
from jaxcls.data.transforms import eval_transform, generator_for, resize, sample_affine, sample_crop, train_transform


def pick(image):
    return open_image(np.asarray(image))


def close_to_pillows(found, expected):
    """Both round after each axis, in another order: two units at most, and hardly ever two."""
    difference = np.abs(found.astype(int) - expected)
    return difference.max() <= 2 and np.mean(difference > 1) < 0.002 and difference.mean() < 0.3


def photo(width=60, height=40, seed=0):
    """A picture with structure, so that shifts and filters show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def test_crops_follow_the_recipe():
    rng = np.random.default_rng(0)
    height, width = 300, 400
    boxes = np.array([sample_crop(height, width, rng) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0 and top.min() >= 0 and right.max() <= width and bottom.max() <= height
    w, h = right - left, bottom - top
    share, aspect = w * h / (height * width), w / h
    assert 0.075 < share.min() < 0.1 and 0.95 < share.max() <= 1
    assert aspect.min() > 0.74 and aspect.max() < 1.35
    # Of all draws only those that fit are kept. Small areas always fit: there the distributions are the ones drawn from.
    small = share < 0.5
    assert np.mean(share[small] < 0.29) == pytest.approx(0.5, abs=0.03)
    assert np.log(aspect[small]).mean() == pytest.approx(0, abs=0.02)  # log-uniform: half above 1
    assert np.log(aspect[small]).std() == pytest.approx(np.log(16 / 9) / 12**0.5, rel=0.05)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(10, 400, (193, 0, 206, 10)), (400, 10, (0, 193, 10, 206))],  # 10 * 4/3 = 13.3 wide, or 10 / (3/4) = 13.3 high
)
def test_pictures_too_long_for_any_crop_are_cut_in_the_middle(height, width, box):
    assert sample_crop(height, width, np.random.default_rng(0)) == box


def test_tiny_pictures_have_a_crop():
    assert sample_crop(1, 1, np.random.default_rng(0)) == (0, 0, 1, 1)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_a_training_picture_is_pillows_crop_resized(name):
    image, size = photo(90, 70), 32
    for seed in range(6):
        box = sample_crop(70, 90, np.random.default_rng(seed))
        expected = np.asarray(image.crop(box).resize((size, size), getattr(Image.Resampling, name.upper())))
        found = train_transform(pick(image), size, "crop_flip", name, np.random.default_rng(seed))
        assert close_to_pillows(found, expected) != close_to_pillows(found, expected[:, ::-1])


def test_half_of_the_pictures_are_flipped():
    gradient = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    rngs = [np.random.default_rng(seed) for seed in range(400)]
    pictures = [train_transform(pick(gradient), 16, "crop_flip", "bilinear", rng) for rng in rngs]
    flipped = [int(picture[0, 0, 0]) > int(picture[0, -1, 0]) for picture in pictures]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_policies_follow_crop_and_flip_and_draw_from_the_same_generator(policy):
    image, changed = photo(90, 70), 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        plain = train_transform(pick(image), 32, "crop_flip", "bilinear", rng)
        expected = policies.apply(plain, policy, rng)
        found = train_transform(pick(image), 32, policy, "bilinear", np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected)
        changed += not np.array_equal(found, plain)
    assert changed >= 3


def test_affine_turns_zooms_and_shifts_about_the_centre():
    size, draws = 32, np.array([sample_affine(32, np.random.default_rng(seed)) for seed in range(500)])
    a, b, c, d, e, f = draws.T
    assert np.array_equal(a, e) and np.array_equal(b, -d)  # a rotation and a zoom, no shear
    angle, zoom = np.degrees(np.arctan2(d, a)), np.hypot(a, d)
    for values, limit in ((angle, 12), (np.log(zoom), 0.12)):
        assert -limit <= values.min() < -0.95 * limit and 0.95 * limit < values.max() <= limit
    # The centre of the result comes from up to a sixteenth away from the picture's centre.
    center = np.array([a * 16 + b * 16 + c, d * 16 + e * 16 + f]) - 16
    assert 1.9 < np.abs(center).max() <= size / 16


def test_affine_moves_a_picture_as_drawn():
    image = Image.fromarray(np.zeros((32, 32, 3), np.uint8))
    image.putpixel((20, 9), (255, 255, 255))
    for seed in range(20):
        a, b, c, d, e, f = sample_affine(32, np.random.default_rng(seed))
        found = train_transform(pick(image), 32, "affine", "bilinear", np.random.default_rng(seed))[..., 0].astype(float)
        y, x = np.indices(found.shape)
        weight = found / found.sum()
        where = np.array([(x * weight).sum() + 0.5, (y * weight).sum() + 0.5])  # pixel centres
        source = np.array([[a, b], [d, e]]) @ where + [c, f]
        np.testing.assert_allclose(source, (20.5, 9.5), atol=0.35)


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (41, 41), (300, 37)])
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_evaluation_is_pillows_resize_and_centre(size, name):
    image = photo(*size)
    width, height = size
    scale = 36 / min(size)
    to = (36, math.floor(height * scale)) if width <= height else (math.floor(width * scale), 36)
    resized = image.resize(to, getattr(Image.Resampling, name.upper()))
    left, top = round((to[0] - 32) / 2), round((to[1] - 32) / 2)
    expected = np.asarray(resized)[top : top + 32, left : left + 32]
    assert close_to_pillows(eval_transform(pick(image), 32, 36, name), expected)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (70, 90)])
def test_linear_lies_between_the_nearest_two_pixels_however_much_it_shrinks(height, width):
    pixels = np.asarray(photo(60, 40)).astype(float)

    def between(array, count):  # along the first axis
        place = ((np.arange(count) + 0.5) * len(array) / count - 0.5).clip(0, len(array) - 1)
        first = np.floor(place).astype(int)
        weight = (place - first)[:, None, None]
        return (1 - weight) * array[first] + weight * array[np.minimum(first + 1, len(array) - 1)]

    expected = between(between(pixels, height).swapaxes(0, 1), width).swapaxes(0, 1)
    whole = pixels.astype(np.uint8)
    np.testing.assert_allclose(resize(whole, height, width, "linear"), expected, atol=1)
    assert not close_to_pillows(resize(whole, 10, 15, "linear"), resize(whole, 10, 15, "bilinear"))


def test_generators_are_a_function_of_their_numbers():
    streams = {numbers: generator_for(*numbers).random(1000) for numbers in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len({stream.tobytes() for stream in streams.values()}) == 4
    for numbers, stream in streams.items():
        np.testing.assert_array_equal(generator_for(*numbers).random(1000), stream)
    firsts = np.array([[generator_for(seed, 0, index).random() for index in range(200)] for seed in range(20)])
    assert np.abs(np.corrcoef(firsts) - np.eye(20)).max() < 0.3
    assert firsts.mean() == pytest.approx(0.5, abs=0.02) and firsts.var() == pytest.approx(1 / 12, rel=0.05)


class Watched:
    """A picture that remembers what was asked of it."""

    def __init__(self, height, width):
        self.height, self.width, self.asked = height, width, []

    def pixels(self, box=None, shrink=1):
        self.asked.append((box, shrink))
        return np.zeros(((box.bottom - box.top) // shrink, (box.right - box.left) // shrink, 3), np.uint8)


def test_a_crop_is_decoded_smaller_only_if_it_stays_as_large_as_needed():
    shrinks = set()
    for seed in range(200):
        picture = Watched(600, 800)
        assert train_transform(picture, 64, "crop_flip", "bilinear", np.random.default_rng(seed)).shape == (64, 64, 3)
        ((box, shrink),) = picture.asked
        shorter = min(box.right - box.left, box.bottom - box.top)
        assert shrink == 1 or shorter >= shrink * 64
        assert shorter < 2 * shrink * 64
        shrinks.add(shrink)
    assert shrinks == {2, 4, 8}


def test_crops_are_boxes():
    assert isinstance(sample_crop(30, 40, np.random.default_rng(0)), Box)


@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (1, 100_000)])
def test_a_picture_too_thin_to_be_resized(width, height):
    with pytest.raises(DecodeError, match=f"{width} x {height} pixels are too thin for a shorter side of 256"):
        eval_transform(pick(np.zeros((height, width, 3), np.uint8)), 224, 256, "bilinear")
