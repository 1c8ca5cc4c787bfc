"""Dense 3x3 convolution in fewer multiplications, for CPUs: F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (2015), after Winograd.

A tile of 2 x 2 outputs reads 4 x 4 inputs. In one axis, with inputs d and kernel g, its outputs are

    y = outputs((G g) * inputs(d)),    inputs: d0 - d2, d1 + d2, d2 - d1, d1 - d3
                                       G g:    g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2
                                       outputs: m0 + m1 + m2, m1 - m2 - m3

and in two axes the same by rows and by columns: 16 multiplications in place of 36, each of which is a matrix product over
the channels. Results differ from a plain sum's by about twice the rounding of that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_KERNEL = np.kron(_G, _G)  # [4*4, 3*3], of both axes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int) -> jax.Array:
    """As `jaxcls.models.convolution.conv`, of a 3x3 kernel with stride 1 and one group."""
    height, width = (size + 2 * padding - 2 for size in x.shape[1:3])
    channels, out = kernel.shape[2:]
    products = [
        [tile.reshape(-1, channels) @ by_row_and_column for tile, by_row_and_column in zip(*row, strict=True)]
        for row in zip(_input_tiles(x, padding, height, width), _transform_kernel(kernel), strict=True)
    ]
    tiles = _both_axes(_outputs, products)  # [2][2] of [N*A*B,O]
    count = (x.shape[0], -(-height // 2), -(-width // 2), out)
    y = jnp.stack([jnp.stack([tile.reshape(count) for tile in row], 3) for row in tiles], 2)  # [N,A,2,B,2,O]
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
    dy = lax.pad(dy, jnp.zeros((), dy.dtype), [(0, 0, 0), (0, height % 2, 0), (0, width % 2, 0), (0, 0, 0)])
    dy = lax.optimization_barrier(dy)
    corners = [[dy[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)]
    products = [
        tile.reshape(-1, channels).T @ product.reshape(-1, out)
        for row in zip(_input_tiles(x, padding, height, width), _both_axes(_outputs_transposed, corners), strict=True)
        for tile, product in zip(*row, strict=True)
    ]
    return (_KERNEL.T.astype(x.dtype) @ jnp.stack(products).reshape(16, -1)).reshape(3, 3, channels, out)


def _input_tiles(x, padding, height, width):
    """`[4][4]` of `[N, A, B, C]`, for A x B tiles of `height` x `width` outputs."""
    a, b = -(-height // 2), -(-width // 2)
    high = [2 * count + 2 - padding - size for count, size in zip((a, b), x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (padding, high[0], 0), (padding, high[1], 0), (0, 0, 0)])
    x = lax.optimization_barrier(x)  # else XLA:CPU computes what x is made of again for each of the 16
    return _both_axes(_inputs, [[x[:, i : i + 2 * a - 1 : 2, j : j + 2 * b - 1 : 2] for j in range(4)] for i in range(4)])


def _transform_kernel(kernel):
    """`[3, 3, C, O]` -> `[4, 4, C, O]`."""
    channels, out = kernel.shape[2:]
    wide = jnp.matmul(_KERNEL.astype(kernel.dtype), kernel.reshape(9, -1), precision=lax.Precision.HIGHEST)
    return lax.optimization_barrier(wide.reshape(4, 4, channels, out))


def _both_axes(transform, rows):
    """`transform` of a list's items, for the rows and then for the columns of a list of lists."""
    columns = [transform(*column) for column in zip(*rows, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _inputs(d0, d1, d2, d3):
    return d0 - d2, d1 + d2, d2 - d1, d1 - d3


def _outputs(m0, m1, m2, m3):
    return m0 + m1 + m2, m1 - m2 - m3


def _outputs_transposed(y0, y1):
    return y0, y0 + y1, y0 - y1, -y1
