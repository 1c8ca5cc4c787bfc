"""The files that `scripts/prepare_array_record` writes: what is in a record, and in a data set's `metadata.json`.

A data set is a directory of

    train-00000-of-00008.array_record ...    shards of records, in shuffled order
    val-00000-of-00001.array_record ...
    train.index.npz, val.index.npz           labels and ids of all records of a split, in the order of its shards
    metadata.json                            classes, options, and size and checksum of each of these files

A record is a header of 10 bytes, little-endian: `JXR1`, the label (int32), the length of the id (uint16); then the id
(UTF-8), and the encoded image up to the record's end.
"""

import dataclasses
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.data.names import Names
from jaxcls.errors import DataError

FORMAT = 1  # of the directory
MAGIC = b"JXR1"
HEADER = struct.Struct("<4siH")
METADATA = "metadata.json"


def pack_record(label: int, name: str, image: bytes) -> bytes:
    """A record's bytes. Raises DataError for an id of more than 65,535 bytes."""
    encoded = os.fsencode(name)
    if len(encoded) > 0xFFFF:
        raise DataError(f"the id {name[:80]}... has {len(encoded)} bytes; 65535 at most are possible")
    return HEADER.pack(MAGIC, label, len(encoded)) + encoded + image


def unpack_record(record: bytes) -> tuple[int, str, bytes]:
    """Label, id and encoded image of a record. Raises ValueError if it is none of ours."""
    if len(record) < HEADER.size or not record.startswith(MAGIC):
        raise ValueError(f"a record of {len(record)} bytes that does not begin with {MAGIC.decode()}")
    _, label, length = HEADER.unpack_from(record)
    if len(record) < HEADER.size + length:
        raise ValueError(f"a record of {len(record)} bytes whose id should have {length}")
    return label, os.fsdecode(record[HEADER.size : HEADER.size + length]), record[HEADER.size + length :]


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file as `metadata.json` describes it."""

    file: str  # name
    records: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What `metadata.json` holds; splits are `train` and `val`."""

    classes: tuple[str, ...]
    options: dict[str, Any]  # what it was prepared with
    shards: dict[str, tuple[FileEntry, ...]]
    index: dict[str, FileEntry]
    skipped: tuple[dict[str, str], ...] = ()  # id and reason of each image that was left out


def write_metadata(directory: Path, metadata: Metadata) -> None:
    """Writes `metadata.json`, whole or not at all."""
    write_whole(
        directory / METADATA, json.dumps({"format": FORMAT} | dataclasses.asdict(metadata), indent=1).encode() + b"\n"
    )


def read_metadata(directory: Path) -> Metadata:
    """Reads `metadata.json`.

    Raises:
      DataError: it is not there, of another format, or not whole.
    """
    path = directory / METADATA
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format", None) != FORMAT:
            raise DataError(f"{path} is not of format {FORMAT}; run scripts/prepare_array_record of this version")
        shards = {split: tuple(FileEntry(**entry) for entry in found["shards"][split]) for split in ("train", "val")}
        index = {split: FileEntry(**found["index"][split]) for split in ("train", "val")}
        return Metadata(tuple(found["classes"]), found["options"], shards, index, tuple(found["skipped"]))
    except OSError as error:
        unfinished = (
            " (preparing was not finished: run the same command again)" if list(directory.glob("*.array_record")) else ""
        )
        raise DataError(f"{path} cannot be read: {error.strerror}{unfinished}; see scripts/prepare_array_record") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); prepare the data again") from error


def check_size(directory: Path, entry: FileEntry) -> None:
    """Raises DataError if a file is missing or has not the size that the metadata says; reads nothing."""
    path = directory / entry.file
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; copy it again, or prepare it again") from error
    if size != entry.bytes:
        what = "ends early" if size < entry.bytes else "is too long"
        raise DataError(f"{path} {what}: {size} bytes instead of {entry.bytes}; copy it again, or prepare it again")


def write_index(path: Path, labels: np.ndarray, names: Names) -> None:
    """Writes labels (int32 `[N]`) and ids of a split, whole or not at all; the same bytes for the same content."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        np.savez(file, labels=labels.astype(np.int32), names=names.text, offsets=names.offsets)
        _finish(file, partial, path)


def read_index(path: Path) -> tuple[np.ndarray, Names]:
    """Labels, int32 `[N]`, and ids. Raises DataError if the file is not whole."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            labels, names = saved["labels"], Names(saved["names"], saved["offsets"])
        if labels.dtype != np.int32 or labels.shape != (len(names),):
            raise ValueError("as many labels as names are expected")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        NotImplementedError,
        RuntimeError,  # a flipped bit that says "encrypted"
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{path} is damaged ({error}); copy it again, or prepare it again") from error
    return labels, names


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that, whatever happens, it has either its old or its new content."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as file:
        file.write(content)
        _finish(file, partial, path)


def _finish(file, partial: Path, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(partial, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Makes renames in a directory outlast a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
