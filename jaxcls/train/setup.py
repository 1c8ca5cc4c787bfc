"""From a config to everything that a run needs: data, network, optimizer, mesh."""

import dataclasses

import optax
from jax.sharding import Mesh

from jaxcls.config import Config
from jaxcls.data.pipeline import steps_per_epoch
from jaxcls.data.sources import Source, make_source
from jaxcls.errors import ConfigError
from jaxcls.models.registry import create_model
from jaxcls.models.resnet import ResNet, part_names
from jaxcls.precision import POLICIES, NoLossScale, make_loss_scale
from jaxcls.train import optim, steps
from jaxcls.train.mixup import block_size


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained, on what and with what."""

    config: Config  # with `model.num_classes` filled in from the data
    train_source: Source
    val_source: Source
    model: ResNet
    schedule: optax.Schedule
    optimizer: optax.GradientTransformationExtraArgs
    loss_scale: NoLossScale
    mesh: Mesh
    steps_per_epoch: int
    schedule_steps: int  # length of the whole schedule
    stop_step: int  # where this run ends: the schedule's end, or `train.max_steps`


def build(config: Config, mesh: Mesh) -> Task:
    """Opens the data and makes the network, optimizer and schedule for it.

    Raises:
      ConfigError: `model.num_classes` disagrees with the data, or the devices cannot share a batch evenly.
      DataError: the data cannot be used.
    """
    check_batch(config, mesh.size)
    sources = {split: make_source(config.data, split, config.model.num_classes) for split in ("train", "val")}
    if len(sources["train"]) < mesh.size:
        raise ConfigError(f"{mesh.size} devices cannot share {len(sources['train'])} training images; start fewer processes")
    config = _with_classes(config, len(sources["train"].classes))
    model = build_model(config, mesh.size)
    _check_parts(config, part_names(model.spec))
    per_epoch = steps_per_epoch(len(sources["train"]), config.train.batch_size)
    total = max(1, round(config.train.epochs * per_epoch))
    schedule = optim.make_schedule(
        config.schedule,
        peak_lr=config.optim.base_lr * config.train.batch_size / optim.BASE_BATCH,
        epochs=config.train.epochs,
        steps_per_epoch=per_epoch,
    )
    return Task(
        config=config,
        train_source=sources["train"],
        val_source=sources["val"],
        model=model,
        schedule=schedule,
        optimizer=optim.make_optimizer(config.optim, schedule),
        loss_scale=make_loss_scale(config.precision.policy, config.precision.loss_scale),
        mesh=mesh,
        steps_per_epoch=per_epoch,
        schedule_steps=total,
        stop_step=min(total, config.train.max_steps or total),
    )


def build_model(config: Config, devices: int = 1) -> ResNet:
    """The network of a config whose `model.num_classes` is known, for training on so many devices."""
    policy, model = POLICIES[config.precision.policy], config.model
    return create_model(
        model.name,
        num_classes=model.num_classes,
        conv_init=model.conv_init,
        zero_init_last_bn=model.zero_init_last_bn,
        se_width=model.se_width,
        bn_momentum=model.bn_momentum,
        bn_epsilon=model.bn_epsilon,
        bn_axis_name=None if model.bn_sync == "local" else steps.AXIS,
        bn_groups=_bn_groups(model.bn_group, devices) if model.bn_sync == "group" else None,
        remat=model.remat,
        frozen=config.optim.freeze,
        dtype=policy.compute_dtype,
        param_dtype=policy.param_dtype,
    )


def _bn_groups(size: int, devices: int) -> tuple[tuple[int, ...], ...]:
    """Neighbours on the mesh."""
    return tuple(tuple(range(first, first + size)) for first in range(0, devices, size))


def check_batch(config: Config, devices: int) -> None:
    """Raises ConfigError if the batch, its parts, or the groups of BN cannot be had on so many devices."""
    batch, parts = config.train.batch_size, config.train.grad_accum
    if batch % devices:
        near = max(batch // devices, 1) * devices
        raise ConfigError(f"train.batch_size={batch} cannot be split over {devices} devices; {near} could")
    if batch // devices % parts:
        raise ConfigError(
            f"train.grad_accum={parts} does not divide the {batch // devices} images that each of {devices} devices gets of "
            f"train.batch_size={batch}"
        )
    if config.model.bn_sync == "group" and devices % config.model.bn_group:
        raise ConfigError(f"model.bn_group={config.model.bn_group} does not divide {devices} devices")
    share, block = batch // devices // parts, block_size(batch)
    for name, alpha in (("mixup", config.train.mixup_alpha), ("CutMix", config.train.cutmix_alpha)):
        if alpha > 0 and share % block:
            raise ConfigError(
                f"{name} mixes blocks of {block} records, and {devices} devices get {share} each of "
                f"train.batch_size={batch}"
                + (f" in each of {parts} parts (train.grad_accum)" if parts > 1 else "")
                + f"; {devices * parts * block} would do"
            )


def _check_parts(config: Config, parts: tuple[str, ...]) -> None:
    """Parts that `optim.freeze` and `optim.group_lr` name must be there."""
    for key, named in (("freeze", config.optim.freeze), ("group_lr", optim.part_factors(config.optim.group_lr))):
        if unknown := [part for part in named if part not in parts]:
            raise ConfigError(f"optim.{key}: {config.model.name} has no part {unknown[0]!r}; it has {', '.join(parts)}")
    if set(config.optim.freeze) == set(parts):
        raise ConfigError("optim.freeze names every part of the network, which leaves nothing to train; leave head out")


def _with_classes(config: Config, found: int) -> Config:
    wanted = config.model.num_classes
    if wanted is not None and wanted != found:
        raise ConfigError(
            f"model.num_classes={wanted}, but the data has {found} classes; leave it unset, or make it {found}"
        )
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=found))
