"""Precision of a run: which numbers are kept, which ones the convolutions compute with, and the scale of the loss.

float16 has no numbers below 6e-8, and gradients of activations are that small: the loss is multiplied by a scale before
the backward pass and the gradients divided by it afterwards (Micikevicius et al., 2017, arXiv:1710.03740). Every policy
has a loss scale, so the training step is the same for all.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

FIRST_SCALE, LEAST_SCALE, MOST_SCALE = 2.0**7, 1.0, 2.0**24
GROWTH_INTERVAL = 100  # good steps after which the scale is doubled


class Policy(NamedTuple):
    """Dtypes of a run.

    Attributes:
      param_dtype: parameters, BN statistics, classifier, softmax, loss and optimizer state.
      compute_dtype: activations, and kernels inside convolutions.
    """

    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype


POLICIES = {
    "fp32": Policy(jnp.dtype("float32"), jnp.dtype("float32")),
    "bf16": Policy(jnp.dtype("float32"), jnp.dtype("bfloat16")),
    "fp16": Policy(jnp.dtype("float32"), jnp.dtype("float16")),
    "fp64": Policy(jnp.dtype("float64"), jnp.dtype("float64")),  # for tests and comparisons; needs jax_enable_x64
}


@flax.struct.dataclass
class NoLossScale:
    """Leaves loss and gradients alone; the face that all loss scales have."""

    @property
    def factor(self) -> jax.Array | float:
        """What the loss is multiplied by, a scalar."""
        return 1.0

    def scale(self, loss: jax.Array) -> jax.Array:
        """The loss to differentiate."""
        return loss

    def unscale(self, gradients):
        """The gradients of the loss itself, from those of the scaled one."""
        return gradients

    def adjust(self, finite: jax.Array) -> "NoLossScale":
        """The scale for the next step.

        Args:
          finite: whether this step's loss and gradients are, bool scalar.
        """
        return self


NO_LOSS_SCALE = NoLossScale()


@flax.struct.dataclass
class StaticLossScale(NoLossScale):
    """Multiplies the loss by a constant, float32."""

    value: jax.Array

    @property
    def factor(self) -> jax.Array:
        return self.value

    def scale(self, loss: jax.Array) -> jax.Array:
        return loss * self.value.astype(loss.dtype)

    def unscale(self, gradients):
        # The inverse of a power of two is exact.
        return jax.tree.map(lambda gradient: gradient * (1 / self.value).astype(gradient.dtype), gradients)


@flax.struct.dataclass
class DynamicLossScale(StaticLossScale):
    """Halves the scale after a step whose gradients overflowed, and doubles it after `GROWTH_INTERVAL` good ones.

    Attributes:
      value: the scale, between `LEAST_SCALE` and `MOST_SCALE`.
      good_steps: since the scale changed, int32.
    """

    good_steps: jax.Array

    def adjust(self, finite: jax.Array) -> "DynamicLossScale":
        grow = finite & (self.good_steps + 1 >= GROWTH_INTERVAL)
        value = jnp.where(grow, 2 * self.value, jnp.where(finite, self.value, self.value / 2))
        return DynamicLossScale(
            value=jnp.clip(value, LEAST_SCALE, MOST_SCALE),
            good_steps=jnp.where(finite & ~grow, self.good_steps + 1, 0),
        )


def make_loss_scale(policy: str, loss_scale: float) -> NoLossScale:
    """The loss scale that a run starts with.

    Args:
      policy: a name in `POLICIES`; only `fp16` has a scale.
      loss_scale: a constant, or 0 for a dynamic one.
    """
    if policy != "fp16":
        return NO_LOSS_SCALE
    if loss_scale > 0:
        return StaticLossScale(jnp.float32(loss_scale))
    return DynamicLossScale(value=jnp.float32(FIRST_SCALE), good_steps=jnp.int32(0))
