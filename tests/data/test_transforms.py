import io
import math

import numpy as np
import pytest
from PIL import Image

from jaxcls.data.transforms import DecodeError, decode, eval_transform, sample_affine, sample_crop, train_transform


def photo(width=60, height=40, seed=0):
    """A picture with structure, so that shifts and filters show."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(256, size=(6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decode_gives_rgb_whatever_the_mode():
    image = photo()
    grey = np.asarray(image.convert("L"))
    cases = {
        "grey": (encoded(image.convert("L")), np.repeat(grey[..., None], 3, 2)),
        "palette": (encoded(image.quantize(16)), np.asarray(image.quantize(16).convert("RGB"))),
        "alpha": (encoded(image.convert("RGBA")), np.asarray(image)),
        "16 bits": (encoded(Image.fromarray(grey.astype(np.uint16) * 257)), np.repeat(grey[..., None], 3, 2)),
        "cmyk": (encoded(image.convert("CMYK"), "TIFF"), np.asarray(image.convert("CMYK").convert("RGB"))),
        "webp": (encoded(image, "WEBP", lossless=True), np.asarray(image)),
    }
    for name, (data, expected) in cases.items():
        np.testing.assert_array_equal(np.asarray(decode(data)), expected, err_msg=name)


def test_cmyk_jpegs_keep_their_colours():
    # Pillow, like Photoshop, stores CMYK JPEGs inverted with an Adobe marker.
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    found = np.asarray(decode(encoded(image.convert("CMYK"), "JPEG", quality=95)))
    np.testing.assert_allclose(found.mean((0, 1)), (200, 30, 30), atol=4)


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by a quarter turn to view"
    data = encoded(photo(), "JPEG", exif=exif)
    assert decode(data).size == (60, 40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"not a picture at all", "not an image"),
        (encoded(photo(), "JPEG")[:-400], "truncated"),
        (encoded(photo())[:200], "."),
    ],
)
def test_broken_files_have_a_reason(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_decompression_bombs_are_refused():
    with pytest.raises(DecodeError, match="exceeds limit"):
        decode(encoded(Image.new("1", (20_000, 20_000))))


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
        found = train_transform(image, size, "crop_flip", name, np.random.default_rng(seed))
        assert np.array_equal(found, expected) != np.array_equal(found, expected[:, ::-1])


def test_half_of_the_pictures_are_flipped():
    gradient = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 1, 3)))
    rngs = [np.random.default_rng(seed) for seed in range(400)]
    flipped = [
        int(p[0, 0, 0]) > int(p[0, -1, 0]) for p in (train_transform(gradient, 16, "crop_flip", "bilinear", r) for r in rngs)
    ]
    assert np.mean(flipped) == pytest.approx(0.5, abs=0.08)


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
        found = train_transform(image, 32, "affine", "bilinear", np.random.default_rng(seed))[..., 0].astype(float)
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
    np.testing.assert_array_equal(eval_transform(image, 32, 36, name), expected)
