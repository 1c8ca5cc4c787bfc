"""A tar file whose members are `train/CLASS/*` and `val/CLASS/*`, read in place as an image folder."""

import itertools
import tarfile
import threading
from pathlib import Path

import numpy as np

from jaxcls.data.folder_index import EXTENSIONS, is_image
from jaxcls.data.names import Names, pack
from jaxcls.data.sources import Record
from jaxcls.errors import DataError


class TarFolder:
    """The images of one split, in order of class and name, with the ids that an image folder gives them."""

    def __init__(self, path: Path, classes: tuple[str, ...], names: Names, places: np.ndarray):
        """`places` int64 `[N, 3]`: label, first byte and length of each image; `names` are their ids."""
        self.classes = classes
        self._path, self._names, self._places = path, names, places
        self._own = threading.local()  # a file handle for each thread

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        label, start, length = self._places[index].tolist()
        if not hasattr(self._own, "file"):
            self._own.file = open(self._path, "rb")  # noqa: SIM115 (open as long as its thread)
        self._own.file.seek(start)
        image = self._own.file.read(length)
        if len(image) < length:
            raise OSError(f"{self._path} ends early")
        return {"image": image, "label": label, "id": self.id(index)}

    def id(self, index: int) -> str:
        return self._names[index]


def open_tar(path: Path) -> dict[str, TarFolder]:
    """Both splits of a tar file, of which only the headers are read; what is not an image in a class is passed over.

    Raises:
      DataError: not a tar file, compressed, cut short, or its splits are not in order.
    """
    splits: dict[str, dict[str, list]] = {"train": {}, "val": {}}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # it would keep every header
                parts = member.name.removeprefix("./").split("/")
                if len(parts) != 3 or parts[0] not in splits or not is_image(parts[2]):
                    continue
                if member.islnk() or member.issym():
                    raise DataError(f"{path} holds {member.name} as a link; unpack it, and give the folder")
                if not member.isreg():
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path} ends early, in {member.name}; copy it again")
                if not parts[1].startswith("."):
                    place = (parts[2], member.offset_data, member.size)
                    splits[parts[0]].setdefault(parts[1], []).append(place)
            end = tar.offset
        _check_end(path, end)
    except tarfile.TarError as error:
        raise DataError(f"{path} is not a plain tar file ({error}); unpack it, and give the folder") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    for split, found in splits.items():
        if not found:
            raise DataError(f"{path} holds no {split}/CLASS/* ({', '.join(EXTENSIONS)})")
    alone = sorted(splits["train"].keys() ^ splits["val"].keys())
    if alone:
        raise DataError(f"the classes of {path} differ: {', '.join(alone[:5])} are in one split only ({len(alone)} in all)")
    return {split: _make(path, split, found) for split, found in splits.items()}


def _check_end(path: Path, end: int) -> None:
    """A tar file ends with blocks of zeros; where else headers end, one is damaged, or missing with all that followed."""
    with open(path, "rb") as file:
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
        while len(block) >= tarfile.BLOCKSIZE and not any(block):
            block = file.read(2**20)
            if not block:
                return
    raise DataError(f"{path} is damaged at byte {end}, or ends early there; copy it again, or unpack it and give the folder")


def _make(path: Path, split: str, found: dict[str, list]) -> TarFolder:
    classes = tuple(sorted(found))
    images = [sorted(found[name]) for name in classes]
    for name, members in zip(classes, images, strict=True):
        for one, next_one in itertools.pairwise(members):
            if one[0] == next_one[0]:
                raise DataError(f"{path} holds {split}/{name}/{one[0]} twice; unpack it, and give the folder")
    names = pack(
        [f"{split}/{name}/{member[0]}" for member in members] for name, members in zip(classes, images, strict=True)
    )
    places = [(label, *member[1:]) for label, members in enumerate(images) for member in members]
    return TarFolder(path, classes, names, np.array(places, np.int64))
