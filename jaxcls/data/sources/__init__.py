"""Where records come from: one file a source, imported when it is asked for."""

import importlib
from typing import Protocol, TypedDict

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.errors import DataError


class Record(TypedDict):
    """One labelled image."""

    image: bytes | np.ndarray  # encoded, or uint8 [H, W, 3]
    label: int  # index into the source's classes
    id: str  # names the record for people


class Source(Protocol):
    """Random access to the records of one split; picklable, so that worker processes can have it."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def id(self, index: int) -> str:
        """The record's id, without reading the image."""
        ...


# Each module has `open_source(config, split, num_classes) -> Source`.
SOURCES = {
    "array_record": "jaxcls.data.sources.array_record",
    "digits": "jaxcls.data.sources.digits",
    "image_folder": "jaxcls.data.sources.image_folder",
    "parquet": "jaxcls.data.sources.parquet",
    "synthetic": "jaxcls.data.sources.synthetic",
    "tfds": "jaxcls.data.sources.tfds",
}


def make_source(config: DataConfig, split: str, num_classes: int | None = None) -> Source:
    """Opens a split, `train` or `val`, of the configured data.

    Args:
      config: `source` is a name in `SOURCES`.
      split: `train` or `val`.
      num_classes: for sources that make up their labels.

    Raises:
      DataError: the data is not there, or not in order.
    """
    try:
        source = importlib.import_module(SOURCES[config.source]).open_source(config, split, num_classes)
    except OSError as error:  # of looking at it: no permission, too long a name, ...
        raise DataError(
            f"{error.filename or config.path or config.source} cannot be read: {error.strerror or error}"
        ) from error
    return CachedSource(source) if config.cache else source


class CachedSource:
    """A source whose records stay in memory, as they are stored, once they were read; for threads of one process."""

    def __init__(self, source: Source):
        self._source, self._records = source, {}
        self.classes = source.classes
        self.root = getattr(source, "root", None)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._records.get(index)
        if record is None:
            record = self._records[index] = self._source[index]
        return record

    def id(self, index: int) -> str:
        return self._source.id(index)
