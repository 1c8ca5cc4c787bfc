"""How fast this machine multiplies matrices, and how fast each lowering of each convolution of the networks is on it."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcls import xla
from jaxcls.models.convolution import LOWERINGS, choose_plan, suits
from jaxcls.models.initial import variable_shapes
from jaxcls.models.registry import create_model
from jaxcls.models.resnet import Conv

_MATRIX = {"cpu": 2048}  # side, in the time that a measurement may take
_ACCELERATORS_MATRIX = 8192


class Shape(NamedTuple):
    """A convolution's geometry, for one image."""

    side: int  # of the input, in pixels
    channels: int
    out: int
    window: int
    stride: int
    groups: int

    @property
    def area(self) -> int:
        """Pixels of the output."""
        return ((self.side + 2 * (self.window // 2) - self.window) // self.stride + 1) ** 2

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        """`[KH, KW, C_in / groups, C_out]`."""
        return self.window, self.window, self.channels // self.groups, self.out

    @property
    def flops(self) -> int:
        """Of each of forward pass, input gradient and kernel gradient, for one image; a multiply-add is 2."""
        return 2 * self.area * self.out * self.window**2 * self.channels // self.groups


def median_seconds(function: Callable, *arguments, least: int = 5, seconds: float = 0.2, most: int = 50) -> float:
    """Median time of a call, after one that warms up: of `least` to `most` calls, until `seconds` have passed."""
    jax.block_until_ready(function(*arguments))
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_peak(dtype) -> float:
    """FLOPs a second of a product of two large square matrices on one device, in inference or training: the faster one."""
    side = _MATRIX.get(jax.default_backend(), _ACCELERATORS_MATRIX)
    matrix = jnp.ones((side, side), dtype)
    products = (xla.jit(lambda a: a @ a, train=train) for train in (False, True))
    return 2 * side**3 / min(median_seconds(product, matrix, seconds=1) for product in products)


def distinct_convolutions(names: list[str], image_size: int) -> dict[Shape, dict[str, int]]:
    """Every different convolution of the networks, in order of depth, and how often each network that has it does."""
    found: dict[Shape, dict[str, int]] = {}
    for name in names:
        model = create_model(name, num_classes=1000)

        def note(call, args, kwargs, context, name=name):
            module = context.module
            if isinstance(module, Conv) and context.method_name == "__call__":
                _, side, _, channels = args[0].shape
                shape = Shape(side, channels, module.channels, module.window, module.stride, module.groups)
                counts = found.setdefault(shape, {})
                counts[name] = counts.get(name, 0) + 1
            return call(*args, **kwargs)

        variables = variable_shapes(model)
        image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), model.dtype)
        with nn.intercept_methods(note):
            jax.eval_shape(lambda v, x, model=model: model.apply(v, x, train=False), variables, image)
    return found


def time_lowerings(shape: Shape, batch: int, dtype) -> Iterator[dict]:
    """Seconds of each lowering of a convolution: `lowering`, `inference`, and in training `forward`, `dx` and `dw`; and
    `planned`, those of the four that `choose_plan` takes it for."""
    x = jnp.ones((batch, shape.side, shape.side, shape.channels), dtype)
    kernel = jnp.ones(shape.kernel, dtype)
    plan = choose_plan(jax.default_backend(), x.dtype, shape.kernel, shape.stride, shape.groups, batch, shape.area)
    planned_parts = plan.complete()._asdict().items()
    for name, lowering in LOWERINGS.items():
        if not suits(name, shape.kernel, shape.stride, shape.groups) or (name == "tiled" and shape.window == 1):
            continue  # tiles of a 1x1 have nothing to widen

        def forward(x, kernel, lowering=lowering):
            return lowering(x, kernel, shape.stride, shape.window // 2, shape.groups)

        planned = [part for part, chosen in planned_parts if chosen == name]
        inference = median_seconds(xla.jit(forward, train=False), x, kernel)
        yield {"lowering": name, "inference": inference, **_time_passes(forward, x, kernel), "planned": planned}


def xla_convolution(shape: Shape, layout: str) -> Callable:
    """XLA's own `(x, kernel) -> y`, with activations `NHWC` and an HWIO kernel, or `NCHW` and OIHW."""

    def convolution(x, kernel):
        padding = (shape.window // 2, shape.window // 2)
        kernel_layout = "HWIO" if layout == "NHWC" else "OIHW"
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (shape.stride, shape.stride),
            [padding, padding],
            dimension_numbers=(layout, kernel_layout, layout),
            feature_group_count=shape.groups,
        )

    return convolution


def time_layouts(shape: Shape, batch: int, dtype) -> dict[str, dict[str, float] | float]:
    """Seconds of XLA's convolution by layout of the activations: `nhwc` and `nchw`, each with `forward`, `dx` and `dw`, and
    `transpose`, of the input from the one to the other."""
    side, channels, kernel = shape.side, shape.channels, jnp.ones(shape.kernel, dtype)
    last, first = jnp.ones((batch, side, side, channels), dtype), jnp.ones((batch, channels, side, side), dtype)
    return {
        "nhwc": _time_passes(xla_convolution(shape, "NHWC"), last, kernel),
        "nchw": _time_passes(xla_convolution(shape, "NCHW"), first, kernel.transpose(3, 2, 0, 1)),
        "transpose": median_seconds(xla.jit(lambda x: x.transpose(0, 3, 1, 2), train=True), last),
    }


def _time_passes(forward: Callable, x: jax.Array, kernel: jax.Array) -> dict[str, float]:
    """Seconds of `forward(x, kernel)` in training, of its input gradient `dx` and of its kernel gradient `dw`."""
    dy = jnp.ones_like(forward(x, kernel))
    dx = xla.jit(lambda x, kernel, dy: jax.vjp(lambda x: forward(x, kernel), x)[1](dy), train=True)
    dw = xla.jit(lambda x, kernel, dy: jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](dy), train=True)
    return {
        "forward": median_seconds(xla.jit(forward, train=True), x, kernel),
        "dx": median_seconds(dx, x, kernel, dy),
        "dw": median_seconds(dw, x, kernel, dy),
    }
