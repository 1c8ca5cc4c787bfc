"""Noise of ImageNet's size, for measuring and trying out: no files, and hardly any time."""

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.sources import Record

LENGTHS = {"train": 1_281_167, "val": 1_000}
CLASSES = 1000


class Synthetic:
    """Record `i` is a window of one buffer of noise; its label is `i` modulo the classes."""

    def __init__(self, split: str, size: int, num_classes: int):
        self.classes = tuple(f"class{index}" for index in range(num_classes))
        self._split, self._size = split, size
        self._noise = np.random.default_rng(0).integers(256, size=size * size * 3 + 4096, dtype=np.uint8)

    def __len__(self) -> int:
        return LENGTHS[self._split]

    def __getitem__(self, index: int) -> Record:
        start = index * 37 % 4096
        image = self._noise[start : start + self._size**2 * 3].reshape(self._size, self._size, 3)
        return {"image": image, "label": index % len(self.classes), "id": self.id(index)}

    def id(self, index: int) -> str:
        return f"synthetic/{self._split}/{index}"


def open_source(config: DataConfig, split: str, num_classes: int | None) -> Synthetic:
    return Synthetic(split, config.image_size, num_classes or CLASSES)
