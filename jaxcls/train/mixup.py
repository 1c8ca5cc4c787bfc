"""Mixup (Zhang et al., 2017, arXiv:1710.09412) on the device: one Beta draw a batch, partners inside small blocks.

Partners are permuted inside fixed blocks of consecutive records that never straddle a device, so that the mixed batch
is the same on any number of devices, and nothing is exchanged between them.
"""

import math

import jax
import jax.numpy as jnp

BLOCK = 8  # records, or the largest power of two below it that divides the global batch


def block_size(batch_size: int) -> int:
    """Records of a mixing block for a global batch of `batch_size` records."""
    return math.gcd(batch_size, BLOCK)


def draw(
    key: jax.Array, records: int, *, alpha: float, block: int, first_block: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """The batch's weight `w ~ Beta(alpha, alpha)`, a scalar, and each record's partner, its position: `[records]` int.

    Arguments as of `mixup`.
    """
    key_weight, key_partner = jax.random.split(key)

    def permute(index):
        return jax.random.permutation(jax.random.fold_in(key_partner, index), block)

    blocks = jnp.arange(records // block)
    # [blocks, block] positions inside each block -> [records] positions in this share
    partner = (jax.vmap(permute)(blocks + first_block) + blocks[:, None] * block).reshape(-1)
    return jax.random.beta(key_weight, alpha, alpha), partner


def mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float, block: int, first_block: jax.Array | int = 0
) -> tuple[jax.Array, jax.Array]:
    """Mixes every record with a partner of its block: `w * x + (1 - w) * x[partner]`, `w ~ Beta(alpha, alpha)`.

    Args:
      key: the same on every device.
      images: `[N, H, W, 3]` float, this device's share of the batch.
      targets: `[N, C]` float.
      alpha: of the Beta distribution, above 0.
      block: records in a block; divides N.
      first_block: index in the global batch of this share's first block.

    Returns:
      mixed images and targets, of the shapes and dtypes given.
    """
    weight, partner = draw(key, images.shape[0], alpha=alpha, block=block, first_block=first_block)

    def mix(x):
        w = weight.astype(x.dtype)
        return w * x + (1 - w) * jnp.take(x, partner, axis=0)

    return mix(images), mix(targets)
