"""The arithmetic of the networks as pure functions of arrays, in NHWC; parameters come in as arguments."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxcls.models.convolution import shifted_views

Groups = tuple[tuple[int, ...], ...]  # of places on a mapped axis


def batch_normalize(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    axis_name: str | None = None,
    groups: Groups | None = None,
    gate: Callable | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation by the batch's own moments (Ioffe and Szegedy, 2015, arXiv:1502.03167), and these moments.

    Its gradient needs nothing but `x`, and takes it, with that of the result, through memory twice: for two sums, as the
    moments are, and for the gradient of `x`. A gate adds no pass to it. The moments are for running statistics: do not
    differentiate them. The variance is the mean of squares less the square of the mean, in float32: where a channel's mean
    is a hundred times its deviation, three digits of it are left.

    Args:
      x: `[N, H, W, C]`.
      scale, bias: `[C]`, float32 or float64.
      epsilon: added to the variance.
      axis_name: mapped axis over whose devices the batch is spread, or `None` for this device's share alone.
      groups: of places on that axis; the devices of each make up a batch of their own. `None`: all of them do together.
      gate: `[N, C] -> [N, C]`, in the moments' dtype: the result's mean over each image to a factor for it.

    Returns:
      `[N, H, W, C]` of `x`'s dtype, and mean and biased variance, `[C]`, float32 (float64 if `x` is).
    """
    if gate is None:
        return _batch_normalize(x, scale, bias, epsilon, axis_name, groups)
    full = _full_precision(x)
    pooled, mean, variance = _pooled_moments(full, axis_name, groups)
    return _gated(full, pooled, *_folded(mean, variance, scale, bias, epsilon), gate).astype(x.dtype), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_normalize(x, scale, bias, epsilon, axis_name, groups):
    """Without a gate, and with its gradient written out: JAX's own takes as many passes, but half as many programs more."""
    return _batch_normalized(x, scale, bias, epsilon, axis_name, groups)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _batch_normalized(x, scale, bias, epsilon, axis_name, groups):
    mean, variance = batch_moments(x, axis_name, groups)
    return normalize(x, mean, variance, scale, bias, epsilon), mean, variance


def _batch_normalize_forward(x, scale, bias, epsilon, axis_name, groups):
    y, mean, variance = _batch_normalized(x, scale, bias, epsilon, axis_name, groups)
    return (y, mean, variance), (x, scale, mean, variance)


def _batch_normalize_backward(epsilon, axis_name, groups, saved, gradients):
    return _batch_normalize_gradients(epsilon, axis_name, groups, *saved, gradients[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _batch_normalize_gradients(epsilon, axis_name, groups, x, scale, mean, variance, dy):
    # With z = (x - mean) / deviation: dx = scale / deviation * (dy - mean(dy) - z * mean(dy * z)).
    dtype, dy = x.dtype, dy.astype(variance.dtype)
    x = x.astype(variance.dtype)
    inverse = lax.rsqrt(variance + epsilon)
    dbias = dy.sum((0, 1, 2))
    dscale = ((dy * x).sum((0, 1, 2)) - mean * dbias) * inverse
    count = x.size // x.shape[-1]
    mean_dy, mean_dyz = _mean_over((dbias / count, dscale / count), axis_name, groups)
    slope = scale * inverse
    tilt = -slope * inverse * mean_dyz
    # As in `normalize`, one number a channel beside the two products.
    return (slope * dy + (tilt * x - (slope * mean_dy + tilt * mean))).astype(dtype), dscale, dbias


_batch_normalize.defvjp(_batch_normalize_forward, _batch_normalize_backward)


def batch_moments(x: jax.Array, axis_name: str | None = None, groups: Groups | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each channel over a batch, in one pass over memory; see `batch_normalize`."""
    x = _full_precision(x)
    return _moments(x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2)), axis_name, groups)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _pooled_moments(x, axis_name, groups):
    pooled = x.mean((1, 2))
    return pooled, *_moments(pooled.mean(0), jnp.square(x).mean((0, 1, 2)), axis_name, groups)


def _moments(mean, mean_of_squares, axis_name, groups):
    mean, mean_of_squares = _mean_over((mean, mean_of_squares), axis_name, groups)
    return mean, jnp.maximum(mean_of_squares - jnp.square(mean), 0)  # rounding must not make a variance negative


def _full_precision(x: jax.Array) -> jax.Array:
    """`x` in the dtype of sums: at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mean_over(tree, axis_name: str | None, groups: Groups | None):
    """Of devices, if there is an axis."""
    return tree if axis_name is None else lax.pmean(tree, axis_name, axis_index_groups=groups)


def normalize(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    gate: Callable | None = None,
) -> jax.Array:
    """Batch normalisation with given moments: `(x - mean) / sqrt(variance + epsilon) * scale + bias`.

    Args:
      x: `[N, H, W, C]`.
      mean, variance, scale, bias: `[C]`, float32 or float64.
      gate: as for `batch_normalize`.

    Returns:
      `[N, H, W, C]` of `x`'s dtype.
    """
    slope, shift = _folded(mean, variance, scale, bias, epsilon)
    if gate is None:
        return (x * slope + shift).astype(x.dtype)
    full = _full_precision(x)
    return _gated(full, full.mean((1, 2)), slope, shift, gate).astype(x.dtype)


def _folded(mean, variance, scale, bias, epsilon):
    """One multiply-add a pixel, computed in full precision and rounded once."""
    slope = scale * lax.rsqrt(variance + epsilon)
    return slope, bias - mean * slope


def _gated(x, pooled, slope, shift, gate):
    # What is normalised has no place in memory: its mean over an image follows from that of x, and the gate joins the slope.
    factor = gate(pooled * slope + shift)
    return _scaled_images(x, factor * slope, factor * shift)


@jax.jit
def _scaled_images(x, slope, shift):
    return x * slope[:, None, None] + shift[:, None, None]  # [N,H,W,C], [N,C] -> [N,H,W,C]


def max_pool(x: jax.Array, *, window: int = 3, stride: int = 2, padding: int = 1) -> jax.Array:
    """Maximum over square windows, `[N, H, W, C]` -> `[N, H', W', C]`; padding never wins.

    Among equal values the gradient goes to the first in row-major order, as in PyTorch.
    """
    if jax.default_backend() == "cpu":
        # Columns, then rows: six strided slices. XLA:CPU's own gradient (select-and-scatter) is several times slower.
        x = _first_maximum(shifted_views(x, (1, window), (1, stride), (0, padding), -jnp.inf))
        return _first_maximum(shifted_views(x, (window, 1), (stride, 1), (padding, 0), -jnp.inf))
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), (padding, padding), (padding, padding), (0, 0)),
    )


def _first_maximum(views: list[jax.Array]) -> jax.Array:
    best = views[0]
    for view in views[1:]:
        wins = (view > best) | jnp.isnan(view)  # NaN stays NaN, as in PyTorch
        best = jnp.where(wins, view, best)  # jnp.maximum would split the gradient of a tie
    return best


def excitation(pooled: jax.Array, squeeze: Callable, expand: Callable) -> jax.Array:
    """The gate of squeeze-and-excitation (Hu et al., 2018, arXiv:1709.01507): a number in (0, 1) for each channel.

    Args:
      pooled: `[N, C]`, each channel's mean over an image.
      squeeze, expand: dense layers `[N, C] -> [N, width]` and back.
    """
    return jax.nn.sigmoid(expand(jax.nn.relu(squeeze(pooled))))


def bottleneck(x: jax.Array, branch: Callable, shortcut: Callable) -> jax.Array:
    """Residual wiring of a block: `relu(branch(x) + shortcut(x))` (He et al., 2015, arXiv:1512.03385)."""
    return _kept_relu(branch(x) + shortcut(x))


@jax.custom_vjp
def _kept_relu(x):
    """ReLU whose result is kept for the backward pass, where it tells which elements had a gradient: one array in place of
    the two whose sum it was."""
    return materialize(jax.nn.relu(x))


def _kept_relu_forward(x):
    y = _kept_relu(x)
    return y, y


def _kept_relu_backward(y, dy):
    return (jnp.where(y > 0, materialize(dy), 0),)


_kept_relu.defvjp(_kept_relu_forward, _kept_relu_backward)


def materialize(x: jax.Array) -> jax.Array:
    """`x`, written to memory once on a CPU.

    XLA:CPU would compute a block's output again wherever it is read, and in it the sums of all blocks before it: time that
    grows with the square of the depth. Other platforms fuse it as they like. See `jaxcls.xla`.
    """
    return lax.optimization_barrier(x) if jax.default_backend() == "cpu" else x
