"""Making an array_record data set out of images, shard by shard, so that a stopped run can go on.

`progress.jsonl` in the directory holds the options and then a line for each finished shard; at the end `metadata.json`
takes its place. Which image goes into which shard depends on the images' ids and the number of shards alone.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data import record_format
from jaxcls.data.names import pack
from jaxcls.data.record_format import FileEntry, Metadata
from jaxcls.data.shard_writer import Shard, bring_to_disk
from jaxcls.data.sources import Source, make_source
from jaxcls.data.tar_folder import open_tar
from jaxcls.errors import ConfigError, DataError

SEED = 0  # of the order of records
SPLITS = ("train", "val")
PROGRESS = "progress.jsonl"
SHARD_IMAGES = 5000  # by default; about 550 MB of ImageNet


def open_input(path: Path) -> dict[str, Source]:
    """Both splits of a folder or tar file. Raises DataError."""
    if os.path.isfile(path):
        return open_tar(path)
    config = DataConfig(source="image_folder", path=str(path))
    return {split: make_source(config, split) for split in SPLITS}


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard to make: the images `indices` of a split, in this order, in the file `name`."""

    split: str
    name: str
    indices: np.ndarray


def plan(sources: dict[str, Source], shards: int | None) -> list[Task]:
    """The shards of both splits: a fixed random order, dealt out, so that shards are alike.

    Args:
      shards: of training; evaluation gets as many in proportion. None: one for 5,000 images.
    """
    shards = shards or math.ceil(len(sources["train"]) / SHARD_IMAGES)
    tasks = []
    for split, source in sources.items():
        count = min(math.ceil(shards * len(source) / len(sources["train"])), len(source))
        order = np.random.default_rng((SEED, SPLITS.index(split))).permutation(len(source))
        names = [f"{split}-{number:05d}-of-{count:05d}.array_record" for number in range(count)]
        tasks += [Task(split, name, order[number::count]) for number, name in enumerate(names)]
    return tasks


def describe(sources: dict[str, Source], tasks: list[Task], resize: int | None, quality: int) -> dict[str, Any]:
    """The options that decide what is written, with a fingerprint of the images' names."""
    found: dict[str, Any] = {"resize": resize, "quality": quality if resize else None, "seed": SEED}
    for split, source in sources.items():
        names = hashlib.sha256()
        for index in range(len(source)):
            names.update(os.fsencode(source.id(index)) + b"\n")
        found[f"{split}_images"], found[f"{split}_shards"] = len(source), sum(task.split == split for task in tasks)
        found[f"{split}_names"] = names.hexdigest()
    return found


@contextlib.contextmanager
def claim(directory: Path) -> Iterator[None]:
    """Makes a directory, if need be, and keeps other processes from preparing there.

    Raises:
      ConfigError: it cannot be made, or another process is preparing there.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        claimed = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made a directory: {error.strerror}") from error
    try:
        fcntl.flock(claimed, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"{directory} is being prepared by another process; wait for it") from error
    finally:
        os.close(claimed)


class Progress:
    """The shards that are finished, on the disk."""

    def __init__(self, directory: Path, options: dict[str, Any]):
        """Opens a directory that is claimed, new or of a run that stopped.

        Raises:
          ConfigError: the directory holds other files, or was made with other options.
        """
        self.directory, self.options = directory, options
        self.finished: dict[str, Shard] = {}
        self.complete = (directory / record_format.METADATA).exists()
        self._path, self._lock = directory / PROGRESS, threading.Lock()
        foreign = [path.name for path in directory.iterdir() if path.name != PROGRESS + ".tmp"]
        if self.complete:
            self._compare(record_format.read_metadata(directory).options)
        elif self._path.exists():
            self._read()
        elif foreign:
            raise ConfigError(f"{directory} holds other files ({sorted(foreign)[0]}); give a new or an empty directory")
        else:
            record_format.write_whole(self._path, json.dumps(options).encode() + b"\n")

    def _read(self) -> None:
        header, *lines = self._path.read_bytes().split(b"\n")
        try:
            options = json.loads(header)
        except ValueError as error:
            raise DataError(f"{self._path} is damaged ({error}); delete {self.directory} and prepare it again") from error
        self._compare(options)
        for line in lines:
            try:
                found = json.loads(line)
                entry, bad = FileEntry(**found["entry"]), tuple(found["bad"])
                record_format.check_size(self.directory, entry)
            except (ValueError, KeyError, TypeError, DataError):
                continue  # half a line, or a shard that is not as it was: it is made again
            self.finished[entry.file] = Shard(entry, bad)

    def _compare(self, before: dict[str, Any]) -> None:
        for key, value in self.options.items():
            if before.get(key) != value:
                what = key.replace("_", " ")
                values = "other" if key.endswith("_names") else f"{before.get(key)} there and {value} now"
                raise ConfigError(
                    f"{self.directory} was made with other options ({what}: {values}); give another directory, or delete it"
                )

    def add(self, shard: Shard) -> None:
        """Records a finished shard; any thread may."""
        with self._lock, open(self._path, "r+b") as file:
            self.finished[shard.entry.file] = shard
            content = file.read()
            file.seek(content.rfind(b"\n") + 1)  # over half a line that a killed run may have left
            file.truncate()
            file.write(json.dumps(dataclasses.asdict(shard)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self, sources: dict[str, Source], tasks: list[Task]) -> Metadata:
        """Writes the indices and `metadata.json` of what is finished, which is everything."""
        index = {split: self._write_index(split, sources[split], tasks) for split in SPLITS}
        shards = {split: tuple(self.finished[task.name].entry for task in tasks if task.split == split) for split in SPLITS}
        skipped = tuple(bad for task in tasks for bad in self.finished[task.name].bad)
        metadata = Metadata(sources["train"].classes, self.options, shards, index, skipped)
        record_format.write_metadata(self.directory, metadata)
        self._path.unlink()
        return metadata

    def _write_index(self, split: str, source: Source, tasks: list[Task]) -> FileEntry:
        names, labels = [], []
        label_of = {name: label for label, name in enumerate(source.classes)}
        for task in tasks:
            if task.split == split:
                left_out = {bad["id"] for bad in self.finished[task.name].bad}
                ids = [name for name in map(source.id, task.indices.tolist()) if name not in left_out]
                names.append(ids)
                labels += [label_of[name.split("/")[1]] for name in ids]
        path = self.directory / f"{split}.index.npz"
        record_format.write_index(path, np.array(labels, np.int32), pack(names))
        return FileEntry(path.name, len(labels), *bring_to_disk(path))


def verify(directory: Path, metadata: Metadata, on_bytes: Callable[[int], None]) -> None:
    """Compares size and SHA-256 of every file with the metadata.

    Args:
      on_bytes: called with the size of each file that was read.

    Raises:
      DataError: a file is missing or not as it was written.
    """
    for split in SPLITS:
        for entry in (*metadata.shards[split], metadata.index[split]):
            record_format.check_size(directory, entry)
            try:
                with open(directory / entry.file, "rb") as file:
                    checksum = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise DataError(f"{directory / entry.file} cannot be read: {error.strerror}") from error
            if checksum != entry.sha256:
                raise DataError(
                    f"{directory / entry.file} is damaged: its SHA-256 begins with {checksum[:8]} instead of "
                    f"{entry.sha256[:8]}; copy it again, or prepare it again"
                )
            on_bytes(entry.bytes)
