"""What is in the class folders of a split, remembered from one start to the next.

A cached index holds while the class folders are the same and none was modified: adding, removing or renaming an image
modifies its folder. What is inside the images is not in the index, so that an image overwritten in place is read as it
is. What goes unnoticed is a folder whose modification time was set back by hand after a change.
"""

import contextlib
import hashlib
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcls.data.names import Names, pack
from jaxcls.errors import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")  # in any case
VERSION = 1  # of the cache's layout and of what counts as an image
# A folder may change again without a new time within its file system's resolution, which is 2 s at worst (FAT).
SETTLED_NS = 2_000_000_000
WORTH_CACHING = 10_000  # images; fewer are listed at every start, which takes no longer


class FolderIndex(NamedTuple):
    """The images of one split, N in C classes, in order of class and name."""

    names: Names  # [N], without the folder
    starts: np.ndarray  # int64 [C + 1]: the images of class i are starts[i] to before starts[i + 1]


def find(folder: Path, classes: tuple[str, ...], cache: Path) -> FolderIndex:
    """The index of `folder/CLASS/*`, from the cache if that still holds.

    Args:
      folder: of the split.
      classes: its folders' names, sorted.
      cache: directory to keep indices in. If it cannot be written, the next start lists the folders again.

    Raises:
      DataError: a class without images, or a folder that cannot be read.
    """
    file = cache / (hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32] + ".npz")
    try:
        stamps = _stamps(folder, classes)  # taken before listing: a change in between must make them differ
        index = _load(file, classes, stamps)
        if index is None:
            index = _list(folder, classes)
            if len(index.names) >= WORTH_CACHING:
                with contextlib.suppress(OSError):
                    _save(file, classes, stamps, index)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be listed: {error.strerror}") from error
    return index


def _stamps(folder: Path, classes: tuple[str, ...]) -> np.ndarray:
    """int64 `[C, 2]`: inode and time of modification, in ns, of each class folder."""
    found = [os.stat(folder / name) for name in classes]
    return np.array([(stat.st_ino & (2**63 - 1), stat.st_mtime_ns) for stat in found], np.int64)


def _list(folder: Path, classes: tuple[str, ...]) -> FolderIndex:
    counts = []

    def listed():
        for name in classes:
            files = sorted(file for file in os.listdir(folder / name) if is_image(file))
            if not files:
                raise DataError(
                    f"class {folder / name} holds no image ({', '.join(EXTENSIONS)}); add some or remove the folder"
                )
            counts.append(len(files))
            yield files

    names = pack(listed())
    return FolderIndex(names, np.cumsum([0, *counts]))


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image: by its ending, and not hidden."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def _load(file: Path, classes: tuple[str, ...], stamps: np.ndarray) -> FolderIndex | None:
    """The index in a cache file; None if there is none, it is damaged, or the folders changed."""
    try:
        written = file.stat().st_mtime_ns
        with np.load(file, allow_pickle=False) as saved:
            if int(saved["version"]) != VERSION or not np.array_equal(saved["stamps"], stamps):
                return None
            if stamps[:, 1].max() > written - SETTLED_NS:
                return None
            known = Names(saved["classes"], saved["class_offsets"])
            if list(known) != list(classes):
                return None
            names, starts = Names(saved["names"], saved["offsets"]), saved["starts"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None  # RuntimeError: a flipped bit that says "encrypted", or an unknown method of compression
    whole = starts.dtype == np.int64 and starts.shape == (len(classes) + 1,) and starts[0] == 0 and starts[-1] == len(names)
    return FolderIndex(names, starts) if whole and (np.diff(starts) > 0).all() else None


def _save(file: Path, classes: tuple[str, ...], stamps: np.ndarray, index: FolderIndex) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    known = pack([list(classes)])
    with tempfile.NamedTemporaryFile(dir=file.parent, prefix=file.stem, suffix=".tmp", delete=False) as partial:
        try:
            np.savez(
                partial,
                version=VERSION,
                stamps=stamps,
                classes=known.text,
                class_offsets=known.offsets,
                names=index.names.text,
                offsets=index.names.offsets,
                starts=index.starts,
            )
            partial.close()
            os.replace(partial.name, file)
        except BaseException:
            os.unlink(partial.name)
            raise
