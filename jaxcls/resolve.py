"""From a config file and overrides to the config of a run: finds the data, fills in what is unset, checks everything."""

import dataclasses
import math
from collections.abc import Collection

import ml_collections

from jaxcls.config import Config, apply_digits_preset, flatten, from_config_dict, to_dict
from jaxcls.errors import ConfigError
from jaxcls.report import tensorboard

CHOICES = {
    "model.conv_init": ("fan_in", "fan_out"),
    "model.bn_sync": ("local", "global", "group"),
    "data.source": ("auto", "image_folder", "array_record", "tfds", "parquet", "digits", "synthetic"),
    "data.interpolation": ("bilinear", "bicubic", "linear"),
    "data.augment": ("crop_flip", "autoaugment", "randaugment", "trivialaugment", "affine", "none"),
    "data.on_error": ("replace", "skip", "fail"),
    "optim.name": ("sgd",),
    "optim.decay_bn": ("none", "reference", "all"),
    "schedule.name": ("cosine", "step", "linear"),
    "schedule.every": ("epoch", "step"),
    "precision.policy": ("fp32", "bf16", "fp16", "fp64"),
}

# (least, most) of each number that has bounds; both are allowed.
BOUNDS = {
    "seed": (0, 2**32 - 1),
    "model.num_classes": (1, math.inf),
    "model.se_width": (0, math.inf),
    "model.bn_group": (1, math.inf),
    "model.bn_momentum": (0, 1),
    "model.bn_epsilon": (1e-12, math.inf),
    "data.image_size": (32, 4096),
    "data.eval_resize": (1, 8192),
    "data.random_erasing": (0, 1),
    "data.workers": (0, 1024),
    "data.threads": (1, 1024),
    "data.prefetch": (1, 1024),
    "data.timeout_seconds": (0, 1e6),
    "train.batch_size": (1, 2**24),
    "train.grad_accum": (1, math.inf),
    "train.ema_decay": (0, 0.999999),
    "train.most_nonfinite": (1, math.inf),
    "precision.loss_scale": (0, 2.0**24),
    "train.epochs": (1e-6, 1e6),
    "train.max_steps": (1, math.inf),
    "train.label_smoothing": (0, 0.999),
    "train.mixup_alpha": (0, 1000),
    "train.cutmix_alpha": (0, 1000),
    "train.early_stop_epochs": (0, math.inf),
    "optim.base_lr": (0, math.inf),
    "optim.momentum": (0, 1),
    "optim.weight_decay": (0, math.inf),
    "schedule.warmup_epochs": (0, math.inf),
    "schedule.end_lr": (0, math.inf),
    "checkpoint.every_epochs": (0, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "checkpoint.every_minutes": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "log.every_steps": (1, math.inf),
}


def resolve(
    config: ml_collections.ConfigDict,
    overridden: Collection[str] = (),
    *,
    imagenet_dir: str | None = None,
    process_count: int = 1,
) -> tuple[Config, list[str]]:
    """Makes the final config: finds the data, fills in what depends on other keys, checks everything.

    With `data.source=auto` the data is the image folder `data.path`, or else `imagenet_dir`; with neither it is the
    embedded digits, and every key that the command line did not set takes the digits' preset.

    Args:
      config: from a config file, overrides applied.
      overridden: keys that the command line set.
      imagenet_dir: value of the environment's IMAGENET_DIR, if it is set.
      process_count: of the run; several never fall back to the digits.

    Returns:
      the config, complete but for `model.num_classes` (the data may decide it), and notes for the user.

    Raises:
      ConfigError: a key or value that cannot be.
    """
    config = config.copy_and_resolve_references()
    notes = []
    data = from_config_dict(config).data
    if "data.path" in overridden and not data.path:
        raise ConfigError("data.path is empty; give --config.data.path=DIR, or leave it out")
    if data.source == "digits" and "data.source" in overridden:
        apply_digits_preset(config, overridden)
    elif data.source == "auto" and (data.path or imagenet_dir):
        config.data.update(source="image_folder", path=data.path or imagenet_dir)
    elif data.source == "auto":
        if process_count > 1:
            raise ConfigError("no data is configured for a run of several processes; set --config.data.path=DIR")
        apply_digits_preset(config, overridden)
        config.data.source = "digits"
        notes.append(
            f"No data is configured: training {config.model.name} on scikit-learn's handwritten digits. For ImageNet, "
            "give --config.data.path=DIR or set IMAGENET_DIR, with DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG."
        )
    elif data.source == "image_folder" and not data.path:
        if not imagenet_dir:
            raise ConfigError("data.source=image_folder needs data.path (or the environment's IMAGENET_DIR)")
        config.data.path = imagenet_dir
    result = _fill_in(from_config_dict(config))
    validate(result)
    return result, notes


def _fill_in(config: Config) -> Config:
    batch, data, optim, schedule = config.train.batch_size, config.data, config.optim, config.schedule
    if data.eval_resize is None:
        # The digits fill their picture: nothing to crop away.
        data = dataclasses.replace(data, eval_resize=data.image_size + (0 if data.source == "digits" else 32))
    if data.source == "tfds" and not data.name:
        data = dataclasses.replace(data, name="imagenet2012")
    if optim.weight_decay is None:
        optim = dataclasses.replace(optim, weight_decay=1 / 32768 if batch >= 2048 else 1 / 16384)
    if schedule.warmup_epochs is None:
        epochs = config.train.epochs
        large = min(8.0, epochs / 2) if batch >= 512 else 0.0
        schedule = dataclasses.replace(schedule, warmup_epochs=epochs / 5 if data.source == "digits" else large)
    return dataclasses.replace(config, data=data, optim=optim, schedule=schedule)


def validate(config: Config) -> None:
    """Checks every value. Raises ConfigError naming the key and what would be right."""
    flat = flatten(to_dict(config))
    for key, allowed in CHOICES.items():
        if flat[key] not in allowed:
            raise ConfigError(f"{key}={flat[key]!r} is not among {', '.join(allowed)}")
    for key, (least, most) in BOUNDS.items():
        value = flat[key]
        if value is not None and not least <= value <= most:
            allowed = f"at least {least}" if most == math.inf else f"between {least} and {most}"
            raise ConfigError(f"{key}={value} must be {allowed}")
    _validate_data_place(config)
    if config.data.eval_resize and config.data.eval_resize < config.data.image_size:
        raise ConfigError(
            f"data.eval_resize={config.data.eval_resize} must be at least data.image_size={config.data.image_size}"
        )
    if config.precision.loss_scale and config.precision.policy != "fp16":
        raise ConfigError(
            f"precision.loss_scale={config.precision.loss_scale:g} is for precision.policy=fp16, not for "
            f"{config.precision.policy}; leave it out"
        )
    if config.model.bn_group > 1 and config.model.bn_sync != "group":
        raise ConfigError(f"model.bn_group={config.model.bn_group} needs model.bn_sync=group, not {config.model.bn_sync}")
    if config.data.cache and config.data.workers:
        raise ConfigError(
            f"data.cache keeps images in this process, where {config.data.workers} data.workers would not find them; "
            "set data.workers=0, for threads"
        )
    _validate_color_jitter(config.data.color_jitter)
    if config.log.tensorboard and not tensorboard.is_installed():
        raise ConfigError("log.tensorboard=true needs tensorboardX: pip install 'jaxcls[tensorboard]', or leave it out")
    for name, alpha in (("mixup", config.train.mixup_alpha), ("CutMix", config.train.cutmix_alpha)):
        if alpha > 0 and config.train.batch_size % 2:
            raise ConfigError(f"{name} needs an even train.batch_size, not {config.train.batch_size}")
    if list(config.schedule.boundaries) != sorted(set(config.schedule.boundaries)):
        raise ConfigError(f"schedule.boundaries={config.schedule.boundaries} must increase")
    if (config.schedule.warmup_epochs or 0) > config.train.epochs:
        raise ConfigError(
            f"schedule.warmup_epochs={config.schedule.warmup_epochs:g} is longer than train.epochs={config.train.epochs:g}"
        )


def _validate_data_place(config: Config) -> None:
    source, path, name = config.data.source, config.data.path, config.data.name
    if path and source in ("digits", "synthetic"):
        raise ConfigError(f"data.source={source} takes no data.path ({path}); leave one of them out")
    if not path and source in ("array_record", "parquet"):
        raise ConfigError(f"data.source={source} needs data.path, the directory of its files")
    if name and source != "tfds":
        raise ConfigError(f"data.name={name} is for data.source=tfds, not for {source}; set data.name=none")


def _validate_color_jitter(strengths: tuple[float, ...]) -> None:
    given = ",".join(f"{strength:g}" for strength in strengths)
    if len(strengths) not in (0, 4):
        raise ConfigError(
            f"data.color_jitter={given} must be four numbers (brightness, contrast, saturation, hue), or empty for none"
        )
    if strengths and not (min(strengths) >= 0 and max(strengths) <= 100 and strengths[3] <= 0.5):
        raise ConfigError(
            f"data.color_jitter={given} must be between 0 and 100, and its last number, the hue's, at most 0.5 turns"
        )
