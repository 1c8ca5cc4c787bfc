"""Learned and random policies of picture operations, after crop and flip: AutoAugment, RandAugment, TrivialAugmentWide.

Operations, their strengths and signs are those that torchvision documents for these three, carried out by Pillow: geometric
ones take the nearest pixel and leave black where nothing comes in.

References:
  Cubuk et al. 2018, arXiv:1805.09501 (AutoAugment: table 9 has ImageNet's sub-policies).
  Cubuk et al. 2019, arXiv:1909.13719 (RandAugment).
  Müller & Hutter 2021, arXiv:2103.10158 (TrivialAugment).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

RANDAUGMENT_OPERATIONS, RANDAUGMENT_LEVEL = 2, 9  # N and M

# Numbers of strengths, from none to the strongest: levels 0 to BINS - 1.
BINS = {"autoaugment": 10, "randaugment": 31, "trivialaugment": 31}


class Operation(NamedTuple):
    """What an operation does and how far it goes.

    Attributes:
      apply: (RGB picture, strength) -> picture.
      narrow: the strongest in AutoAugment and RandAugment.
      wide: the strongest in TrivialAugmentWide.
      signed: whether the strength is negated every second time.
    """

    apply: Callable[[Image.Image, float], Image.Image]
    narrow: float = 0.0
    wide: float = 0.0
    signed: bool = False


def _affine(image: Image.Image, *coefficients: float) -> Image.Image:
    """Pixel `(x, y)` of the result is `(a x + b y + c, d x + e y + f)` of the picture."""
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.NEAREST)


def _enhance(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: kind(image).enhance(1 + strength)


_SHIFT = 150 / 331  # of the side, as AutoAugment's 150 pixels of 331

OPERATIONS: Mapping[str, Operation] = {
    "identity": Operation(lambda image, _: image),
    "shear_x": Operation(lambda image, s: _affine(image, 1, s, 0, 0, 1, 0), 0.3, 0.99, signed=True),
    "shear_y": Operation(lambda image, s: _affine(image, 1, 0, 0, s, 1, 0), 0.3, 0.99, signed=True),
    # In whole pixels, to the right and down; `narrow` is a share of the side, which `strength` multiplies.
    "translate_x": Operation(lambda image, s: _affine(image, 1, 0, -int(s), 0, 1, 0), _SHIFT, 32, signed=True),
    "translate_y": Operation(lambda image, s: _affine(image, 1, 0, 0, 0, 1, -int(s)), _SHIFT, 32, signed=True),
    "rotate": Operation(lambda image, s: image.rotate(s), 30, 135, signed=True),  # degrees, counter-clockwise
    "brightness": Operation(_enhance(ImageEnhance.Brightness), 0.9, 0.99, signed=True),
    "color": Operation(_enhance(ImageEnhance.Color), 0.9, 0.99, signed=True),
    "contrast": Operation(_enhance(ImageEnhance.Contrast), 0.9, 0.99, signed=True),
    "sharpness": Operation(_enhance(ImageEnhance.Sharpness), 0.9, 0.99, signed=True),
    "posterize": Operation(lambda image, s: ImageOps.posterize(image, 8 - round(s)), 4, 6),  # bits taken away
    "solarize": Operation(lambda image, s: ImageOps.solarize(image, 255 - s), 255, 255),  # inverted from 255 - s up
    "autocontrast": Operation(lambda image, _: ImageOps.autocontrast(image)),
    "equalize": Operation(lambda image, _: ImageOps.equalize(image)),
    "invert": Operation(lambda image, _: ImageOps.invert(image)),  # AutoAugment alone
}
DRAWN = tuple(name for name in OPERATIONS if name != "invert")  # by RandAugment and TrivialAugment, all alike

# AutoAugment on ImageNet: each sub-policy is two operations, each with its probability in tenths and its level. Some stand
# in the table more than once, which makes them likelier.
SUB_POLICIES = (
    (("posterize", 4, 8), ("rotate", 6, 9)),
    (("solarize", 6, 5), ("autocontrast", 6, 5)),
    (("equalize", 8, 8), ("equalize", 6, 3)),
    (("posterize", 6, 7), ("posterize", 6, 6)),
    (("equalize", 4, 7), ("solarize", 2, 4)),
    (("equalize", 4, 4), ("rotate", 8, 8)),
    (("solarize", 6, 3), ("equalize", 6, 7)),
    (("posterize", 8, 5), ("equalize", 10, 2)),
    (("rotate", 2, 3), ("solarize", 6, 8)),
    (("equalize", 6, 8), ("posterize", 4, 6)),
    (("rotate", 8, 8), ("color", 4, 0)),
    (("rotate", 4, 9), ("equalize", 6, 2)),
    (("equalize", 0, 7), ("equalize", 8, 8)),
    (("invert", 6, 4), ("equalize", 10, 8)),
    (("color", 6, 4), ("contrast", 10, 8)),
    (("rotate", 8, 8), ("color", 10, 2)),
    (("color", 8, 8), ("solarize", 8, 7)),
    (("sharpness", 4, 7), ("invert", 6, 8)),
    (("shear_x", 6, 5), ("equalize", 10, 9)),
    (("color", 4, 0), ("equalize", 6, 3)),
    (("equalize", 4, 7), ("solarize", 2, 4)),
    (("solarize", 6, 5), ("autocontrast", 6, 5)),
    (("invert", 6, 4), ("equalize", 10, 8)),
    (("color", 6, 4), ("contrast", 10, 8)),
    (("equalize", 8, 8), ("equalize", 6, 3)),
)


def apply(picture: np.ndarray, policy: str, rng: np.random.Generator) -> np.ndarray:
    """Changes a training picture as a policy draws it.

    Args:
      picture: uint8 `[H, W, 3]`, cropped and flipped.
      policy: `autoaugment`, `randaugment` or `trivialaugment`.
      rng: all randomness comes from here.

    Returns:
      uint8 `[H, W, 3]`.
    """
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    for name, level in sample(policy, rng):
        image = OPERATIONS[name].apply(image, strength(name, level, policy, width, height))
    return np.asarray(image)


def sample(policy: str, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Draws what `policy` does to one picture: operations and their levels, in order; below 0: a negative strength.

    AutoAugment takes one of its sub-policies and each of the two operations with its own probability; RandAugment two
    operations (perhaps the same) at one level; TrivialAugment one operation at any level.
    """
    if policy == "autoaugment":
        chosen = SUB_POLICIES[rng.integers(len(SUB_POLICIES))]
        drawn = [(name, level) for name, tenths, level in chosen if rng.random() < tenths / 10]
    elif policy == "randaugment":
        drawn = [(str(name), RANDAUGMENT_LEVEL) for name in rng.choice(DRAWN, RANDAUGMENT_OPERATIONS)]
    else:
        drawn = [(str(rng.choice(DRAWN)), int(rng.integers(BINS[policy])))]
    return [(name, -level if OPERATIONS[name].signed and rng.random() < 0.5 else level) for name, level in drawn]


def strength(name: str, level: int, policy: str, width: int, height: int) -> float:
    """An operation's strength at a level, in even steps from 0; shifts are in pixels of a picture of this size."""
    operation, wide = OPERATIONS[name], policy == "trivialaugment"
    strongest = operation.wide if wide else operation.narrow
    if not wide and name in ("translate_x", "translate_y"):
        strongest *= width if name == "translate_x" else height
    return strongest * level / (BINS[policy] - 1)
