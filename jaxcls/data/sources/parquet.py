"""Image data sets of Hugging Face as they are downloaded: Parquet files with a column `image` and a column `label`.

An image is read with its row group, the smallest piece that can be; the last few row groups are kept for each thread.
In shuffled order nearly every image costs a row group (of Hugging Face: 100 images or more), so that training on many
images is faster from what `scripts/prepare_array_record` makes.
"""

import collections
import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.names import check_labels
from jaxcls.data.sources import Record
from jaxcls.errors import DataError

PREFIXES = {"train": ("train",), "val": ("validation", "val", "test")}
KEPT = 2  # row groups for each thread
MOST_NUMBERED = 100_000  # classes that only numbers tell of, unless there are more images; more is a wrong label


class Parquet:
    """One split. Files are mapped into memory when they are needed, by each thread for itself."""

    def __init__(self, files: list[Path], classes: tuple[str, ...], labels: np.ndarray):
        """`labels` int32 `[N]`, of all rows of the files in order."""
        self.classes = classes
        self._files, self._labels = files, labels
        self._open()

    def _open(self) -> None:
        import pyarrow.parquet

        self._footers = [pyarrow.parquet.read_metadata(file) for file in self._files]
        groups = [(file, group) for file, footer in enumerate(self._footers) for group in range(footer.num_row_groups)]
        rows = [self._footers[file].row_group(group).num_rows for file, group in groups]
        self._groups, self._starts = groups, np.cumsum([0, *rows])
        self._file_starts = np.cumsum([0, *(footer.num_rows for footer in self._footers)])
        self._own = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {"classes": self.classes, "files": self._files, "labels": self._labels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["files"], state["classes"], state["labels"])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        """Raises OSError if the row group is damaged, or the row holds no image."""
        group = self._group_of(index)
        image = self._images(group)[index - int(self._starts[group])].as_py()
        if image is None:
            raise OSError(f"{self.id(index)} holds no image bytes")
        return {"image": image, "label": int(self._labels[index]), "id": self.id(index)}

    def id(self, index: int) -> str:
        file, _ = self._groups[self._group_of(index)]
        return f"{self._files[file].name}/{index - int(self._file_starts[file])}"

    def _group_of(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no record {index} among {len(self)}")
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _images(self, group: int):
        """The encoded images of a row group, an Arrow array of binary values."""
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.parquet

        kept = self._own.__dict__.setdefault("kept", collections.OrderedDict())
        if group not in kept:
            file, number = self._groups[group]
            try:
                with pyarrow.parquet.ParquetFile(self._files[file], metadata=self._footers[file], memory_map=True) as opened:
                    column = opened.read_row_group(number, columns=["image.bytes"], use_threads=False).column("image")
            except (pa.ArrowException, OSError) as error:
                reason = str(error).splitlines()[0]
                raise OSError(f"row group {number} of {self._files[file].name} cannot be read: {reason}") from error
            kept[group] = pyarrow.compute.struct_field(column, "bytes")
            while len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(group)
        return kept[group]


def open_source(config: DataConfig, split: str, num_classes: int | None) -> Parquet:
    """Opens a split: `train-*.parquet`, or `validation-*`, `val-*`, `test-*`, in the directory or its `data/`.

    Classes are those that the files name (Hugging Face's `ClassLabel`); else the labels that occur, sorted if they are
    text. Labels are read at once; images are not.

    Raises:
      DataError: files are missing, damaged or of another form, the splits' classes differ, or a label has no class.
    """
    directory = Path(config.path)
    if not directory.is_dir():
        raise DataError(f"there is no data directory {directory}; data.path must hold train-*.parquet")
    files = {name: _find_files(directory, name) for name in PREFIXES}
    named = {name: _class_names(paths) for name, paths in files.items()}
    labels = {name: _read_labels(paths) for name, paths in files.items()}
    text = {name: values.dtype.kind == "U" for name, values in labels.items()}
    if text["train"] != text["val"] or named["train"] != named["val"]:
        raise DataError(f"the classes of {directory} differ between {files['train'][0].name} and {files['val'][0].name}")
    if text["train"]:
        classes, labels = _number(directory, labels)
    else:
        most = max(int(values.max(initial=-1)) for values in labels.values())
        if not named["train"] and most >= max(MOST_NUMBERED, sum(map(len, labels.values()))):
            raise DataError(
                f"label {most} in {directory} is too large: its files name no classes, so there would be {most + 1}"
            )
        classes = named["train"] or tuple(map(str, range(most + 1)))
    for name, values in labels.items():
        check_labels(values, len(classes), f"the {name} files ({files[name][0].name} ...)")
    if not len(labels[split]):
        raise DataError(f"{files[split][0]} ... hold no row")
    return Parquet(files[split], classes, labels[split].astype(np.int32))


def _find_files(directory: Path, split: str) -> list[Path]:
    for prefix in PREFIXES[split]:
        for folder in (directory, directory / "data"):
            if found := sorted(folder.glob(f"{prefix}-*.parquet")):
                _check_count(found)
                return found
    expected = " or ".join(f"{prefix}-*.parquet" for prefix in PREFIXES[split])
    raise DataError(f"{directory} holds no {expected}, and neither does its data/")


def _check_count(files: list[Path]) -> None:
    """Of `train-00000-of-00003.parquet` there must be three."""
    numbered = [re.search(r"-(\d+)-of-(\d+)(?:-|$)", file.stem) for file in files]
    if not any(numbered):
        return
    if len({found and found[2] for found in numbered}) > 1 or len({found[1] for found in numbered}) < len(files):
        raise DataError(
            f"{files[0].parent} holds files of more than one set: {files[0].name}, ..., {files[-1].name}; keep one of them"
        )
    if (count := int(numbered[0][2])) != len(files):
        raise DataError(f"{files[-1].parent} holds {len(files)} of {count} files {files[-1].name}; download the others")


def _class_names(files: list[Path]) -> tuple[str, ...] | None:
    """The names in Hugging Face's part of the schema, None without; raises DataError if a file has other columns."""
    import pyarrow as pa
    import pyarrow.parquet

    found = set()
    for file in files:
        try:
            schema = pyarrow.parquet.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged or no Parquet file: {str(error).splitlines()[0]}") from error
        image = schema.field("image").type if schema.names.count("image") == 1 else None
        if (
            image is None
            or not pa.types.is_struct(image)
            or image.get_field_index("bytes") < 0
            or not (pa.types.is_binary(kind := image.field("bytes").type) or pa.types.is_large_binary(kind))
            or schema.names.count("label") != 1
        ):
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise DataError(f"{file} has columns {columns}; one image (struct with binary bytes) and one label are expected")
        try:
            features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            found.add(tuple(features.get("label", {}).get("names") or ()))
        except (ValueError, AttributeError, TypeError) as error:
            raise DataError(f"{file} has a damaged entry `huggingface` in its schema ({error})") from error
    if len(found) > 1:
        raise DataError(f"the files of {files[0].parent} ({files[0].name} ...) name different classes")
    return found.pop() or None


def _read_labels(files: list[Path]) -> np.ndarray:
    """int64 or text `[N]`."""
    import pyarrow as pa
    import pyarrow.parquet

    parts = []
    for file in files:
        try:
            column = pyarrow.parquet.read_table(file, columns=["label"], use_threads=False, memory_map=True).column("label")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
        whole = pa.types.is_integer(column.type)
        if column.null_count or not (whole or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            what = f"{column.null_count} rows without a label" if column.null_count else f"labels of type {column.type}"
            raise DataError(f"{file} has {what}; whole numbers or text are expected")
        parts.append(column.to_numpy().astype(np.int64 if whole else np.str_))
    if len({part.dtype.kind for part in parts}) > 1:
        raise DataError(f"the files of {files[0].parent} have labels both as numbers and as text")
    return np.concatenate(parts)


def _number(directory: Path, labels: dict[str, np.ndarray]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Text labels as numbers of the sorted classes."""
    classes, val = (np.unique(labels[name]) for name in ("train", "val"))
    if alone := sorted({*classes.tolist()} ^ {*val.tolist()}):
        raise DataError(
            f"the classes of {directory} differ: {', '.join(alone[:5])} are in one split only ({len(alone)} in all)"
        )
    return tuple(classes.tolist()), {name: np.searchsorted(classes, values) for name, values in labels.items()}
