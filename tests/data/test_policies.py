import collections

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxcls.data import policies

POLICIES = ("autoaugment", "randaugment", "trivialaugment")


def photo(height=60, width=60):
    coarse = np.random.default_rng(0).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def moved(picture, source):
    """The nearest pixel at `source(x, y)`, coordinates of pixels' centres; black outside."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    x, y = (np.floor(value).astype(int) for value in source(x, y))
    inside = (x >= 0) & (x < picture.shape[1]) & (y >= 0) & (y < picture.shape[0])
    return np.where(inside[..., None], picture[np.where(inside, y, 0), np.where(inside, x, 0)], 0)


def enhanced(kind, factor):
    return lambda picture: kind(Image.fromarray(picture)).enhance(factor)


def solarized(picture, threshold):
    return np.where(picture < threshold, picture, 255 - picture)


# A picture of 62 x 48 pixels; strengths by hand, from the strongest and the level's share of it.
@pytest.mark.parametrize(
    ("policy", "name", "level", "expected"),
    [
        ("trivialaugment", "identity", 17, lambda p: p),
        ("autoaugment", "shear_x", 5, lambda p: moved(p, lambda x, y: (x + y / 6, y))),  # 0.3 * 5 / 9
        ("trivialaugment", "shear_x", -10, lambda p: moved(p, lambda x, y: (x - 0.33 * y, y))),  # 0.99 * 10 / 30
        ("randaugment", "shear_y", 9, lambda p: moved(p, lambda x, y: (x, y + 0.09 * x))),  # 0.3 * 9 / 30
        ("randaugment", "translate_x", 9, lambda p: moved(p, lambda x, y: (x - 8, y))),  # 150 / 331 * 62 * 0.3 = 8.4
        ("randaugment", "translate_y", -9, lambda p: moved(p, lambda x, y: (x, y + 6))),  # 150 / 331 * 48 * 0.3 = 6.5
        ("trivialaugment", "translate_x", 30, lambda p: moved(p, lambda x, y: (x - 32, y))),
        ("trivialaugment", "translate_y", 20, lambda p: moved(p, lambda x, y: (x, y - 21))),  # 32 * 20 / 30 = 21.3
        ("autoaugment", "rotate", 9, lambda p: Image.fromarray(p).rotate(30, Image.Resampling.NEAREST, fillcolor=(0, 0, 0))),
        ("trivialaugment", "rotate", -6, lambda p: Image.fromarray(p).rotate(-27, Image.Resampling.NEAREST)),
        ("randaugment", "brightness", 9, enhanced(ImageEnhance.Brightness, 1.27)),  # 1 + 0.9 * 9 / 30
        ("trivialaugment", "brightness", -30, enhanced(ImageEnhance.Brightness, 0.01)),
        ("autoaugment", "color", 4, enhanced(ImageEnhance.Color, 1.4)),  # 1 + 0.9 * 4 / 9
        ("autoaugment", "contrast", -8, enhanced(ImageEnhance.Contrast, 0.2)),
        ("trivialaugment", "sharpness", 10, enhanced(ImageEnhance.Sharpness, 1.33)),
        ("autoaugment", "posterize", 8, lambda p: p & 0b11110000),  # 8 - round(4 * 8 / 9)
        ("randaugment", "posterize", 9, lambda p: p & 0b11111110),  # 8 - round(4 * 9 / 30)
        ("trivialaugment", "posterize", 30, lambda p: p & 0b11000000),
        ("autoaugment", "solarize", 3, lambda p: solarized(p, 170)),  # 255 - 255 * 3 / 9
        ("randaugment", "solarize", 9, lambda p: solarized(p, 178.5)),
        ("trivialaugment", "solarize", 30, lambda p: 255 - p),
        ("autoaugment", "autocontrast", 5, lambda p: ImageOps.autocontrast(Image.fromarray(p))),
        ("autoaugment", "equalize", 8, lambda p: ImageOps.equalize(Image.fromarray(p))),
        ("autoaugment", "invert", 4, lambda p: 255 - p),
    ],
)
def test_operations_do_what_pillow_and_arithmetic_say(monkeypatch, policy, name, level, expected):
    monkeypatch.setattr(policies, "sample", lambda *_: [(name, level)])
    picture = photo(48, 62) // 2 + 70  # room for operations on the range of values
    found = policies.apply(picture, policy, None)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(expected(picture)))
    assert (found != picture).any() == (name != "identity")


def test_operations_come_one_after_the_other(monkeypatch):
    monkeypatch.setattr(policies, "sample", lambda *_: [("posterize", 9), ("invert", 0)])
    np.testing.assert_array_equal(policies.apply(photo(), "autoaugment", None), 255 - (photo() & 0b11110000))


def drawn(policy, count):
    rng = np.random.default_rng(0)
    return [policies.sample(policy, rng) for _ in range(count)]


def test_autoaugment_draws_as_often_as_its_table_says():
    # Sums of the paper's probabilities over the 25 sub-policies, by hand.
    expected = {"posterize": 2.8, "rotate": 3.6, "solarize": 3.6, "autocontrast": 1.2, "equalize": 11.2, "color": 3.8}
    expected |= {"contrast": 2.0, "invert": 1.8, "sharpness": 0.4, "shear_x": 0.6}
    count = 10_000
    samples = drawn("autoaugment", count)
    found = collections.Counter(name for sample in samples for name, _ in sample)
    assert found.keys() == expected.keys()
    for name, times in expected.items():
        assert found[name] / count == pytest.approx(times / 25, abs=0.016), name  # three deviations of the likeliest
    assert len(policies.SUB_POLICIES) == 25
    levels = [level for sample in samples for name, level in sample if name == "rotate"]
    assert {abs(level) for level in levels} == {3, 8, 9}
    assert np.mean(np.sign(levels)) == pytest.approx(0, abs=0.08)
    assert min(level for sample in samples for name, level in sample if name in ("solarize", "posterize")) == 3
    # Rotate after posterize, never before.
    assert all(names != ("rotate", "posterize") for names in (tuple(name for name, _ in sample) for sample in samples))


def test_randaugment_draws_two_of_fourteen_at_level_nine():
    samples = drawn("randaugment", 5000)
    assert {len(sample) for sample in samples} == {2}
    counts = collections.Counter(name for sample in samples for name, _ in sample)
    assert len(counts) == 14 and "invert" not in counts
    assert all(count == pytest.approx(10_000 / 14, abs=100) for count in counts.values())
    for name in counts:
        levels = {level for sample in samples for drawn_name, level in sample if drawn_name == name}
        unsigned = {"identity", "posterize", "solarize", "autocontrast", "equalize"}
        assert levels == ({9} if name in unsigned else {-9, 9}), name
    assert sum(first[0] == second[0] for first, second in samples) == pytest.approx(5000 / 14, abs=70)


def test_trivialaugment_draws_one_of_fourteen_at_any_level():
    samples = drawn("trivialaugment", 10_000)
    assert {len(sample) for sample in samples} == {1}
    counts = collections.Counter(name for ((name, _),) in samples)
    assert len(counts) == 14 and all(count == pytest.approx(10_000 / 14, abs=100) for count in counts.values())
    levels = collections.Counter(abs(level) for ((_, level),) in samples)
    assert sorted(levels) == list(range(31))
    assert all(count == pytest.approx(10_000 / 31, abs=75) for count in levels.values())
    signs = [np.sign(level) for ((name, level),) in samples if name == "shear_x" and level]
    assert np.mean(signs) == pytest.approx(0, abs=0.15)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_generator_gives_the_same_picture(policy):
    results = [[policies.apply(photo(), policy, np.random.default_rng(seed)) for seed in range(20)] for _ in range(2)]
    np.testing.assert_array_equal(*results)
    assert len({picture.tobytes() for picture in results[0]}) > 10
    assert {picture.shape for picture in results[0]} == {(60, 60, 3)}
