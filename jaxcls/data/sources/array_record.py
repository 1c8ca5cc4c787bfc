"""Records that `scripts/prepare_array_record` packed into a few large files, read in any order."""

import errno
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data import record_format
from jaxcls.data.names import Names, check_labels
from jaxcls.data.sources import Record
from jaxcls.errors import DataError


class _Shard(NamedTuple):
    """All of a file, in the form in which array_record takes it without opening it first."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecords:
    """One split. Its readers are opened when they are needed, and shared by all threads."""

    def __init__(self, classes: tuple[str, ...], names: Names, shards: list[_Shard]):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.classes = classes
        self._names, self._shards = names, shards
        self._records = ArrayRecordDataSource(shards)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        """Raises OSError if the record is damaged."""
        try:
            label, name, image = record_format.unpack_record(self._records[index])
        except (RuntimeError, ValueError) as error:  # array_record's, for what it cannot open or read
            raise OSError(errno.EIO, f"{self._place(index)}: {str(error) or 'it cannot be read'}") from error
        return {"image": image, "label": label, "id": name}

    def id(self, index: int) -> str:
        return self._names[index]

    def _place(self, index: int) -> str:
        ends = np.cumsum([shard.take for shard in self._shards])
        shard = int(np.searchsorted(ends, index, side="right"))
        return f"record {index - ends[shard] + self._shards[shard].take} of {Path(self._shards[shard].filename).name}"


def open_source(config: DataConfig, split: str, num_classes: int | None) -> ArrayRecords:
    """Opens a split; every file is looked for and its size compared with `metadata.json`, but no image is read.

    Raises:
      DataError: a file is missing, ends early or is damaged, or a label has no class.
    """
    directory = Path(config.path)
    if not directory.is_dir():
        raise DataError(f"there is no data directory {directory}; make it with scripts/prepare_array_record")
    metadata = record_format.read_metadata(directory)
    entries = metadata.shards[split]
    for entry in (*entries, metadata.index[split]):
        record_format.check_size(directory, entry)
    path = directory / metadata.index[split].file
    labels, names = record_format.read_index(path)
    records = sum(entry.records for entry in entries)
    if len(names) != records:
        raise DataError(f"{path} lists {len(names)} records, but the shards hold {records}; prepare the data again")
    if not records:
        raise DataError(f"{directory} holds no {split} record; prepare it again")
    check_labels(labels, len(metadata.classes), path)
    return ArrayRecords(
        metadata.classes,
        names,
        [_Shard(str(directory / entry.file), 0, entry.records, entry.records) for entry in entries],
    )
