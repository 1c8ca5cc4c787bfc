"""Dense 3x3 convolution in fewer multiplications, for CPUs: F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2015), after Winograd.

A tile of 2 outputs y of one axis is made of 4 inputs d and 3 places of the kernel g by 4 multiplications in place of 6:

    y = OUTPUTS @ ((KERNEL @ g) * (INPUTS @ d))

and one of 2 x 2 by 16 in place of 36, when each matrix is applied to the rows and then to the columns. With channels, each
multiplication is a matrix product over them. Results differ from a plain sum's by about twice the rounding of that.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_INPUTS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_KERNEL_2D = np.kron(_KERNEL, _KERNEL)  # [4*4, 3*3], of both axes: one product compiles faster than 16 sums
_OUTPUTS = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """As `jaxcls.models.convolution.conv`, of a 3x3 kernel with stride 1 and one group."""
    height, width = (size + 2 * padding - 2 for size in x.shape[1:3])
    channels, out = kernel.shape[2:]
    kernels = jnp.matmul(_KERNEL_2D.astype(kernel.dtype), kernel.reshape(9, -1), precision=lax.Precision.HIGHEST)
    kernels = lax.optimization_barrier(kernels.reshape(4, 4, channels, out))
    products = [
        [tiles.reshape(-1, channels) @ matrix for tiles, matrix in zip(*row, strict=True)]
        for row in zip(_input_tiles(x, padding, height, width), kernels, strict=True)
    ]
    pixels = _both_axes(_OUTPUTS, products)  # [2][2] of [N*A*B,O]
    count = (x.shape[0], -(-height // 2), -(-width // 2), out)
    y = jnp.stack([jnp.stack([pixel.reshape(count) for pixel in row], 3) for row in pixels], 2)  # [N,A,2,B,2,O]
    return y.reshape(count[0], 2 * count[1], 2 * count[2], out)[:, :height, :width]


def _forward(x, kernel, stride, padding, groups):
    return convolution(x, kernel, stride, padding, groups), (x, kernel)


def _backward(stride, padding, groups, saved, dy):
    x, kernel = saved
    dx = convolution(dy, kernel[::-1, ::-1].swapaxes(2, 3), stride, 2 - padding, groups)
    return dx, _dw(x, dy, padding)


convolution.defvjp(_forward, _backward)


def _dw(x, dy, padding):
    height, width, out = dy.shape[1:]
    channels = x.shape[3]
    inputs = _input_tiles(x, padding, height, width)
    dy = _pad(dy, 0, (height + height % 2, width + width % 2))
    pixels = [[dy[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
    products = [
        tiles.reshape(-1, channels).T @ gradients.reshape(-1, out)
        for row in zip(inputs, _both_axes(_OUTPUTS.T, pixels), strict=True)
        for tiles, gradients in zip(*row, strict=True)
    ]
    products = jnp.stack(products).reshape(16, -1)
    dw = jnp.matmul(_KERNEL_2D.T.astype(dy.dtype), products, precision=lax.Precision.HIGHEST)
    return dw.reshape(3, 3, channels, out)


def _input_tiles(x, padding, height, width):
    """`[4][4]` of `[N, A, B, C]`, for A x B tiles of `height` x `width` outputs."""
    a, b = -(-height // 2), -(-width // 2)
    x = _pad(x, padding, (2 * a + 2, 2 * b + 2))
    return _both_axes(_INPUTS, [[x[:, i : i + 2 * a - 1 : 2, j : j + 2 * b - 1 : 2] for j in range(4)] for i in range(4)])


def _pad(x, low, size):
    """`[N, H, W, C]` with zeros in front and, to `size`, behind, in memory: else XLA:CPU computes what `x` is made of again
    for each of 16 tiles."""
    high = [most - low - had for most, had in zip(size, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (low, high[0], 0), (low, high[1], 0), (0, 0, 0)])
    return lax.optimization_barrier(x)


def _both_axes(matrix, rows):
    """`matrix @ rows @ matrix.T`, of a list of lists of arrays."""
    columns = [_apply(matrix, column) for column in zip(*rows, strict=True)]
    return [_apply(matrix, row) for row in zip(*columns, strict=True)]


def _apply(matrix, items):
    return [
        functools.reduce(operator.add, (float(weight) * item for weight, item in zip(row, items, strict=True) if weight))
        for row in matrix
    ]
