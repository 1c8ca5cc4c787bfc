"""Grouped convolution for CPUs, as a wider one: a group's outputs of a few neighbouring pixels are made as if they were
channels of one pixel.

XLA:CPU multiplies matrices at full speed from about 32 columns on, but a group of ResNeXt has as few as 4 channels. A tile
of 2 x 2 outputs under a 3 x 3 window reads 4 x 4 inputs, so that a kernel of that window and 4 times the channels, filled up
with zeros, makes the tile at once: 16 multiplications an output in place of 9, where joining 4 groups to one, the other way
to 4 times the channels, takes 36.

The three computations, in pixels of one axis, with window K, stride s, padding p and tiles of t outputs:

    forward   y[t*a + q] += x[s*(t*a + q) + i - p] * kernel[i]
    dx        the same with x and y exchanged: tiles of s*t inputs, stride t over dy
    dw        tiles of s*t inputs against tiles of t outputs, for the kernel of the wide window; its gradient is then that of
              the kernel it was made of
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDE = 32  # channels of a wide group: the fastest of 16 to 96 on every grouped layer of the networks


class _Axis(NamedTuple):
    """How tiles of one array are made of windows of another, in pixels of one axis."""

    tile: int  # of outputs
    stride: int  # from the window of a tile to that of the next
    low: int  # padding in front
    places: np.ndarray  # 0 or 1, [L, tile, K]: whether an output takes the window's place L through the kernel's place K


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """As `jaxcls.models.convolution.conv`."""
    tile, joined = _tiling(kernel.shape[3] // groups, groups, output_size(x, kernel, stride, padding))
    axes = [_forward_axis(t, k, stride, padding) for t, k in zip(tile, kernel.shape, strict=False)]
    return _in_tiles(x, _by_group(kernel, groups), axes, joined, output_size(x, kernel, stride, padding))


def _forward(x, kernel, stride, padding, groups):
    return convolution(x, kernel, stride, padding, groups), (x, kernel)


def _backward(stride, padding, groups, saved, dy):
    x, kernel = saved
    return _dx(dy, kernel, x.shape, stride, padding, groups), _dw(x, dy, kernel, stride, padding, groups)


convolution.defvjp(_forward, _backward)


def _dx(dy, kernel, shape, stride, padding, groups):
    # A tile is at least one stride.
    tile, joined = _tiling(kernel.shape[2], groups, shape[1:3], stride)
    axes = [_backward_axis(t // stride, k, stride, padding) for t, k in zip(tile, kernel.shape, strict=False)]
    return _in_tiles(dy, _by_group(kernel, groups).swapaxes(2, 4), axes, joined, shape[1:3])


def _dw(x, dy, kernel, stride, padding, groups):
    n, places = x.shape[0], dy.shape[1:3]
    tile, joined = _tiling(kernel.shape[3] // groups, groups, places)
    axes = [_forward_axis(t, k, stride, padding) for t, k in zip(tile, kernel.shape, strict=False)]
    wide, transpose = jax.vjp(lambda kernel: _wide_kernel(_by_group(kernel, groups), axes, joined), kernel)
    count = [-(-size // axis.tile) for size, axis in zip(places, axes, strict=True)]  # tiles
    blocks = [-(-wide.shape[i] // axis.stride) for i, axis in enumerate(axes)]  # under a window, each of a stride's pixels
    (th, tw), (sh, sw) = ((axis.tile for axis in axes), (axis.stride for axis in axes))
    rows, columns = (c + b - 1 for c, b in zip(count, blocks, strict=True))
    groups //= joined

    # The sum goes over images and pixels, so a group's channels and the pixels of a block take the place of the batch,
    # the images that of the channels, and the tiles of dy that of the kernel. JAX's own form of a grouped kernel's gradient
    # has the groups in the batch, which XLA:CPU runs up to 500 times slower.
    dy = _pad(dy, (0, 0), (count[0] * th, count[1] * tw))
    dy = dy.reshape(n, count[0], th, count[1], tw, groups, -1).transpose(1, 3, 0, 5, 2, 4, 6)
    dy = dy.reshape(*count, n, -1)  # [N,H',W',O] -> [A,B,N,G*TH*TW*O/G]
    x = _pad(x, (padding, padding), (rows * sh, columns * sw))
    x = x.reshape(n, rows, sh, columns, sw, groups, -1).transpose(2, 4, 6, 1, 3, 5, 0)
    channels = x.shape[2]
    x = x.reshape(sh * sw * channels, rows, columns, -1)  # [N,H,W,C] -> [SH*SW*C/G,A+,B+,G*N]
    dw = _lax(x, dy, (1, 1), ((0, 0), (0, 0)), groups)  # [SH*SW*C/G,L/SH,L/SW,G*TH*TW*O/G]
    dw = dw.reshape(sh, sw, channels, *blocks, -1).transpose(3, 0, 4, 1, 2, 5)
    dw = dw.reshape(blocks[0] * sh, blocks[1] * sw, channels, -1)
    return transpose(dw[: wide.shape[0], : wide.shape[1]])[0]


def _tiling(channels: int, groups: int, size: tuple[int, int], least: int = 1) -> tuple[tuple[int, int], int]:
    """Height and width of a tile of `channels` outputs a pixel and group, and how many groups are joined, for `_WIDE`.

    A tile of two pixels costs a third more multiplications under a window of three, joining two groups doubles them.
    """
    tile = [least, least]
    for axis in (0, 1):
        if channels * math.prod(tile) < _WIDE and size[axis] > least:
            tile[axis] *= 2
    return tuple(tile), math.gcd(groups, max(_WIDE // (channels * math.prod(tile)), 1))


def _forward_axis(tile: int, window: int, stride: int, padding: int) -> _Axis:
    """Output q of a tile takes place `stride * q + i` through the kernel's place i."""
    return _axis(tile, stride * tile, padding, stride * (tile - 1) + window, window, lambda place, q: place - stride * q)


def _backward_axis(tile: int, window: int, stride: int, padding: int) -> _Axis:
    """As `_forward_axis`, of dx: input q of a tile of `stride * tile` was read by output `first + place` through i, where
    `stride * (first + place) + i - padding == q`."""
    first, last = -((window - 1 - padding) // stride), (stride * tile - 1 + padding) // stride
    return _axis(
        stride * tile, tile, -first, last - first + 1, window, lambda place, q: q + padding - stride * (first + place)
    )


def _axis(tile, stride, low, length, window, kernel_place) -> _Axis:
    place, q, i = np.ogrid[:length, :tile, :window]
    return _Axis(tile, stride, low, kernel_place(place, q) == i)


def _in_tiles(x, kernel, axes, joined, size):
    """The convolution of `x` `[N, H, W, G*C]` with `kernel` `[KH, KW, C, G, O]`: `[N, *size, G*O]`."""
    n, (th, tw) = x.shape[0], (axis.tile for axis in axes)
    groups = kernel.shape[3] // joined
    count = [-(-places // axis.tile) for places, axis in zip(size, axes, strict=True)]
    wide = _wide_kernel(kernel, axes, joined)
    needed = [axis.stride * (c - 1) + length for axis, c, length in zip(axes, count, wide.shape, strict=False)]
    # High padding may be negative: rows that no window reads.
    padding = [(axis.low, most - axis.low - had) for axis, most, had in zip(axes, needed, x.shape[1:3], strict=True)]
    y = _lax(x, wide, [axis.stride for axis in axes], padding, groups)
    y = y.reshape(n, *count, groups, th, tw, -1).transpose(0, 1, 4, 2, 5, 3, 6)  # [N,A,B,G,TH,TW,O] -> [N,A,TH,B,TW,G,O]
    return y.reshape(n, count[0] * th, count[1] * tw, -1)[:, : size[0], : size[1]]


def _wide_kernel(kernel, axes, joined):
    """`[KH, KW, C, G, O]` -> `[L, L', J*C, G/J * TH * TW * J*O]`, with zeros where a place, or a group, has no part."""
    (rows, columns), (kh, kw, c, _, out) = axes, kernel.shape
    places = np.einsum("lqi,mrj->lmqrij", rows.places, columns.places)  # in one product, which compiles fastest
    length, across, th, tw = places.shape[:4]
    places_by_kernel = jnp.asarray(places.reshape(-1, kh * kw), kernel.dtype)
    wide = jnp.matmul(places_by_kernel, kernel.reshape(kh * kw, -1), precision=lax.Precision.HIGHEST)
    wide = wide.reshape(length, across, 1, th, tw, c, -1, joined, out)
    if joined > 1:  # [L, L', J, TH, TW, C, G/J, J, O]: inputs of a group go to its own outputs
        wide = jnp.where(jnp.eye(joined, dtype=bool)[:, None, None, None, None, :, None], wide, 0)
    return wide.transpose(0, 1, 2, 5, 6, 3, 4, 7, 8).reshape(length, across, joined * c, -1)


def _by_group(kernel, groups):
    """`[KH, KW, C, G*O]` -> `[KH, KW, C, G, O]`."""
    return kernel.reshape(*kernel.shape[:3], groups, -1)


def output_size(x, kernel, stride, padding) -> tuple[int, int]:
    """Height and width of a convolution's output, in pixels."""
    height, width = ((x.shape[axis] + 2 * padding - kernel.shape[axis - 1]) // stride + 1 for axis in (1, 2))
    return height, width


def _pad(x, low, size):
    """`[N, H, W, C]` with zeros in front and, to `size`, behind; what is beyond is cut off."""
    high = [most - before - had for most, before, had in zip(size, low, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, b, 0) for a, b in zip(low, high, strict=True)), (0, 0, 0)])


def _lax(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
