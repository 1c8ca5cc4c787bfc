"""From encoded bytes to a uint8 picture of the network's size: pure functions, with randomness as an argument.

Resizing is Pillow's, antialiased where it shrinks, as in the reference's PyTorch loader. EXIF rotation is ignored, as
there: ImageNet's labels were given, and its networks trained, on pictures as they are stored.
"""

import io
import math
import warnings

import numpy as np
from PIL import Image

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

AREA = (0.08, 1.0)  # of a random crop, as a share of the picture
LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))  # of its width over its height
TRIES = 10

SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")

Image.init()  # loads every format's plugin now: doing it in several threads at once is a race


class DecodeError(ValueError):
    """An image that cannot be decoded; the message is a short reason."""


def decode(encoded: bytes) -> Image.Image:
    """Decodes an image of any format that Pillow knows, to RGB.

    Grey, palette, CMYK and 16-bit images (scaled to 8 bits) are converted; transparency is dropped.

    Raises:
      DecodeError: not an image, truncated, or above Pillow's limit against decompression bombs (178 million pixels).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # from half that limit; only the limit counts
            image = Image.open(io.BytesIO(encoded))
            image.load()
    except Exception as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error) or type(error).__name__
        raise DecodeError("an empty file" if not encoded else reason) from error
    if image.mode in SIXTEEN_BIT:  # Pillow would clip everything above 255 to white
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def sample_crop(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a random crop: 8 to 100% of the area, aspect 3/4 to 4/3 log-uniform.

    After ten draws that do not fit, the largest centred crop whose aspect lies in the range.

    Returns:
      left, top, right, bottom, in pixels.
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(*LOG_ASPECT))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    least, most = (math.exp(bound) for bound in LOG_ASPECT)
    w, h = width, height
    if width < least * height:
        h = round(width / least)
    elif width > most * height:
        w = round(height * most)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def train_transform(image: Image.Image, size: int, augment: str, filter_name: str, rng: np.random.Generator) -> np.ndarray:
    """A training picture, uint8 `[size, size, 3]`.

    Args:
      image: RGB.
      size: of the result, in pixels.
      augment: `crop_flip`: a random crop, resized, and flipped left to right every second time; `affine`: resized, and
        turned, zoomed and shifted a little (`sample_affine`), black where nothing comes in.
      filter_name: `bilinear` or `bicubic`.
      rng: all randomness comes from here.
    """
    if augment == "crop_flip":
        # First crop, then resize: the filter must not see what lies outside of the crop.
        box = sample_crop(image.height, image.width, rng)
        picture = np.asarray(image.crop(box).resize((size, size), FILTERS[filter_name]))
        return np.ascontiguousarray(picture[:, ::-1]) if rng.random() < 0.5 else picture
    picture = image if image.size == (size, size) else image.resize((size, size), FILTERS[filter_name])
    return np.asarray(picture.transform((size, size), Image.Transform.AFFINE, sample_affine(size, rng), FILTERS["bilinear"]))


def sample_affine(size: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Draws a small move about the centre: turned by up to 12 degrees, zoomed by up to 12%, shifted by up to 1/16.

    Returns:
      `(a, b, c, d, e, f)`: pixel `(x, y)` of the result is `(a x + b y + c, d x + e y + f)` of the picture.
    """
    angle, scale = math.radians(rng.uniform(-12, 12)), math.exp(rng.uniform(-0.12, 0.12))
    right, down = rng.uniform(-size / 16, size / 16, size=2)
    a, b, center = scale * math.cos(angle), scale * math.sin(angle), size / 2
    return a, -b, center - a * center + b * center - right, b, a, center - b * center - a * center - down


def eval_transform(image: Image.Image, size: int, resize: int, filter_name: str) -> np.ndarray:
    """An evaluation picture, uint8 `[size, size, 3]`: shorter side to `resize` pixels, then the centre."""
    short, long = sorted(image.size)
    long = int(resize * long / short)  # truncated, as torchvision does
    width, height = (resize, long) if image.width <= image.height else (long, resize)
    if (width, height) != image.size:
        image = image.resize((width, height), FILTERS[filter_name])
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))
