"""The configuration: every key, its meaning and its default, stated once.

Config files (`configs/*.py`) change what differs from these defaults; the command line overrides them
(`--config.train.batch_size=64`); `jaxcls.resolve` makes of both the frozen `Config` that the rest of the program reads.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from jaxcls.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    name: str = "resnet50"  # see jaxcls.list_models()
    num_classes: int | None = None  # unset: from the data
    conv_init: str = "fan_in"  # fan_in, fan_out: of the He-normal initialisation
    zero_init_last_bn: bool = False  # start each residual block as the identity
    se_width: int = 16  # units of a squeeze-and-excitation gate; 0: a sixteenth of the block's channels
    # local: each device normalises its own share of a batch; global: all of them together; group: bn_group of them
    bn_sync: str = "local"
    bn_group: int = 1  # devices that normalise together, with bn_sync=group
    bn_momentum: float = 0.1  # weight of a new batch in the running statistics (as in PyTorch)
    bn_epsilon: float = 1e-5
    remat: bool = False  # compute the blocks' insides again in the backward pass: less memory, more time


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str = "auto"  # auto, image_folder, array_record, tfds, parquet, digits, synthetic
    path: str | None = None  # the data's directory; for image_folder it holds train/CLASS/* and val/CLASS/*
    name: str | None = None  # tfds: NAME[/CONFIG][:VERSION], such as imagenette/full-size-v2; unset: imagenet2012
    image_size: int = 224  # pixels, of training and evaluation crops
    eval_resize: int | None = None  # pixels of the shorter side before the centre crop; unset: image_size + 32
    interpolation: str = "bilinear"  # bilinear, bicubic: antialiased; linear: not, as in DALI
    # crop_flip: random resized crop and flip; autoaugment, randaugment, trivialaugment: these, and then operations that the
    # policy draws; affine: turned, zoomed and shifted a little; none
    augment: str = "crop_flip"
    color_jitter: tuple[float, ...] = ()  # strengths of brightness, contrast, saturation, hue: 0.4,0.4,0.4,0.1; none: off
    random_erasing: float = 0.0  # probability that a record loses a box of 2 to 33% of its area
    workers: int = 0  # processes that decode; 0: threads of this process
    threads: int | None = None  # that decode, if there are no workers; unset: one a core, 16 at most
    prefetch: int = 2  # batches that are kept ready
    cache: bool = False  # keep images in memory, encoded, once they were read
    # Wait for a batch so long at most; 0: for ever. Network file systems come back within minutes, or not at all.
    timeout_seconds: float = 600.0
    on_error: str = "replace"  # bad images: replace (by the next, in training only), skip (in evaluation), fail


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    batch_size: int = 256  # images of an optimizer step, over all devices
    grad_accum: int = 1  # parts that each device takes its share of a batch in, one after another, to need less memory
    epochs: float = 90.0
    max_steps: int | None = None  # stop early, without a change of the schedule
    label_smoothing: float = 0.1
    mixup_alpha: float = 0.0  # 0: no mixup
    cutmix_alpha: float = 0.0  # 0: no CutMix; with mixup too: one of them a batch, each half of the time
    ema_decay: float = 0.0  # of the running average of the weights, which is evaluated too; 0: none
    most_nonfinite: int = 10  # steps in a row with a loss or gradients of inf or NaN, all left out, after which a run ends
    early_stop_epochs: int = 0  # stop after so many epochs without a better top-1; 0: never


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    name: str = "sgd"
    base_lr: float = 0.256  # for 256 images; scaled with the batch size
    momentum: float = 0.875
    nesterov: bool = False
    weight_decay: float | None = None  # unset: 1/32768 from batch 2048 up, else 1/16384
    decay_bn: str = "none"  # none; reference: the shortcuts' BN is decayed, as there; all
    freeze: tuple[str, ...] = ()  # parts that stay as they are, BN statistics too: stem, stage1 to stage4, head
    group_lr: tuple[str, ...] = ()  # factors on the learning rate of parts: head=10,stage1=0.1


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    name: str = "cosine"  # cosine, step, linear
    warmup_epochs: float | None = None  # unset: 8 (at most half of all) from batch 512 up, else 0; digits: a fifth of all
    boundaries: tuple[float, ...] = (30.0, 60.0, 80.0)  # epochs, for step
    end_lr: float = 0.0
    every: str = "epoch"  # epoch: constant within one, as in the reference; step


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    policy: str = "fp32"  # fp32, bf16, fp16, fp64 (for tests)
    loss_scale: float = 0.0  # of fp16, constant; 0: dynamic, from 128


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_epochs: float = 1.0  # 0: not by epochs; a finished or interrupted run saves in any case
    every_steps: int = 0  # 0: not by steps
    every_minutes: float = 0.0  # 0: not by the clock
    keep: int = 3  # newest ones, besides the best
    init_from: str | None = None  # weights to start from: a run's best, a directory of `jaxcls convert`, a PyTorch file


@dataclasses.dataclass(frozen=True)
class LogConfig:
    every_steps: int = 1  # lines in metrics.jsonl
    tensorboard: bool | None = None  # event files of the same metrics; unset: if tensorboardX is installed


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    precision: PrecisionConfig = PrecisionConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()


# How a run is carried out, not what it computes: these may differ between a run and its resumption.
OPERATIONAL = (
    *("data.workers", "data.threads", "data.prefetch", "data.cache", "data.timeout_seconds", "data.on_error"),
    *("train.max_steps", "train.most_nonfinite", "log.every_steps", "log.tensorboard"),
    *("checkpoint.every_epochs", "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep"),
)

# What suits scikit-learn's 1,797 digits: 8x8 pixels, enlarged.
DIGITS_PRESET = {
    "data.source": "digits",
    "data.image_size": 32,
    "data.augment": "affine",
    "model.zero_init_last_bn": True,
    "train.batch_size": 32,
    "train.epochs": 15.0,
    "train.mixup_alpha": 0.0,
    "schedule.name": "cosine",
    "schedule.warmup_epochs": None,
    "schedule.every": "step",
    "checkpoint.every_epochs": 5.0,  # an epoch takes seconds, and a save most of one
}


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict, for config files to change; keys without a value are typed placeholders."""
    defaults = to_dict(Config())
    for key, kind in keys().items():
        section, _, name = key.rpartition(".")
        group = defaults[section] if section else defaults
        if group[name] is None:
            group[name] = config_dict.placeholder(_plain(kind))
        elif isinstance(group[name], list):
            group[name] = tuple(group[name])
    return ml_collections.ConfigDict(defaults)


def set_length(config: ml_collections.ConfigDict, length: str) -> None:
    """Sets one of the reference's lengths of training, in place: `50ep`, `90ep`, or `250ep`, which has mixup 0.2.

    Raises:
      ConfigError: another length.
    """
    epochs = {"50ep": 50.0, "90ep": 90.0, "250ep": 250.0}
    if length not in epochs:
        raise ConfigError(f"there is no recipe :{length}; there are {', '.join(f':{name}' for name in epochs)}")
    config.train.epochs = epochs[length]
    config.train.mixup_alpha = 0.2 if length == "250ep" else 0.0


def apply_digits_preset(config: ml_collections.ConfigDict, keep: Collection[str] = ()) -> None:
    """Fills in what suits the embedded digits, in place, except the keys in `keep`."""
    for key in DIGITS_PRESET.keys() - set(keep):
        set_key(config, key, DIGITS_PRESET[key])


def set_key(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
    """Sets `section.name` of a ConfigDict in place, whatever type it had."""
    section, _, name = key.rpartition(".")
    with config.ignore_type():
        (config[section] if section else config)[name] = value


def from_config_dict(config: Mapping[str, Any]) -> Config:
    """Converts a (nested) mapping to a `Config`, each value to its key's type.

    Raises:
      ConfigError: an unknown key, naming the nearest one, or a value of the wrong type.
    """
    if not isinstance(config, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f"a config must be a ConfigDict, not {type(config).__name__}")
    given = flatten(config)
    kinds = keys()
    for key in given:
        if key not in kinds:
            raise unknown_key(key)
    sections: dict[str, dict] = {}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = convert(key, value)
    top = sections.pop("", {})
    fields = {field.name: field.type for field in dataclasses.fields(Config)}
    return Config(**top, **{name: fields[name](**values) for name, values in sections.items()})


def keys() -> dict[str, Any]:
    """Every key, as `section.name`, with its type."""
    result = {}
    for field in dataclasses.fields(Config):
        if dataclasses.is_dataclass(field.type):
            result |= {f"{field.name}.{inner.name}": inner.type for inner in dataclasses.fields(field.type)}
        else:
            result[field.name] = field.type
    return result


def unknown_key(key: str) -> ConfigError:
    """The error for a key that does not exist."""
    near = difflib.get_close_matches(key, keys(), 1, 0.5)
    # The right name in the wrong section is nearer than what is spelt alike.
    near = [known for known in keys() if known.rpartition(".")[2] == key.rpartition(".")[2]][:1] or near
    return ConfigError(f"there is no config key {key}" + (f"; did you mean {near[0]}?" if near else ""))


def convert(key: str, value: Any) -> Any:
    """`value` (text from the command line, or a Python value) as `key`'s type.

    Raises:
      ConfigError: it cannot be; the message names key, value and type.
    """
    kind = keys()[key]
    if value is None or (isinstance(value, str) and value.lower() == "none" and kind is not str):
        if _plain(kind) is kind:
            raise ConfigError(f"{key} cannot be unset; it is a {_name(kind)}")
        return None
    try:
        return _convert(_plain(kind), value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{key}={value} is not a valid value; a {_name(kind)} is expected") from None


def _convert(kind: Any, value: Any) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return words[value.lower()] if isinstance(value, str) and value.lower() in words else _exactly(bool, value)
    if kind is int:
        number = float(value) if isinstance(value, str) and not value.lstrip("+-").isdigit() else value
        if isinstance(number, bool) or int(number) != float(number):
            raise ValueError
        return int(number)
    if kind is float:
        number = math.nan if isinstance(value, bool) else float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind is str:
        return _exactly(str, value)
    (item, _) = typing.get_args(kind)  # tuple[item, ...]
    if isinstance(value, str):
        value = [part for part in value.strip("()[] ").replace(" ", "").split(",") if part]
    return tuple(_convert(item, part) for part in (value if isinstance(value, list | tuple) else [value]))


def _exactly(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _plain(kind: Any) -> Any:
    """`X` of `X | None`."""
    return typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind


def _name(kind: Any) -> str:
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    lists = {tuple[float, ...]: "list of numbers such as 30,60,80"}
    return names.get(_plain(kind)) or lists.get(_plain(kind), "list such as stem,stage1")


def to_dict(config: Config) -> dict[str, Any]:
    """The config as nested dicts of JSON's types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train": {"epochs": 1}}` as `{"train.epochs": 1}`."""
    flat = {}
    for name, value in config.items():
        nested = isinstance(value, Mapping | ml_collections.ConfigDict)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def digest(config: Config) -> str:
    """Eight hex digits that name what the config computes: what differs from the defaults, operational keys apart."""
    defaults = flatten(to_dict(Config()))  # left out, so that a key which is new in jaxcls renames no run
    what = {
        key: value for key, value in flatten(to_dict(config)).items() if key not in OPERATIONAL and value != defaults[key]
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def first_difference(saved: Mapping[str, Any], config: Config) -> str | None:
    """The first key, operational ones apart, in which a saved config differs, with both values."""
    # A key that was not there yet when the run began had its default.
    before, now = flatten(to_dict(Config())) | flatten(saved), flatten(to_dict(config))
    for key in [*now, *before]:
        if key not in OPERATIONAL and before.get(key) != now.get(key):
            return f"{key} is {before.get(key)} there and {now.get(key)} here"
    return None
