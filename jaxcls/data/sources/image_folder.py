"""A directory of images, `train/CLASS/*` and `val/CLASS/*`, as for the reference and torchvision."""

import os
from pathlib import Path

from jaxcls.config import DataConfig
from jaxcls.data.sources import Record
from jaxcls.errors import DataError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp")  # in any case


class ImageFolder:
    """The images of one split, in order of class and name."""

    def __init__(self, root: Path, split: str, classes: tuple[str, ...]):
        self.classes = classes
        self.root, self._split = root, split
        self._names: list[str] = []
        self._labels: list[int] = []
        for label, name in enumerate(classes):
            files = _image_names(root / split / name)
            if not files:
                raise DataError(
                    f"class {root / split / name} holds no image ({', '.join(EXTENSIONS)}); add some or remove the folder"
                )
            self._names += files
            self._labels += [label] * len(files)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        path = self.root / self.id(index)
        return {"image": path.read_bytes(), "label": self._labels[index], "id": self.id(index)}

    def id(self, index: int) -> str:
        return f"{self._split}/{self.classes[self._labels[index]]}/{self._names[index]}"


def open_source(config: DataConfig, split: str, num_classes: int | None) -> ImageFolder:
    """Opens `<path>/<split>`; classes are the sorted names of the folders, the same in both splits.

    Raises:
      DataError: a folder is missing or empty, or the splits' classes differ.
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
    return ImageFolder(root, split, train)


def find_images(folder: Path) -> list[Path]:
    """All images below a folder, sorted by path. Raises DataError if there is none."""
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names if name.lower().endswith(EXTENSIONS)]
    if not found:
        raise DataError(
            f"folder {folder} holds no image ({', '.join(EXTENSIONS)})"
            if folder.is_dir()
            else f"there is no folder {folder}"
        )
    return sorted(found)


def _class_names(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{folder.parent} has no folder {folder.name}/; data.path must hold train/CLASS/* and val/CLASS/*")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no class folders; images belong in {folder}/CLASS/")
    return tuple(names)


def _image_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    return sorted(name for name in names if name.lower().endswith(EXTENSIONS))
