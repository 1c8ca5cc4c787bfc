"""The work of a network, layer by layer, counted from the shapes that its modules see.

FLOPs are of one image's forward pass. A multiply-add is 2 FLOPs (and 1 MAC). As everywhere in this field, convolutions and
affine layers count, and normalisation, activations, pooling and the gates' multiplication do not: below 1% of the whole.
A training step takes about three times the work: forward, gradients of inputs, gradients of kernels.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

from jaxcls.errors import ConfigError
from jaxcls.models.initial import variable_shapes
from jaxcls.models.resnet import BatchNorm, Conv, Dense, ResNet

SMALLEST_SIZE = 32  # pixels; below it the last stage has nothing left to look at


class Layer(NamedTuple):
    """A layer with parameters."""

    name: str  # its place among the parameters, such as `stage1/block0/conv2`
    output: tuple[int, ...]  # its output's shape for one image, `(H, W, C)` or `(C,)`
    parameters: int
    flops: int  # of the forward pass of one image
    activations: int  # values that it puts out for one image; 0 for BN, which is applied to what a convolution put out


def count_layers(model: ResNet, image_size: int = 224) -> list[Layer]:
    """Every layer of a network that has parameters, in the order of the forward pass. Nothing is computed.

    Convolution, with K x K windows, C inputs in G groups and D outputs on H x W places: `2 * K*K * C/G * D * H*W` FLOPs;
    affine layer: `2 * C * D`; BN: 0 (at inference it is a part of the convolution before it).

    Raises:
      ConfigError: images smaller than 32 px.
    """
    if image_size < SMALLEST_SIZE:
        raise ConfigError(f"image size {image_size} is too small; every stage needs at least {SMALLEST_SIZE} px")
    layers = []

    def note(call, args, kwargs, context):
        place = len(layers)  # before what a layer calls itself: the gate of a BN
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and isinstance(module, Conv | Dense | BatchNorm):
            shapes = {name: leaf.shape for name, leaf in module.variables["params"].items()}
            counted = not isinstance(module, BatchNorm)
            shape = output.shape[1:]
            layers.insert(
                place,
                Layer(
                    name="/".join(module.path),
                    output=shape,
                    parameters=sum(map(math.prod, shapes.values())),
                    # Each output value takes a kernel column of multiply-adds.
                    flops=2 * math.prod(shapes["kernel"][:-1]) * math.prod(shape) if counted else 0,
                    activations=math.prod(shape) if counted else 0,
                ),
            )
        return output

    variables = variable_shapes(model)
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), model.dtype)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda variables, x: model.apply(variables, x, train=False), variables, image)
    return layers


def total(layers: list[Layer]) -> dict[str, int]:
    """The sums over layers: `parameters`, `flops` (of one image), `macs` (half of them) and `activations`."""
    sums = {name: sum(getattr(layer, name) for layer in layers) for name in ("parameters", "flops", "activations")}
    return sums | {"macs": sums["flops"] // 2}
