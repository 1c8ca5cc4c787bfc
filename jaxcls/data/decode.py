"""Encoded images to pixels, and no more of them than a crop needs.

Plain JPEG (8 bits, grey or three channels) goes to libjpeg-turbo, everything else to Pillow. All routes give the same
pixels, bit for bit, as long as nothing is scaled:

* libjpeg-turbo 3, where it is found (`jaxcls.data.turbo`): the crop's rows and columns alone.
* simplejpeg, else: the rows down to the crop's lower edge. The height in the header is lowered to where the crop ends,
  since the rows of a sequential JPEG are coded from top to bottom.

EXIF rotation is ignored, as in the reference: ImageNet's labels were given, and its networks trained, on pictures as
they are stored.
"""

import io
import warnings
from typing import NamedTuple, Protocol

import numpy as np
import simplejpeg
from PIL import Image

from jaxcls.data import turbo

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # frame headers; other kinds (lossless, arithmetic) are left to Pillow
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Sampling factors (horizontal, vertical, four bits each) of the channels: grey, 4:4:4, 4:2:2, 4:2:0, 4:4:0. Others are rare,
# not all of them known to libjpeg-turbo's simple interface, and left to Pillow.
SAMPLINGS = {bytes([0x11]), *(bytes([first, 0x11, 0x11]) for first in (0x11, 0x21, 0x22, 0x12))}
ROWS = 16  # pixels: no JPEG of 8 bits has a higher row of blocks, and upsampling looks one row of blocks further

warnings.filterwarnings("ignore", "Palette images with Transparency", UserWarning)  # transparency is dropped
Image.init()  # loads every format's plugin now: doing it in several threads at once is a race


class DecodeError(ValueError):
    """An image that cannot be decoded; the message is a short reason."""


class Box(NamedTuple):
    """A rectangle, in pixels; right and bottom are the first outside of it."""

    left: int
    top: int
    right: int
    bottom: int


class Picture(Protocol):
    """An image whose size is known, decoded or not."""

    height: int
    width: int

    def pixels(self, box: Box | None = None, shrink: int = 1) -> np.ndarray:
        """Its pixels, RGB, uint8 `[H, W, 3]`; perhaps a view.

        Args:
          box: inside the picture; the whole of it by default.
          shrink: 1, 2, 4 or 8. A JPEG is decoded at this fraction of its size, and the result holds the box with its edges
            moved out to the coarser grid. Other pictures stay at full size.

        Raises:
          DecodeError: the file is broken.
        """
        ...


def open_image(image: bytes | np.ndarray) -> Picture:
    """Reads the header of an encoded image of any format that Pillow knows; takes uint8 `[H, W, 3]` as it is.

    Grey, palette, CMYK and 16-bit images (scaled to 8 bits) will be RGB; transparency is dropped.

    Raises:
      DecodeError: not an image, truncated, or above Pillow's limit against decompression bombs (178 million pixels).
    """
    if isinstance(image, np.ndarray):
        return _Pixels(image)
    return _plain_jpeg(image) or _Pixels(_decode_by_pillow(image))


class _Pixels:
    """A decoded picture."""

    def __init__(self, pixels: np.ndarray):
        self._pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def pixels(self, box: Box | None = None, shrink: int = 1) -> np.ndarray:
        left, top, right, bottom = box or (0, 0, self.width, self.height)
        return self._pixels[top:bottom, left:right]


class _Jpeg:
    """A JPEG that libjpeg-turbo reads, not decoded yet."""

    def __init__(self, encoded: bytes, height: int, width: int, height_at: int | None):
        """`height_at`: where the file states its height, if its rows can be left off from below."""
        self.height, self.width = height, width
        self._encoded, self._height_at = encoded, height_at

    def pixels(self, box: Box | None = None, shrink: int = 1) -> np.ndarray:
        box = box or Box(0, 0, self.width, self.height)
        scaled = Box(box.left // shrink, box.top // shrink, -(-box.right // shrink), -(-box.bottom // shrink))
        try:
            if turbo.LIBRARY is not None:
                return turbo.decode(self._encoded, scaled, shrink)
            whole = simplejpeg.decode_jpeg(
                self._without_rows_below(box.bottom),
                min_width=-(-self.width // shrink) if shrink > 1 else 0,
                strict=False,  # bits that went wrong on the way are shown as they are, as Pillow does
            )
        except ValueError as error:
            raise DecodeError(str(error)) from error
        return whole[scaled.top : scaled.bottom, scaled.left : scaled.right]

    def _without_rows_below(self, bottom: int) -> bytes | bytearray:
        kept = (-(-bottom // ROWS) + 1) * ROWS
        if self._height_at is None or kept >= self.height:
            return self._encoded
        changed = bytearray(self._encoded)
        changed[self._height_at : self._height_at + 2] = kept.to_bytes(2)
        return changed


def _plain_jpeg(encoded: bytes) -> _Jpeg | None:
    """The picture, if the file is a whole JPEG of 8 bits with one or three channels."""
    if encoded[:2] != b"\xff\xd8":
        return None
    place = 2
    try:
        while True:
            while encoded[place + 1] == 0xFF:  # padding
                place += 1
            marker = encoded[place + 1]
            if encoded[place] != 0xFF:
                return None
            if marker in FRAMES:
                break
            place += 2 + int.from_bytes(encoded[place + 2 : place + 4])
        precision, channels = encoded[place + 4], encoded[place + 9]
        sampling = bytes(encoded[place + at] for at in range(11, 11 + 3 * channels, 3))
    except IndexError:
        return None
    height, width = (int.from_bytes(encoded[place + at : place + at + 2]) for at in (5, 7))
    plain = precision == 8 and sampling in SAMPLINGS and (marker in SEQUENTIAL or marker == PROGRESSIVE)
    whole = encoded.rfind(b"\xff\xd9") > place  # truncated ones are for Pillow, which says so
    if not (plain and whole and height and width and height * width <= 2 * (Image.MAX_IMAGE_PIXELS or 2**62)):
        return None
    return _Jpeg(encoded, height, width, place + 5 if marker in SEQUENTIAL else None)


def _decode_by_pillow(encoded: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half the limit; only the limit counts
            image = Image.open(io.BytesIO(encoded))
            image.load()
    except Exception as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
        raise DecodeError("an empty file" if not encoded else reason) from error
    if image.mode in SIXTEEN_BIT:  # Pillow would clip everything above 255 to white
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return np.asarray(image.convert("RGB"))
