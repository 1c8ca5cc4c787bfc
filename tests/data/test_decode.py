"""Every route from bytes to pixels gives those of Pillow."""

import contextlib
import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from jaxcls.data import decode, turbo
from jaxcls.data.decode import Box, DecodeError, open_image
from tests.data.test_transforms import photo


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data):
    return open_image(data).pixels()


@pytest.fixture(params=["turbo", "simplejpeg"])
def route(request, monkeypatch):
    """With libjpeg-turbo 3, which the tests' environment has, and without."""
    if request.param == "simplejpeg":
        monkeypatch.setattr(turbo, "LIBRARY", None)
    elif turbo.LIBRARY is None:
        pytest.skip("no libjpeg-turbo 3 here")


@pytest.fixture
def never_pillow(monkeypatch):
    monkeypatch.delattr(decode, "_decode_by_pillow")


KINDS = [{"subsampling": s, "progressive": p} for s in ("4:4:4", "4:2:2", "4:2:0") for p in (False, True)]


@pytest.mark.parametrize("kind", [*KINDS, {"mode": "L"}, {"restart_marker_rows": 2}], ids=str)
def test_a_part_of_a_jpeg_is_that_part_of_the_whole(route, never_pillow, kind):
    image = photo(211, 167).convert(kind.get("mode", "RGB"))
    data = encoded(image, "JPEG", quality=90, **{name: kind[name] for name in kind if name != "mode"})
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    picture = open_image(data)
    assert (picture.height, picture.width) == (167, 211)
    rng = np.random.default_rng(0)
    boxes = [(0, 0, 211, 167), (0, 0, 1, 1), (210, 166, 211, 167), (0, 15, 211, 16), (0, 16, 211, 17)]
    boxes += [(*rng.integers(0, (100, 80)), *rng.integers((101, 81), (212, 168))) for _ in range(20)]
    for box in boxes:
        left, top, right, bottom = map(int, box)
        np.testing.assert_array_equal(picture.pixels(Box(left, top, right, bottom)), whole[top:bottom, left:right])


@pytest.mark.parametrize("factor", [0x411111, 0x221111, 0x211111, 0x121111, 0x111111], ids=hex)
def test_sampling_factors(route, factor):
    image = cv2.cvtColor(np.asarray(photo(211, 167)), cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])[1].tobytes()
    whole = np.asarray(Image.open(io.BytesIO(data)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        left, top, right, bottom = map(int, (*rng.integers(0, (100, 80)), *rng.integers((101, 81), (212, 168))))
        found = open_image(data).pixels(Box(left, top, right, bottom))
        np.testing.assert_array_equal(found, whole[top:bottom, left:right])


@pytest.mark.parametrize("factors", [(0x21, 0x21, 0x21), (0x22, 0x21, 0x21), (0x11, 0x22, 0x22), (0x31, 0x11, 0x11)])
def test_rare_sampling_factors_are_for_pillow(monkeypatch, factors):
    """libjpeg-turbo's simple interface does not know all of them, or crops some of them elsewhere than it was told to."""
    data = bytearray(encoded(photo(64, 64), "JPEG", subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0")
    assert [data[frame + 11 + 3 * channel] for channel in range(3)] == [0x11] * 3
    data[frame + 11 : frame + 20 : 3] = bytes(factors)
    monkeypatch.setattr(decode, "_decode_by_pillow", lambda data: np.zeros((3, 5, 3), np.uint8))
    assert open_image(bytes(data)).pixels().shape == (3, 5, 3)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_decoded_smaller_as_libjpeg_scales(route, never_pillow, shrink):
    data = encoded(photo(211, 167), "JPEG", quality=90)
    whole = simplejpeg.decode_jpeg(data, min_width=-(-211 // shrink), strict=False)
    assert whole.shape == (-(-167 // shrink), -(-211 // shrink), 3)
    for left, top, right, bottom in [(0, 0, 211, 167), (17, 33, 150, 101), (31, 1, 211, 90)]:
        found = open_image(data).pixels(Box(left, top, right, bottom), shrink)
        expected = whole[top // shrink : -(-bottom // shrink), left // shrink : -(-right // shrink)]
        np.testing.assert_array_equal(found, expected)


def test_rows_below_a_crop_are_not_decoded(monkeypatch):
    """The picture that simplejpeg is handed ends a row of blocks below the crop."""
    monkeypatch.setattr(turbo, "LIBRARY", None)
    heights, real = [], simplejpeg.decode_jpeg

    def watched(data, **options):
        heights.append(simplejpeg.decode_jpeg_header(data)[0])
        return real(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", watched)
    picture = open_image(encoded(photo(300, 200), "JPEG"))
    picture.pixels(Box(10, 20, 90, 65))
    assert heights == [96]  # 65 ends in the row of blocks up to 80


def test_progressive_pictures_are_decoded_whole_without_turbo(monkeypatch):
    monkeypatch.setattr(turbo, "LIBRARY", None)
    data = encoded(photo(300, 200), "JPEG", progressive=True)
    assert open_image(data).pixels(Box(10, 20, 90, 65)).shape == (45, 80, 3)


def test_padding_and_garbage_around_a_jpeg(route, never_pillow):
    data = encoded(photo(), "JPEG")
    whole = pixels(data)
    comment = b"\xff\xff\xff\xfe\x00\x06\xff\xd9ab"  # padding, then a comment that holds an end of image
    for changed in (data + b"garbage", data[:2] + comment + data[2:]):
        np.testing.assert_array_equal(pixels(changed), whole)


def test_arrays_are_taken_as_they_are():
    array = np.asarray(photo())
    assert (open_image(array).height, open_image(array).width) == (40, 60)
    np.testing.assert_array_equal(open_image(array).pixels(Box(1, 2, 30, 40), 2), array[2:40, 1:30])


def test_pixels_are_rgb_whatever_the_mode():
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
        np.testing.assert_array_equal(pixels(data), expected, err_msg=name)


def test_cmyk_jpegs_keep_their_colours():
    # Pillow, like Photoshop, stores CMYK JPEGs inverted with an Adobe marker.
    image = Image.new("RGB", (16, 16), (200, 30, 30))
    found = pixels(encoded(image.convert("CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(found.mean((0, 1)), (200, 30, 30), atol=4)


def test_exif_rotation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by a quarter turn to view"
    data = encoded(photo(), "JPEG", exif=exif)
    assert pixels(data).shape == (40, 60, 3)


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
        pixels(data)


def test_decompression_bombs_are_refused():
    with pytest.raises(DecodeError, match="exceeds limit"):
        open_image(encoded(Image.new("1", (20_000, 20_000))))


def test_jpegs_above_the_limit_are_refused_before_they_are_decoded(route):
    data = bytearray(encoded(photo(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = (60_000).to_bytes(2) * 2
    with pytest.raises(DecodeError, match="exceeds limit"):
        open_image(bytes(data))


def with_precision_of_12_bits(data):
    place = data.index(b"\xff\xc0")
    return data[: place + 1] + b"\xc1" + data[place + 2 : place + 4] + b"\x0c" + data[place + 5 :]


ODD = {
    "1x1": (encoded(photo(1, 1), "JPEG"), None),
    "20,000 pixels wide": (encoded(photo(20_000, 2), "JPEG"), None),
    "PNG": (encoded(photo()), None),
    "GIF": (encoded(photo(), "GIF"), None),
    "no size": (encoded(photo(), "JPEG").replace((40).to_bytes(2) + (60).to_bytes(2), bytes(4), 1), "."),
    "12 bits": (with_precision_of_12_bits(encoded(photo(), "JPEG")), "."),
    "zeros": (bytes(1000), "not an image"),
    "a header alone": (encoded(photo(), "JPEG")[:160], "."),
    "no frame": (b"\xff\xd8\xff\xd9", "."),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(route, name):
    data, reason = ODD[name]
    if reason is None:
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        np.testing.assert_array_equal(pixels(data), expected)
    else:
        with pytest.raises(DecodeError, match=reason):
            pixels(data)


def test_no_cut_or_changed_file_gets_past_a_decode_error(route):
    """Bytes gone wrong give other pixels or a `DecodeError`, never another error; a cut file never passes for whole."""
    data = encoded(photo(90, 70), "JPEG")
    for end in range(0, len(data) - 2, 37):
        with pytest.raises(DecodeError):
            pixels(data[:end])
    rng = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(2, len(data), 4):
            changed[place] = rng.integers(256)
        try:
            picture = open_image(bytes(changed))
            if picture.height * picture.width < 1_000_000:
                assert picture.pixels().shape == (picture.height, picture.width, 3)
        except DecodeError:
            pass


def test_a_broken_file_does_nothing_to_the_next(route, never_pillow):
    """libjpeg-turbo's decoder, once it met a broken header, would refuse or misread good files."""
    data = encoded(photo(90, 70), "JPEG")
    good = pixels(data)
    scan, tables = data.index(b"\xff\xda"), data.index(b"\xff\xc4")
    for place, value in ((scan + 5, 82), (tables + 4, 14), (tables + 1, 0x2A), (scan - 30, 0xFF)):
        changed = bytearray(data)
        changed[place] = value
        with contextlib.suppress(DecodeError):
            pixels(bytes(changed))
        np.testing.assert_array_equal(pixels(data), good)


def test_another_size_than_the_header_had_is_never_decoded_past_the_array():
    if turbo.LIBRARY is None:
        pytest.skip("no libjpeg-turbo 3 here")
    data = encoded(photo(90, 70), "JPEG")
    for box in ((0, 0, 91, 70), (0, 0, 90, 71), (5, 3, 5, 9), (3, 5, 9, 5), (-1, 0, 9, 9)):
        with pytest.raises(ValueError, match="90 by 70"):
            turbo.decode(data, box, 1)
