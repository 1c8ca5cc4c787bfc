"""Metrics as masked sums and counts: added up over batches and devices, divided once."""

import jax
import jax.numpy as jnp


def evaluation_sums(logits: jax.Array, losses: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the records that count.

    Args:
      logits: `[N, C]`.
      losses: `[N]`.
      labels: `[N]` int.
      mask: `[N]`, 1 for a record and 0 for padding.

    Returns:
      `count`, `loss`, `top1` and `top5` as sums, scalars. A label is among the top k when fewer than k classes come
      before it in the order of descending logits, equal ones by index.
    """
    own = jnp.take_along_axis(logits, labels[:, None], -1)  # [N,1]
    earlier = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & earlier), -1)  # [N,C] -> [N]
    rank = jnp.where(jnp.isnan(own[:, 0]), jnp.iinfo(rank.dtype).max, rank)  # nothing is greater than NaN; it is wrong
    real = mask > 0
    return {
        "count": jnp.sum(mask),
        "loss": jnp.sum(jnp.where(real, losses, 0)),
        "top1": jnp.sum(jnp.where(real, rank < 1, False)).astype(mask.dtype),
        "top5": jnp.sum(jnp.where(real, rank < 5, False)).astype(mask.dtype),
    }


def divide(sums: dict[str, float]) -> dict[str, float]:
    """Means from sums: the loss as it is, accuracies in percent.

    Args:
      sums: `count`, `loss`, `top1`, `top5` added up over all batches.
    """
    count = max(sums["count"], 1)
    return {"loss": sums["loss"] / count, "top1": 100 * sums["top1"] / count, "top5": 100 * sums["top5"] / count}
