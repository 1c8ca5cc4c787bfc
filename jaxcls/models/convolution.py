"""2-D convolution in NHWC through one function, `conv`, with selectable lowerings.

A *lowering* is one way to write the same arithmetic for XLA: all of them agree to rounding, but on a CPU they differ up to
seventy-fold in speed, and the fastest one differs between the forward pass, the gradient of the input (dx) and the
gradient of the kernel (dw). So `conv` takes a `Plan` that names a lowering for each of the three, and `choose_plan` is
the table of what is fastest where.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Plan(NamedTuple):
    """The lowering of each of the three computations of a convolution: names from `LOWERINGS`."""

    forward: str
    dx: str
    dw: str


def choose_plan(platform: str, dtype, kernel_shape: tuple[int, ...], stride: int, groups: int, area: int) -> Plan:
    """The fastest known plan for a convolution: see `jaxcls benchmark layers`.

    Args:
      platform: `cpu`, `gpu`, `tpu`, ... as JAX names them; an unknown one is treated as an accelerator.
      dtype: of images and kernel.
      kernel_shape: `[KH, KW, C_in / groups, C_out]`.
      stride: step in both directions.
      groups: number of feature groups.
      area: height times width of the output, in pixels.
    """
    if platform != "cpu":
        return Plan("lax", "lax", "lax")  # cuDNN and the TPU's convolution unit beat anything composed from matmuls
    if kernel_shape[:2] == (1, 1):
        # A single matmul; for dx of few pixels, that would transpose a kernel larger than the images.
        return Plan("windows", "lax" if area < 64 else "windows", "windows")
    if groups > 1:
        if dtype == jnp.float64:
            return Plan("windows", "windows", "windows")  # XLA:CPU makes one group of all, with as much more work
        return Plan("packed", "packed", "packed")  # XLA:CPU's gradient of a grouped kernel is up to 100 times slower
    if area < 16:
        return Plan("windows", "windows", "windows")  # padding costs XLA:CPU up to 20 times on images this small
    return Plan("lax", "windows" if stride > 1 else "lax", "lax")  # a strided dx runs over zeros in between


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
      plan: which lowering to use for the forward pass and each gradient; `None` takes the fastest known one.

    Returns:
      `[N, (H + 2 * padding - KH) // stride + 1, (W + 2 * padding - KW) // stride + 1, C_out]`, of `x`'s dtype.

    Raises:
      ValueError: channels that do not fit the kernel and groups, or an unknown lowering.
    """
    if x.shape[-1] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(f"conv: {x.shape[-1]} channels do not fit kernel {kernel.shape} with {groups} groups")
    if plan is None:
        height, width = ((x.shape[axis] + 2 * padding - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
        plan = choose_plan(jax.default_backend(), x.dtype, kernel.shape, stride, groups, height * width)
    if unknown := set(plan) - set(LOWERINGS):
        raise ValueError(f"conv: no lowering {sorted(unknown)}; known: {sorted(LOWERINGS)}")
    return _planned(plan, (stride, padding, groups), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _planned(plan, geometry, x, kernel):
    return LOWERINGS[plan.forward](x, kernel, *geometry)


def _planned_forward(plan, geometry, x, kernel):
    return _planned(plan, geometry, x, kernel), (x, kernel)


def _planned_backward(plan, geometry, saved, dy):
    x, kernel = saved
    # A convolution is linear in each argument, so the forward values that `vjp` computes here are unused and XLA drops them.
    (dx,) = jax.vjp(lambda x: LOWERINGS[plan.dx](x, kernel, *geometry), x)[1](dy)
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


_PACKED = 32  # channels of a packed group: the fastest of 8 to 128 on every grouped layer of the networks


def _packed(x, kernel, stride, padding, groups):
    """XLA's own convolution over fewer groups: up to 32 channels' worth are joined, their kernel being block-diagonal."""
    kh, kw, c, out = kernel.shape
    joined = math.gcd(groups, max(_PACKED // c, 1))
    # [KH,KW,C,O] -> [KH,KW,J*C,O]: zero where an input channel (of the group before C) is not of the output's group (J)
    kernel = kernel.reshape(kh, kw, 1, c, groups // joined, joined, out // groups)
    same = jnp.eye(joined, dtype=bool)[:, None, None, :, None]
    kernel = jnp.where(same, kernel, 0).reshape(kh, kw, joined * c, out)
    return _grouped((stride, padding, groups // joined), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped(geometry, x, kernel):
    """`_lax`, but for the gradient of the kernel."""
    return _lax(x, kernel, *geometry)


def _grouped_forward(geometry, x, kernel):
    return _lax(x, kernel, *geometry), (x, kernel)


def _grouped_backward(geometry, saved, dy):
    x, kernel = saved
    (dx,) = jax.vjp(lambda x: _lax(x, kernel, *geometry), x)[1](dy)
    return dx, _grouped_dw(x, dy, kernel.shape, *geometry)


_grouped.defvjp(_grouped_forward, _grouped_backward)


def _grouped_dw(x, dy, kernel_shape, stride, padding, groups):
    """The gradient of a grouped kernel as a grouped convolution of the images with `dy`.

    A group's input channels take the place of the batch and the images that of the channels, so that the convolution sums
    over images. JAX's own form has the groups in the batch, which XLA:CPU runs up to 100 times slower.
    """
    n, height, width, _ = x.shape
    kh, kw, c, _ = kernel_shape
    images = x.reshape(n, height, width, groups, c).transpose(4, 1, 2, 3, 0)  # [N,H,W,G*C] -> [C,H,W,G,N]
    after = [  # padding that makes the result as large as the kernel
        window + stride * (places - 1) - size - padding
        for window, places, size in ((kh, dy.shape[1], height), (kw, dy.shape[2], width))
    ]
    dw = lax.conv_general_dilated(
        images.reshape(c, height, width, groups * n),
        dy.transpose(1, 2, 0, 3),  # [N,H',W',O] -> [H',W',N,O]
        window_strides=(1, 1),
        padding=[(padding, after[0]), (padding, after[1])],
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    return dw.transpose(1, 2, 0, 3)  # [C,KH,KW,O] -> [KH,KW,C,O]


LOWERINGS = {"lax": _lax, "windows": _windows, "packed": _packed}


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
