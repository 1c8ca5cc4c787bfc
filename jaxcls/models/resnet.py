"""ResNet v1.5, ResNeXt and SE-ResNeXt as linen modules: they own and name the parameters; `layers` does the arithmetic.

The variables are a plain tree (block counts from the network's `Spec`):

    params/stem/{conv,bn}
    params/stage{1..4}/block{0..}/{conv1,bn1,conv2,bn2,conv3,bn3}, in SE networks se/{squeeze,expand},
                                  where the shape changes shortcut/{conv,bn}
    params/head
    batch_stats/ as params, with the running mean and var of each bn
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models import layers
from jaxcls.models.convolution import conv
from jaxcls.models.initial import Initial, Module


@dataclasses.dataclass(frozen=True)
class Spec:
    """What distinguishes one residual network from another."""

    depths: tuple[int, ...]  # blocks of each stage
    widths: tuple[int, ...]  # channels of each stage's 3x3 convolutions
    expansion: int  # a block's output channels over its width
    groups: int = 1  # of the 3x3 convolutions
    squeeze_excite: bool = False
    stride_in_first: bool = False  # v1 has the stride in the first 1x1, v1.5 in the 3x3


class Conv(Module):
    """Convolution without bias, square kernel, symmetric padding; He-normal initialised."""

    channels: int
    window: int
    stride: int = 1
    groups: int = 1
    fan: str = "fan_in"
    dtype: Any = jnp.float32  # of the computation
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.window, self.window, x.shape[-1] // self.groups, self.channels)
        # Fan-in counts one group's inputs; fan-out is not divided by the groups (as PyTorch's kaiming_normal_).
        fan = self.window**2 * (shape[2] if self.fan == "fan_in" else shape[3])
        kernel = self.param("kernel", Initial("normal", math.sqrt(2 / fan)), shape, self.param_dtype)
        return conv(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.window // 2,
            groups=self.groups,
        )


class BatchNorm(Module):
    """Batch normalisation over all but the channels, with PyTorch's running statistics.

    The running variance is the unbiased one, as in PyTorch, and `momentum` is the weight of the new batch. Parameters
    and statistics are float32 (float64 under the `fp64` policy); the output has the input's dtype. With a `gate`, see
    `layers.batch_normalize`, the output is multiplied by what that makes of its means.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    axis_name: str | None = None  # mapped axis to synchronise the moments over
    groups: tuple[tuple[int, ...], ...] | None = None  # of places on it that are synchronised
    zero_scale: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool, gate: Callable | None = None):
        shape = x.shape[-1:]
        scale = self.param("scale", Initial("constant", 0.0 if self.zero_scale else 1.0), shape, self.param_dtype)
        bias = self.param("bias", Initial("constant", 0.0), shape, self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", np.zeros, shape, self.param_dtype)
        running_var = self.variable("batch_stats", "var", np.ones, shape, self.param_dtype)
        if not train:
            return layers.normalize(x, running_mean.value, running_var.value, scale, bias, self.epsilon, gate)
        y, mean, variance = layers.batch_normalize(x, scale, bias, self.epsilon, self.axis_name, self.groups, gate)
        if not self.is_initializing():
            count = x.size // x.shape[-1] * self._devices()
            unbiased = variance * (count / max(count - 1, 1))
            running_mean.value += self.momentum * (mean - running_mean.value)
            running_var.value += self.momentum * (unbiased - running_var.value)
        return y

    def _devices(self) -> int:
        """Whose shares make up the batch."""
        if self.axis_name is None:
            return 1
        return len(self.groups[0]) if self.groups else jax.lax.axis_size(self.axis_name)


class Dense(Module):
    """Affine layer `[N, C] -> [N, units]`, computed in its parameters' dtype, initialised as PyTorch's `Linear`."""

    units: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        init = Initial("uniform", x.shape[-1] ** -0.5)
        kernel = self.param("kernel", init, (x.shape[-1], self.units), self.param_dtype)
        bias = self.param("bias", init, (self.units,), self.param_dtype)
        return x.astype(self.param_dtype) @ kernel + bias


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation gate through `width` units: means over an image `[N, C]` to factors `[N, C]`."""

    width: int
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled):
        squeeze = Dense(self.width, self.param_dtype, name="squeeze")
        expand = Dense(pooled.shape[-1], self.param_dtype, name="expand")
        return layers.excitation(pooled, squeeze, expand)


class Shortcut(nn.Module):
    """Projection of a block's input to its output's shape."""

    channels: int
    stride: int
    conv: Any
    bn: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = self.conv(self.channels, 1, self.stride, name="conv")(x)
        return self.bn(name="bn")(x, train=train)


class Bottleneck(nn.Module):
    """1x1 -> 3x3 (grouped) -> 1x1 with a residual connection."""

    width: int
    stride: int
    spec: Spec
    se_width: int
    zero_init_last_bn: bool
    conv: Any
    bn: Any
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        channels = self.width * self.spec.expansion
        strides = (self.stride, 1) if self.spec.stride_in_first else (1, self.stride)

        def branch(x):
            x = self.conv(self.width, 1, strides[0], name="conv1")(x)
            x = nn.relu(self.bn(name="bn1")(x, train=train))
            x = self.conv(self.width, 3, strides[1], self.spec.groups, name="conv2")(x)
            x = nn.relu(self.bn(name="bn2")(x, train=train))
            x = self.conv(channels, 1, name="conv3")(x)
            gate = None
            if self.spec.squeeze_excite:
                gate = SqueezeExcite(self.se_width or channels // 16, self.param_dtype, name="se")
            return self.bn(zero_scale=self.zero_init_last_bn, name="bn3")(x, train=train, gate=gate)

        def shortcut(x):
            if x.shape[-1] == channels and self.stride == 1:
                return x
            return Shortcut(channels, self.stride, self.conv, self.bn, name="shortcut")(x, train=train)

        return layers.bottleneck(x, branch, shortcut)


class Stem(nn.Module):
    """7x7 stride 2 -> BN -> ReLU -> 3x3 stride 2 max pool: a quarter of the resolution."""

    conv: Any
    bn: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = self.conv(64, 7, 2, name="conv")(x)  # [N,H,W,3] -> [N,H/2,W/2,64]
        x = nn.relu(self.bn(name="bn")(x, train=train))
        return layers.max_pool(x)  # [N,H/2,W/2,64] -> [N,H/4,W/4,64]


class Stage(nn.Module):
    """A row of blocks at one resolution; the first one carries the stride."""

    depth: int
    stride: int
    block: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        outputs = {}
        for index in range(self.depth):
            x = self.block(stride=self.stride if index == 0 else 1, name=f"block{index}")(x, train)
            outputs[f"{self.name}/block{index}"] = x
        return x, outputs


class ResNet(nn.Module):
    """A residual network; make one with `jaxcls.create_model`.

    Attributes:
      spec: depths, widths and kind of the blocks.
      num_classes: units of the classifier.
      conv_init: `fan_in` or `fan_out` of the He-normal initialisation.
      zero_init_last_bn: start each block as the identity (scale 0 in its last BN).
      se_width: units of the SE gates; 0 means a sixteenth of the block's channels, as in the SE paper and in timm.
      bn_momentum: weight of a new batch in the running statistics (PyTorch's convention; Flax's is one minus this).
      bn_epsilon: added to the variance.
      bn_axis_name: mapped axis to synchronise BN moments over; `None` keeps them per device.
      bn_groups: of places on that axis, all of one size: BN is synchronised inside each; `None`: over all of the axis.
      remat: keep only the blocks' inputs for the backward pass, and compute the rest of each again there: less memory, more
        time.
      frozen: parts, of `part_names(spec)`, whose BN uses its running statistics in training, too.
      dtype: of activations and of kernels inside convolutions.
      param_dtype: of parameters, BN statistics, SE gates and the classifier.
    """

    spec: Spec
    num_classes: int
    conv_init: str = "fan_in"
    zero_init_last_bn: bool = False
    se_width: int = 16
    bn_momentum: float = 0.1
    bn_epsilon: float = 1e-5
    bn_axis_name: str | None = None
    bn_groups: tuple[tuple[int, ...], ...] | None = None
    remat: bool = False
    frozen: tuple[str, ...] = ()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool, features: tuple[str, ...] | None = None):
        """Logits, or named intermediate features.

        Args:
          images: `[N, H, W, 3]`, any float dtype, normalised.
          train: normalise by the batch's moments and update the running ones (make `batch_stats` mutable).
          features: names among `feature_names(spec)`; when given, a dict of them is returned in place of the logits.

        Returns:
          logits `[N, num_classes]` in `param_dtype`, or `{name: array}`: NHWC activations of the computation's dtype,
          `pooled` `[N, C]` and `logits` in `param_dtype`.

        Raises:
          ValueError: an unknown feature name.
        """
        if unknown := set(features or ()) - set(feature_names(self.spec)):
            raise ValueError(f"no features {sorted(unknown)}; known: {', '.join(feature_names(self.spec))}")
        conv_ = functools.partial(Conv, fan=self.conv_init, dtype=self.dtype, param_dtype=self.param_dtype)
        bn = functools.partial(
            BatchNorm, self.bn_momentum, self.bn_epsilon, self.bn_axis_name, self.bn_groups, param_dtype=self.param_dtype
        )
        outputs = {}
        x = images.astype(self.dtype)  # entry into the policy's compute dtype
        x = outputs["stem"] = Stem(conv_, bn, name="stem")(x, train=train and "stem" not in self.frozen)
        for index, (depth, width) in enumerate(zip(self.spec.depths, self.spec.widths, strict=True)):
            block = functools.partial(
                nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck,
                width=width,
                spec=self.spec,
                se_width=self.se_width,
                zero_init_last_bn=self.zero_init_last_bn,
                conv=conv_,
                bn=bn,
                param_dtype=self.param_dtype,
            )
            name = f"stage{index + 1}"
            stage = Stage(depth, 1 if index == 0 else 2, block, name=name)
            x, blocks = stage(x, train=train and name not in self.frozen)
            outputs |= blocks | {name: x}
        # Exit from the compute dtype: pooling and classifier in full precision. [N,H,W,C] -> [N,C]
        x = outputs["pooled"] = x.mean((1, 2), dtype=self.param_dtype)
        x = outputs["logits"] = Dense(self.num_classes, self.param_dtype, name="head")(x)
        return x if features is None else {name: outputs[name] for name in features}


def part_names(spec: Spec) -> tuple[str, ...]:
    """The parts of a network: the topmost names of its parameters, in order of depth."""
    return ("stem", *(f"stage{stage}" for stage, _ in enumerate(spec.depths, 1)), "head")


def feature_names(spec: Spec) -> tuple[str, ...]:
    """Names of the intermediate features of a network, in order of depth."""
    names = ["stem"]
    for stage, depth in enumerate(spec.depths, 1):
        names += [f"stage{stage}/block{index}" for index in range(depth)] + [f"stage{stage}"]
    return (*names, "pooled", "logits")
