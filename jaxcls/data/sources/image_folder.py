"""A directory of images, `train/CLASS/*` and `val/CLASS/*`, as for the reference and torchvision."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxcls import cache
from jaxcls.config import DataConfig
from jaxcls.data import folder_index
from jaxcls.data.folder_index import EXTENSIONS, FolderIndex
from jaxcls.data.sources import Record
from jaxcls.errors import DataError


class ImageFolder:
    """The images of one split, in order of class and name."""

    def __init__(self, root: Path, split: str, classes: tuple[str, ...], index: FolderIndex):
        self.classes = classes
        self.root, self._split, self._index = root, split, index

    def __len__(self) -> int:
        return len(self._index.names)

    def __getitem__(self, index: int) -> Record:
        name = self.id(index)
        with open(os.path.join(self.root, name), "rb") as file:
            return {"image": file.read(), "label": self._label(index), "id": name}

    def id(self, index: int) -> str:
        return f"{self._split}/{self.classes[self._label(index)]}/{self._index.names[index]}"

    def _label(self, index: int) -> int:
        return int(np.searchsorted(self._index.starts, index, side="right")) - 1


def open_source(config: DataConfig, split: str, num_classes: int | None) -> ImageFolder:
    """Opens `<path>/<split>`; classes are the sorted names of the folders, the same in both splits.

    What the folders hold is cached in `~/.cache/jaxcls/index`; see `jaxcls.data.folder_index`.

    Raises:
      DataError: a folder is missing or empty or cannot be read, or the splits' classes differ.
    """
    root = Path(config.path)
    if not root.is_dir():
        raise DataError(f"there is no data directory {root}; data.path must hold train/CLASS/* and val/CLASS/*")
    train, val = (_class_names(root / name) for name in ("train", "val"))
    if train != val:
        alone = [f"train/{name}" for name in train if name not in set(val)]
        alone += [f"val/{name}" for name in val if name not in set(train)]
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        raise DataError(f"the classes of {root} differ: {', '.join(alone[:5])}{more} have no counterpart in the other split")
    return ImageFolder(root, split, train, folder_index.find(root / split, train, cache.directory("index")))


def find_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted by path, folders that are links too. Raises DataError if there is none."""
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {folder}")
    try:
        found = sorted(_walk(folder))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from error
    if not found:
        raise DataError(f"folder {folder} holds no image ({', '.join(EXTENSIONS)})")
    return found


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()

    def fail(error: OSError) -> None:
        raise error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        stat = os.stat(root)
        if (stat.st_dev, stat.st_ino) in seen:  # a link to a folder above, or to one that was there already
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        yield from (Path(root, name) for name in names if name.lower().endswith(EXTENSIONS))


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder.parent} has no folder {folder.name}/; data.path must hold train/CLASS/* and val/CLASS/*")
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    if not names:
        raise DataError(f"{folder} holds no class folders; images belong in {folder}/CLASS/")
    return tuple(names)
