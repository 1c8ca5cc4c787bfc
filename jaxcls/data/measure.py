"""How fast training images come in: each stage of the transform by itself on one thread, and the whole pipeline."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.decode import DecodeError, open_image
from jaxcls.data.pipeline import train_batches
from jaxcls.data.sources import Record
from jaxcls.data.transforms import flip_by_chance, resize, sample_crop, shrink_for
from jaxcls.errors import DataError

STAGES = ("read", "crop", "decode", "resize", "augment", "batch", "copy")
ROUNDS = 5  # the median of these counts
BATCH = 64


class Files:
    """Images from anywhere, without labels, over and over: a source of `length` records."""

    classes = ("image",)

    def __init__(self, paths: Sequence[Path], length: int):
        self._paths, self._length = paths, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:
        return {"image": self._paths[index % len(self._paths)].read_bytes(), "label": 0, "id": self.id(index)}

    def id(self, index: int) -> str:
        return str(self._paths[index % len(self._paths)])


def usable(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Those that decode, and (path, reason) of the others. Raises DataError if none does."""
    good, bad = [], []
    for path in paths:
        try:
            if not path.is_file():
                raise OSError("it is no file")
            open_image(path.read_bytes()).pixels()
            good.append(path)
        except (DecodeError, OSError) as error:
            bad.append((str(path), getattr(error, "strerror", None) or str(error)))
    if not good:
        raise DataError(f"none of {len(paths)} images can be decoded; the first, {bad[0][0]}: {bad[0][1]}")
    return good, bad


def stage_seconds(paths: Sequence[Path], config: DataConfig, put: Callable, seconds: float) -> dict[str, float]:
    """Seconds an image of each of `STAGES`, on this thread: medians of rounds over the images.

    Args:
      paths: images that decode.
      config: `image_size` and `interpolation`; the transform is `crop_flip`.
      put: takes a uint8 batch `[B, S, S, 3]` to the device, and waits for it.
      seconds: to measure for, roughly.
    """
    rng, size = np.random.default_rng(0), config.image_size
    batch = np.empty((min(BATCH, len(paths)), size, size, 3), np.uint8)
    spent: list[dict[str, float]] = []
    began = time.perf_counter()
    while len(spent) <= ROUNDS or time.perf_counter() - began < seconds:
        total = dict.fromkeys(STAGES, 0.0)
        for place, path in enumerate(paths):
            marks = [time.perf_counter()]

            def mark(value, marks=marks):
                marks.append(time.perf_counter())
                return value

            encoded = mark(path.read_bytes())
            picture = open_image(encoded)
            box = mark(sample_crop(picture.height, picture.width, rng))
            pixels = mark(picture.pixels(box, shrink_for(box, size)))
            resized = mark(resize(pixels, size, size, config.interpolation))
            flipped = mark(flip_by_chance(resized, rng))
            batch[place % len(batch)] = flipped
            mark(None)
            if place % len(batch) == len(batch) - 1:
                put(batch)
            mark(None)
            for name, (start, stop) in zip(STAGES, itertools.pairwise(marks), strict=True):
                total[name] += stop - start
        spent.append({name: value / len(paths) for name, value in total.items()})
    return {name: statistics.median(each[name] for each in spent[1:]) for name in STAGES}  # the first round warms up


def pipeline_rate(paths: Sequence[Path], config: DataConfig, put: Callable, seconds: float) -> float:
    """Images per second through the training pipeline to the device, two batches in flight: the median of windows.

    Arguments as of `stage_seconds`; `config` says how many threads or workers.
    """
    steps = 1_000_000
    batches = train_batches(Files(paths, BATCH * steps), config, batch_size=BATCH, seed=0, start_step=0, stop_step=steps)
    put(next(batches).image)
    rates: list[float] = []
    window, count = time.perf_counter(), 0
    while len(rates) <= ROUNDS:
        put(next(batches).image)
        count += BATCH
        now = time.perf_counter()
        if now - window >= seconds / ROUNDS:
            rates.append(count / (now - window))
            window, count = now, 0
    batches.close()
    return statistics.median(rates[1:])
