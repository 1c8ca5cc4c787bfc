"""Losses, one value per example."""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy with label smoothing: `(1 - s) * sum(-t * log p) + s * mean(-log p)`.

    The mean over the classes is of Szegedy et al., 2015, arXiv:1512.00567, section 7, with a uniform prior.

    Args:
      logits: `[N, C]`, float32 or float64.
      targets: `[N, C]`, rows that sum to one: one-hot, or a mixture of one-hots.
      label_smoothing: `s`, in `[0, 1)`.

    Returns:
      `[N]`, of the logits' dtype.
    """
    log_p = jax.nn.log_softmax(logits)
    return -((1 - label_smoothing) * jnp.sum(targets * log_p, -1) + label_smoothing * jnp.mean(log_p, -1))
