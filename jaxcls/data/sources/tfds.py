"""Data sets that TensorFlow Datasets prepared as array_record files. Reading them needs no TensorFlow; preparing does."""

import errno
import shlex
from pathlib import Path

from jaxcls.config import DataConfig
from jaxcls.data.sources import Record
from jaxcls.errors import ConfigError, DataError

PREFERRED = {"train": ("train",), "val": ("validation", "test")}
INFO = "dataset_info.json"


class Tfds:
    """One split; images stay encoded. TFDS opens its files when they are needed, and shares them between threads."""

    def __init__(self, name: str, classes: tuple[str, ...], records):
        """`records`: of `tfds.data_source`, each with `image` (bytes) and `label`."""
        self.classes = classes
        self._name, self._records = name, records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Raises OSError if the record is damaged."""
        try:
            record = self._records[index]
        except (RuntimeError, ValueError) as error:  # array_record's and protobuf's, for what they cannot read
            raise OSError(errno.EIO, f"{self.id(index)}: {str(error) or 'it cannot be read'}") from error
        return {"image": record["image"], "label": int(record["label"]), "id": self.id(index)}

    def id(self, index: int) -> str:
        return f"{self._name}/{index}"


def open_source(config: DataConfig, split: str, num_classes: int | None) -> Tfds:
    """Opens a split of `data.name`: `train`, or `validation` or else `test`.

    It is looked for in `data.path`, by default where TFDS keeps its data (`TFDS_DATA_DIR` or `~/tensorflow_datasets`).

    Raises:
      ConfigError: `data.name` is none.
      DataError: it is not prepared, or not as it must be; the message has the command.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    root = Path(config.path or tfds.core.constants.get_default_data_dir()).expanduser()
    directory = _find(root, config)
    try:
        builder = tfds.builder_from_directory(directory)
        features, splits, file_format = builder.info.features, builder.info.splits, builder.info.file_format
    except (ParseError, RuntimeError, ValueError, KeyError, OSError) as error:  # TFDS's, for what it cannot parse
        raise DataError(
            f"{directory} is damaged ({str(error).splitlines()[0]}); prepare it again: {_command(config)}"
        ) from error
    if file_format is None or file_format.value != "array_record":
        kind = file_format.value if file_format else "another"
        raise DataError(f"{directory} is in {kind} format, which needs TensorFlow; prepare it again: {_command(config)}")
    classes = _classes(tfds, features, directory)
    name = next((name for name in PREFERRED[split] if name in splits), None)
    if name is None:
        raise DataError(f"{directory} has no split {' or '.join(PREFERRED[split])}, only {', '.join(splits)}")
    for path in map(Path, splits[name].filepaths):
        if not path.is_file():
            raise DataError(f"{path} is missing; copy it again, or prepare it again: {_command(config)}")
    encoded = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    decoders = {key: tfds.decode.SkipDecoding() for key in encoded}
    records = builder.as_data_source(split=name, decoders=decoders)
    if not len(records):
        raise DataError(f"{directory} has no record in split {name}")
    return Tfds(f"{config.name.partition(':')[0]}/{name}", classes, records)


def _find(root: Path, config: DataConfig) -> Path:
    """The directory of `NAME[/CONFIG][:VERSION]`, of its newest version if none is named."""
    name, _, version = config.name.partition(":")
    parts = name.split("/")
    if len(parts) > 2 or not all(part and part.strip(".") for part in parts) or "/" in version:
        raise ConfigError(f"data.name={config.name} is not NAME[/CONFIG][:VERSION], such as imagenette/full-size-v2:1.0.0")
    base = root.joinpath(*parts)
    found = [
        path.parent for path in base.glob(f"*/{INFO}") if _version(path.parent.name) and version in ("", path.parent.name)
    ]
    if found:
        return max(found, key=lambda path: _version(path.name))
    inner = sorted({path.parent.parent.name for path in base.glob(f"*/*/{INFO}")})
    if inner:
        raise DataError(f"{base} holds the configs {', '.join(inner)}; name one: data.name={name}/{inner[0]}")
    raise DataError(
        f"{config.name} is not prepared in {root}; prepare it (which needs TensorFlow, `pip install 'jaxcls[prepare]'`; "
        f"training does not): {_command(config)}"
    )


def _version(name: str) -> tuple[int, ...]:
    """`1.10.0` as numbers; empty for what is no version."""
    return tuple(map(int, name.split("."))) if all(part.isdigit() for part in name.split(".")) else ()


def _command(config: DataConfig) -> str:
    where = f" --data_dir={shlex.quote(config.path)}" if config.path else ""
    return f"tfds build {shlex.quote(config.name)} --file_format=array_record{where}"


def _classes(tfds, features, directory: Path) -> tuple[str, ...]:
    found = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(isinstance(found.get(name), kind) for name, kind in wanted.items()):
        has = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in sorted(found.items()))
        raise DataError(f"{directory} has the features {has}; image (Image) and label (ClassLabel) are expected")
    return tuple(features["label"].names)
