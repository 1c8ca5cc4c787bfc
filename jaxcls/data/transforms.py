"""From a picture to uint8 of the network's size: pure functions, with randomness as an argument.

Resizing is Pillow's arithmetic, antialiased where it shrinks, as in the reference's PyTorch loader (`bilinear`, `bicubic`),
or plain, as in its DALI loaders (`linear`).
"""

import hashlib
import math
import struct
import threading

import cv2
import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from jaxcls.data import policies
from jaxcls.data.decode import Box, DecodeError, Picture

# Pillow's filters, several times faster. It rounds after each axis too, in another order: pixels differ by 2 at most.
ANTIALIASED = {
    "bilinear": ResizeOptions(ResizeAlg.convolution(FilterType.bilinear), use_alpha=False),
    "bicubic": ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom), use_alpha=False),
}

AREA = (0.08, 1.0)  # of a random crop, as a share of the picture
LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))  # of its width over its height
TRIES = 10
MOST_PIXELS = 178_000_000  # of a resized picture, as Pillow's limit for a decoded one

PCG_INCREMENT = 0x5851F42D4C957F2D14057B7EF767814F  # the default of PCG's author (O'Neill, 2014)

cv2.setNumThreads(1)  # the pipeline's own threads and processes share the cores


class _Generator(threading.local):
    """One for each thread: making one costs more than a crop needs of it."""

    def __init__(self):
        self.rng = np.random.Generator(np.random.PCG64(0))


_generator = _Generator()


def generator_for(*numbers: int) -> np.random.Generator:
    """A generator whose numbers are a function of these (below 2**64) alone; good until the next call on this thread."""
    key = hashlib.blake2b(struct.pack(f"<{len(numbers)}Q", *numbers), digest_size=16).digest()
    rng = _generator.rng
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": int.from_bytes(key), "inc": PCG_INCREMENT},
        "has_uint32": 0,
        "uinteger": 0,
    }
    return rng


class _Resizer(threading.local):
    """One for each thread: it has buffers."""

    def __init__(self):
        self.resize = Resizer().resize


_resizer = _Resizer()


def resize(pixels: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resizes uint8 `[H, W, 3]` to `[height, width, 3]`.

    Args:
      interpolation: `bilinear` or `bicubic`: where it shrinks, the filter grows, as in Pillow; `linear`: between the two
        nearest pixels of each axis, as in OpenCV and DALI.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if interpolation == "linear":
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    before = ImageData(pixels.shape[1], pixels.shape[0], PixelType.U8x3, pixels.tobytes())
    after = ImageData(width, height, PixelType.U8x3)
    _resizer.resize(before, after, ANTIALIASED[interpolation])
    return np.frombuffer(after.get_buffer(), np.uint8).reshape(height, width, 3)


def sample_crop(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draws a random crop: 8 to 100% of the area, aspect 3/4 to 4/3 log-uniform.

    After ten draws that do not fit, the largest centred crop whose aspect lies in the range.
    """
    for _ in range(TRIES):
        # Four at once, and by plain arithmetic: NumPy's own distributions take longer to call than to compute.
        share, shape, across, down = rng.random(4).tolist()
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * share)
        aspect = math.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * shape)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return Box(left, top, left + w, top + h)
    least, most = (math.exp(bound) for bound in LOG_ASPECT)
    w, h = width, height
    if width < least * height:
        h = round(width / least)
    elif width > most * height:
        w = round(height * most)
    left, top = (width - w) // 2, (height - h) // 2
    return Box(left, top, left + w, top + h)


def train_transform(picture: Picture, size: int, augment: str, interpolation: str, rng: np.random.Generator) -> np.ndarray:
    """A training picture, uint8 `[size, size, 3]`.

    Args:
      size: of the result, in pixels.
      augment: `crop_flip`: a random crop, resized, and flipped left to right every second time; a policy of
        `jaxcls.data.policies`: this, and then what the policy draws; `affine`: resized, and turned, zoomed and shifted a
        little (`sample_affine`), black where nothing comes in.
      interpolation: of `resize`.
      rng: all randomness comes from here.

    Raises:
      DecodeError: the picture cannot be decoded.
    """
    if augment == "affine":
        resized = Image.fromarray(resize(picture.pixels(), size, size, interpolation))
        move = sample_affine(size, rng)
        return np.asarray(resized.transform((size, size), Image.Transform.AFFINE, move, Image.Resampling.BILINEAR))
    box = sample_crop(picture.height, picture.width, rng)
    # First crop, then resize: the filter must not see what lies outside of the crop.
    cropped = resize(picture.pixels(box, shrink_for(box, size)), size, size, interpolation)
    flipped = flip_by_chance(cropped, rng)
    return flipped if augment == "crop_flip" else policies.apply(flipped, augment, rng)


def shrink_for(box: Box, size: int) -> int:
    """By how much a crop may be decoded smaller (1, 2, 4 or 8) and still be no smaller than `size`."""
    times = min(box.right - box.left, box.bottom - box.top) // size
    return max(shrink for shrink in (1, 2, 4, 8) if shrink <= max(times, 1))


def flip_by_chance(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture, left and right swapped every second time."""
    return cv2.flip(pixels, 1) if rng.random() < 0.5 else pixels


def sample_affine(size: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Draws a small move about the centre: turned by up to 12 degrees, zoomed by up to 12%, shifted by up to 1/16.

    Returns:
      `(a, b, c, d, e, f)`: pixel `(x, y)` of the result is `(a x + b y + c, d x + e y + f)` of the picture.
    """
    angle, scale = math.radians(rng.uniform(-12, 12)), math.exp(rng.uniform(-0.12, 0.12))
    right, down = rng.uniform(-size / 16, size / 16, size=2)
    a, b, center = scale * math.cos(angle), scale * math.sin(angle), size / 2
    return a, -b, center - a * center + b * center - right, b, a, center - b * center - a * center - down


def eval_transform(picture: Picture, size: int, resize_to: int, interpolation: str) -> np.ndarray:
    """An evaluation picture, uint8 `[size, size, 3]`: shorter side to `resize_to` pixels, then the centre.

    Raises:
      DecodeError: the picture cannot be decoded, or is so thin that it would be resized to more than MOST_PIXELS.
    """
    short, long = sorted((picture.width, picture.height))
    long = int(resize_to * long / short)  # truncated, as torchvision does
    if long * resize_to > MOST_PIXELS:
        raise DecodeError(f"{picture.width} x {picture.height} pixels are too thin for a shorter side of {resize_to}")
    width, height = (resize_to, long) if picture.width <= picture.height else (long, resize_to)
    resized = resize(picture.pixels(), height, width, interpolation)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return resized[top : top + size, left : left + size]
