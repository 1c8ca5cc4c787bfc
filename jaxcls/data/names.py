"""A million names in little memory: one run of bytes and where each name begins, instead of as many Python strings."""

import os
from collections.abc import Iterable

import numpy as np

from jaxcls.errors import DataError


class Names:
    """N names, not to be changed; pickled as two arrays.

    Attributes:
      text: uint8 `[bytes]`, the names one after the other, encoded as file names are.
      offsets: int64 `[N + 1]`; name `i` is `text[offsets[i]:offsets[i + 1]]`.
    """

    def __init__(self, text: np.ndarray, offsets: np.ndarray):
        """Raises ValueError if the offsets do not fit the text."""
        fits = text.dtype == np.uint8 and offsets.dtype == np.int64 and text.ndim == offsets.ndim == 1 and len(offsets) > 0
        if not fits or offsets[0] != 0 or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
            raise ValueError("the offsets do not fit the names")
        self.text, self.offsets = text, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no name {index} among {len(self)}")
        return os.fsdecode(self.text[self.offsets[index] : self.offsets[index + 1]].tobytes())


def pack(groups: Iterable[list[str]]) -> Names:
    """The names of all groups in order; only one group at a time is in memory as strings."""
    texts, lengths = [b""], [np.zeros(1, np.int64)]
    for group in groups:
        encoded = [os.fsencode(name) for name in group]
        texts.append(b"".join(encoded))
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return Names(np.frombuffer(b"".join(texts), np.uint8), np.cumsum(np.concatenate(lengths)))


def check_labels(labels: np.ndarray, classes: int, where: object) -> None:
    """Raises DataError, naming `where` and the first record, if a label `[N]` is not below the number of classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"record {first} of {where} has label {labels[first]}, but there are {classes} classes; labels must be 0 to "
            f"{classes - 1} ({wrong.size} of {len(labels)} are not)"
        )
