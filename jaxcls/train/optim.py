"""The optimizer: learning rate schedules, the weight decay mask, and the optax chain of the recipe."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxcls.config import OptimConfig, ScheduleConfig
from jaxcls.errors import ConfigError

BASE_BATCH = 256  # images that `optim.base_lr` is meant for


def make_schedule(
    config: ScheduleConfig, *, peak_lr: float, epochs: float, steps_per_epoch: int
) -> Callable[[jax.Array | int], jax.Array]:
    """Learning rate as a function of the step (0 for the first).

    With position `e` in epochs, warm-up `w` and length `E`:
    warm-up: linear to the peak, which its last unit reaches; then, with `t = (e - w) / (E - w)`,
    `cosine`: `end + (peak - end) * (1 + cos(pi * t)) / 2`; `linear`: `peak + (end - peak) * t`;
    `step`: peak times 0.1 for each boundary that has been passed (`e >= boundary`).

    Args:
      config: name, warm-up, boundaries and end of the schedule. With `every="epoch"`, as in the reference, `e` is the
        number of whole epochs done and a warm-up epoch uses `(e + 1) / w`; with `every="step"` the unit is one step.
      peak_lr: for this global batch.
      epochs: length of the training.
      steps_per_epoch: optimizer steps in an epoch.
    """
    unit = 1.0 if config.every == "epoch" else 1.0 / steps_per_epoch
    warmup = config.warmup_epochs

    def schedule(step):
        step = jnp.asarray(step)
        # An integer number of units before the division, so that epochs do not drift by rounding.
        position = step // steps_per_epoch if config.every == "epoch" else step / steps_per_epoch
        rising = peak_lr * (position + unit) / max(warmup, unit)
        t = jnp.clip((position - warmup) / max(epochs - warmup, unit), 0, 1)
        if config.name == "cosine":
            falling = config.end_lr + (peak_lr - config.end_lr) * 0.5 * (1 + jnp.cos(jnp.pi * t))
        elif config.name == "linear":
            falling = peak_lr + (config.end_lr - peak_lr) * t
        else:
            passed = sum((position >= boundary).astype(jnp.int32) for boundary in config.boundaries)
            falling = jnp.maximum(peak_lr * 0.1**passed, config.end_lr)
        return jnp.where(position < warmup, jnp.minimum(rising, peak_lr), falling)

    return schedule


def decay_mask(params: dict, decay_bn: str, frozen: tuple[str, ...] = ()) -> dict:
    """Which parameters weight decay applies to, as a tree of booleans like `params`.

    Args:
      params: the network's parameter tree.
      decay_bn: `none` exempts every BN scale and bias; `reference` exempts those whose name in the reference holds
        "bn", so that the shortcuts' BN (`downsample.1` there) is decayed; `all` exempts nothing.
      frozen: parts (topmost names) that are exempt in any case.
    """

    def decayed(path, _):
        keys = [entry.key for entry in path]
        if keys[0] in frozen:
            return False
        if decay_bn == "all" or not keys[-2].startswith("bn"):
            return True
        return decay_bn == "reference" and "shortcut" in keys

    return jax.tree_util.tree_map_with_path(decayed, params)


def make_optimizer(config: OptimConfig, schedule: Callable) -> optax.GradientTransformationExtraArgs:
    """SGD with momentum as in PyTorch: decay joins the gradient before the momentum, the learning rate comes last.

    `buffer = momentum * buffer + gradient + decay * p`, then `p -= lr * buffer` (Nesterov:
    `p -= lr * (gradient + decay * p + momentum * buffer)`). `group_lr` multiplies the learning rate of whole parts.
    Frozen parts are not decayed; with gradients of zero, as the training step gives them, they stay as they are.
    With `update(..., finite=False)` the buffers stay as they are, and the updates are not to be applied.

    Raises:
      ConfigError: `group_lr` is not a list of PART=FACTOR.
    """
    mask = functools.partial(decay_mask, decay_bn=config.decay_bn, frozen=config.freeze)
    factors = part_factors(config.group_lr)

    def scale_parts(updates, _):
        return {part: jax.tree.map(lambda u: factors.get(part, 1.0) * u, tree) for part, tree in updates.items()}  # noqa: B023

    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=mask),
        _momentum(config),
        *([optax.stateless(scale_parts)] if factors else []),
        optax.scale_by_learning_rate(schedule),
    )


def _momentum(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.trace` that can leave its buffers as they are.

    The updates are the buffers after that choice: parameters can then be computed from the new buffers, and both take their
    old memory. From the old buffers, XLA copies all of them first.
    """
    trace = optax.trace(decay=config.momentum, nesterov=config.nesterov)

    def update(updates, state, params=None, *, finite=True):
        updates, new = trace.update(updates, state, params)
        new = optax.tree.where(finite, new, state)
        return updates if config.nesterov else new.trace, new

    return optax.GradientTransformationExtraArgs(trace.init, update)


def part_factors(group_lr: tuple[str, ...]) -> dict[str, float]:
    """`("head=10",)` as `{"head": 10.0}`. Raises ConfigError if it is anything else."""
    factors = {}
    for text in group_lr:
        part, _, factor = text.partition("=")
        try:
            factors[part] = float(factor)
        except ValueError:
            factors[part] = -1.0
        if not 0 <= factors[part] < math.inf:
            raise ConfigError(f"optim.group_lr={text} is not PART=FACTOR, such as head=10, with a factor of at least 0")
    return factors
