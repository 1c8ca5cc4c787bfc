"""scikit-learn's 1,797 scanned handwritten digits (8x8 pixels), which come with its package: real images, no download."""

import csv
import gzip
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcls.config import DataConfig
from jaxcls.data.sources import Record
from jaxcls.errors import DataError

EVERY = 5  # every fifth record of each class is for evaluation


class Digits:
    """One split of the digits, enlarged once to `size` pixels; all in memory."""

    classes = tuple("0123456789")

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, indices: np.ndarray, size: int):
        """`pixels` [N, 8, 8] from 0 to 16, `labels` [N], and the `indices` that belong to this split."""
        self._labels, self._indices = labels[indices].tolist(), indices.tolist()
        grey = np.round(pixels[indices] * (255 / 16)).astype(np.uint8)
        self._images = np.stack([np.asarray(Image.fromarray(x).resize((size, size), Image.BILINEAR)) for x in grey])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        image = np.repeat(self._images[index][:, :, None], 3, 2)  # grey [H,W] -> [H,W,3]
        return {"image": image, "label": self._labels[index], "id": self.id(index)}

    def id(self, index: int) -> str:
        return f"digits/{self._indices[index]}"


def open_source(config: DataConfig, split: str, num_classes: int | None) -> Digits:
    """A fixed, stratified 80/20 split. Raises DataError if scikit-learn is missing."""
    table = _read_table()
    labels = table[:, 64]
    order = np.concatenate([np.flatnonzero(labels == digit) for digit in range(10)])
    position = np.concatenate([np.arange(np.sum(labels == digit)) for digit in range(10)])
    in_val = position % EVERY == EVERY // 2
    indices = np.sort(order[in_val if split == "val" else ~in_val])
    return Digits(table[:, :64].reshape(-1, 8, 8), labels, indices, config.image_size)


def _read_table() -> np.ndarray:
    """`[1797, 65]`: 64 pixels and the label, from the file inside scikit-learn (importing it would take a second)."""
    package = importlib.util.find_spec("sklearn")
    path = package and Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path or not path.exists():
        raise DataError("the embedded digits come with scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(path, "rt") as file:
        return np.array([[int(float(value)) for value in row] for row in csv.reader(file)])
