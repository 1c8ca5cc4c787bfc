"""One shard of a prepared data set: images read, decoded to be sure of them, shrunk where asked for, and written."""

import dataclasses
import errno
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcls.data.decode import DecodeError, open_image
from jaxcls.data.record_format import FileEntry, pack_record, sync_directory
from jaxcls.data.sources import Record, Source
from jaxcls.errors import DataError, RunError

# One record a chunk, so that any can be read alone; JPEG is compressed already.
OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard; or, if `entry` is None, one that was given up because of its bad images."""

    entry: FileEntry | None
    bad: tuple[dict[str, str], ...]  # id and reason of each image that does not decode


def write_shard(
    source: Source,
    indices: np.ndarray,
    path: Path,
    *,
    resize: int | None,
    quality: int,
    skip_bad: bool,
    tick: Callable[[], None],
) -> Shard:
    """Writes the images `indices` of a source, in that order.

    The file is written under another name, brought to the disk, and renamed: `path` is whole, or not there.

    Args:
      resize: pixels of the shorter side above which an image is shrunk and encoded again; None for never.
      quality: of JPEG, where an image is encoded again.
      skip_bad: leave images out that do not decode; else no shard is made of which one does not.
      tick: called after each image; what it raises ends the work.

    Raises:
      DataError: an image cannot be read.
      OSError: the disk is full.
      RunError: the shard cannot be written for another reason.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    partial = path.with_name(path.name + ".tmp")
    bad, records = [], 0
    try:
        writer = ArrayRecordWriter(str(partial), OPTIONS)
        try:
            for index in indices.tolist():
                try:
                    record = _read(source, index)
                    image = encode(record["image"], resize, quality)
                    if skip_bad or not bad:
                        writer.write(pack_record(record["label"], record["id"], image))
                        records += 1
                except DecodeError as error:
                    bad.append({"id": source.id(index), "reason": str(error)})
                tick()
        finally:
            writer.close()
    except RuntimeError as error:  # array_record's, for what it cannot write
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial)) from error
        raise RunError(f"{partial} cannot be written: {error}") from error
    finally:
        if bad and not skip_bad:
            partial.unlink(missing_ok=True)
    if bad and not skip_bad:
        return Shard(None, tuple(bad))
    size, checksum = bring_to_disk(partial)
    os.replace(partial, path)
    sync_directory(path.parent)
    return Shard(FileEntry(path.name, records, size, checksum), tuple(bad))


def _read(source: Source, index: int) -> Record:
    try:
        return source[index]
    except FileNotFoundError as error:  # gone since it was listed, or a link to nothing
        raise DecodeError("it is not there, or a link to nothing") from error
    except OSError as error:
        raise DataError(f"{source.id(index)} cannot be read: {error.strerror or error}") from error


def encode(encoded: bytes, resize: int | None, quality: int) -> bytes:
    """The image as it is, or, if its shorter side has more than `resize` pixels, shrunk to that (bicubic) as JPEG.

    Raises:
      DecodeError: it does not decode, or is too long for a JPEG (65,500 pixels).
    """
    pixels = open_image(encoded).pixels()
    height, width, _ = pixels.shape
    if resize is None or min(height, width) <= resize:
        return encoded
    size = tuple(round(side * resize / min(height, width)) for side in (width, height))
    shrunk = io.BytesIO()
    try:
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(shrunk, "JPEG", quality=quality)
    except OSError as error:
        raise DecodeError(f"its {size[0]} x {size[1]} pixels cannot be written as JPEG") from error
    return shrunk.getvalue()


def bring_to_disk(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file, which is on the disk afterwards."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
