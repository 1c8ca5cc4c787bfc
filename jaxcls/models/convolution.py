"""2-D convolution in NHWC through one function, `conv`, with selectable lowerings.

A *lowering* is one way to write the same arithmetic for XLA: all of them agree to rounding, but on a CPU they differ up to
five-hundred-fold in speed, and the fastest one differs between inference, the forward pass of training, the gradient of the
input (dx) and the gradient of the kernel (dw). So `conv` takes a `Plan` that names a lowering for each, and `choose_plan`
is the table of what is fastest where.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxcls.models import tiled, winograd


class Plan(NamedTuple):
    """The lowering of each computation of a convolution: names from `LOWERINGS`."""

    forward: str
    dx: str
    dw: str
    inference: str | None = None  # the forward pass of which no gradient is taken; `None`: as `forward`

    def complete(self) -> "Plan":
        """With `inference` named."""
        return self._replace(inference=self.inference or self.forward)


def choose_plan(
    platform: str, dtype, kernel_shape: tuple[int, ...], stride: int, groups: int, batch: int, area: int
) -> Plan:
    """The fastest known plan for a convolution: see `jaxcls benchmark layers`.

    Args:
      platform: `cpu`, `gpu`, `tpu`, ... as JAX names them; an unknown one is treated as an accelerator.
      dtype: of images and kernel.
      kernel_shape: `[KH, KW, C_in / groups, C_out]`.
      stride: step in both directions.
      groups: number of feature groups.
      batch: number of images.
      area: height times width of the output, in pixels.
    """
    pixels = batch * area
    if platform != "cpu":
        return Plan("lax", "lax", "lax")  # cuDNN and the TPU's convolution unit beat anything composed from matmuls
    if kernel_shape[:2] == (1, 1) and groups == 1:
        return Plan("windows", "windows", "transposed")  # three matrix products
    if groups > 1:
        if dtype == jnp.float64:
            return Plan("windows", "windows", "windows")  # XLA:CPU makes one group of all, with as much more work
        wide = kernel_shape[2] >= 32  # channels of a group; `lax` is fast from here on, but for the gradient of the kernel
        return Plan(
            "lax" if wide else "tiled",
            "lax" if wide and stride == 1 else "tiled",
            "tiled" if stride == 1 else "windows",
        )
    if area < 16:
        return Plan("windows", "windows", "windows")  # padding costs XLA:CPU up to 20 times on images this small
    transform = (
        suits("winograd", kernel_shape, stride, groups)
        and dtype in (jnp.float32, jnp.float64)  # its sums of inputs would lose what half precision has
        and pixels >= 2 * kernel_shape[3]  # the kernel is transformed, too
        and pixels * math.prod(kernel_shape) >= 1e8  # multiplications, beside which its 50 small programs are nothing
    )
    # In training it would be faster as well, but each pass adds as many programs, and two seconds to the first step.
    inference = "winograd" if transform else None
    return Plan("lax", "windows" if stride > 1 else "lax", "lax", inference)  # a strided dx runs over zeros in between


def conv(
    x: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0, groups: int = 1, plan: Plan | None = None
) -> jax.Array:
    """Cross-correlation without bias, as `torch.nn.Conv2d` computes it.

    Args:
      x: `[N, H, W, C_in]`.
      kernel: `[KH, KW, C_in / groups, C_out]`, of the same dtype as `x`.
      stride: step in both directions.
      padding: zeros added on every side (an explicit integer: `SAME` would pad strided convolutions asymmetrically).
      groups: number of feature groups; input and output channels are split evenly among them, in order.
      plan: which lowering to use for each pass; `None` takes the fastest known ones.

    Returns:
      `[N, (H + 2 * padding - KH) // stride + 1, (W + 2 * padding - KW) // stride + 1, C_out]`, of `x`'s dtype.

    Raises:
      ValueError: channels that do not fit the kernel and groups, a dtype, stride or padding that cannot be, images smaller
        than the kernel, or a lowering that is unknown or cannot do this.
    """
    if stride < 1 or padding < 0:
        raise ValueError(f"conv: stride {stride} must be at least 1, and padding {padding} at least 0")
    if x.dtype != kernel.dtype:
        raise ValueError(f"conv: images are {x.dtype}, the kernel is {kernel.dtype}; they must be alike")
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(f"conv: {x.shape[-1]} channels do not fit kernel {kernel.shape} with {groups} groups")
    height, width = tiled.output_size(x, kernel, stride, padding)
    if height < 1 or width < 1:
        raise ValueError(f"conv: images {x.shape} with padding {padding} are smaller than kernel {kernel.shape}")
    if plan is None:
        plan = choose_plan(jax.default_backend(), x.dtype, kernel.shape, stride, groups, x.shape[0], height * width)
    plan = plan.complete()
    if unknown := set(plan) - set(LOWERINGS):
        raise ValueError(f"conv: no lowering {sorted(unknown)}; known: {sorted(LOWERINGS)}")
    for lowering in plan:
        if not suits(lowering, kernel.shape, stride, groups):
            raise ValueError(
                f"conv: {lowering} cannot do kernel {kernel.shape} with stride {stride} and {groups} groups; "
                "lax, windows and tiled can do any"
            )
    return _planned(plan, (stride, padding, groups), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _planned(plan, geometry, x, kernel):
    return _forward(plan.inference, geometry, x, kernel)


def _planned_forward(plan, geometry, x, kernel):
    return _forward(plan.forward, geometry, x, kernel), (x, kernel)


def _planned_backward(plan, geometry, saved, dy):
    return _gradients(plan, geometry, *saved, dy)


# With `jit`, JAX traces and lowers these once for all convolutions of one shape; XLA sees them inlined.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(lowering, geometry, x, kernel):
    return LOWERINGS[lowering](x, kernel, *geometry)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(plan, geometry, x, kernel, dy):
    # A convolution is linear in each argument, so the forward values that `vjp` computes here are unused and XLA drops them.
    (dx,) = jax.vjp(lambda x: LOWERINGS[plan.dx](x, kernel, *geometry), x)[1](dy)
    if jax.default_backend() == "cpu":
        x, dx = lax.optimization_barrier((x, dx))  # dw after dx, and dx as it is: else XLA:CPU keeps more at a time
    (dw,) = jax.vjp(lambda kernel: LOWERINGS[plan.dw](x, kernel, *geometry), kernel)[1](dy)
    return dx, dw


_planned.defvjp(_planned_forward, _planned_backward)


def _lax(x, kernel, stride, padding, groups):
    """XLA's own convolution."""
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _windows(x, kernel, stride, padding, groups):
    """One matmul over the concatenated shifted windows; a 1x1 is a plain matmul."""
    kh, kw, c, out = kernel.shape
    views = shifted_views(x, (kh, kw), (stride, stride), (padding, padding), 0)
    n, h, w, _ = views[0].shape
    if groups == 1:
        patches = views[0] if len(views) == 1 else jnp.concatenate(views, -1)  # [N,H,W,C] -> [N,H',W',KH*KW*C]
        # As matrices: XLA:CPU would transpose, in memory, an operand that is contracted over three axes.
        patches = patches.reshape(n * h * w, kh * kw * c)
        return (patches @ kernel.reshape(kh * kw * c, out)).reshape(n, h, w, out)
    # [N,H',W',K,G,C/G] x [K,C/G,G,O/G] -> [N,H',W',G,O/G], batched over the groups
    patches = jnp.stack(views, 3).reshape(n, h, w, kh * kw, groups, c)
    kernel = kernel.reshape(kh * kw, c, groups, out // groups)
    return jnp.einsum("nhwkgc,kcgo->nhwgo", patches, kernel).reshape(n, h, w, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _transposed(x, kernel, stride, padding, groups):
    """A 1x1 as `windows`, but for the gradient of the kernel the smaller operand is transposed in memory: XLA:CPU hands a
    product to YNNPACK, which is faster there, only if the first operand is contracted over its last axis."""
    return _windows(x, kernel, stride, padding, groups)


def _transposed_forward(x, kernel, stride, padding, groups):
    return _windows(x, kernel, stride, padding, groups), (x, kernel)


def _transposed_backward(stride, padding, groups, saved, dy):
    x, kernel = saved
    (dx,) = jax.vjp(lambda x: _windows(x, kernel, stride, padding, groups), x)[1](dy)
    (view,) = shifted_views(x, (1, 1), (stride, stride), (padding, padding), 0)
    x, dy = (array.reshape(-1, array.shape[-1]) for array in (view, dy))  # [N,H',W',C] -> [M,C]
    dw = _transpose(x) @ dy if x.shape[1] <= dy.shape[1] else lax.optimization_barrier(_transpose(dy) @ x).T
    return dx, dw.reshape(kernel.shape)


def _transpose(matrix):
    """In memory, by itself: XLA:CPU would copy the matrix to transpose it, and take the transpose into the product."""
    return lax.optimization_barrier(lax.optimization_barrier(matrix).T)


_transposed.defvjp(_transposed_forward, _transposed_backward)

LOWERINGS = {
    "lax": _lax,
    "windows": _windows,
    "transposed": _transposed,
    "tiled": tiled.convolution,
    "winograd": winograd.convolution,
}


def suits(lowering: str, kernel_shape: tuple[int, ...], stride: int, groups: int) -> bool:
    """Whether a lowering can write a convolution: arguments as those of `choose_plan`."""
    if lowering == "transposed":
        return kernel_shape[:2] == (1, 1) and groups == 1
    if lowering == "winograd":
        return kernel_shape[:2] == (3, 3) and stride == 1 and groups == 1
    return True


def shifted_views(
    x: jax.Array, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], fill: float
) -> list[jax.Array]:
    """The strided slices of padded `x` `[N, H, W, C]` that lie under each window position, in row-major order."""
    (kh, kw), (sh, sw), (ph, pw) = window, stride, padding
    h = (x.shape[1] + 2 * ph - kh) // sh + 1
    w = (x.shape[2] + 2 * pw - kw) // sw + 1
    if ph or pw:
        x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)), constant_values=fill)
    return [x[:, i : i + sh * (h - 1) + 1 : sh, j : j + sw * (w - 1) + 1 : sw] for i in range(kh) for j in range(kw)]
