"""Dtype policies: which numbers are kept, and which ones the convolutions compute with."""

from typing import NamedTuple

import jax.numpy as jnp


class Policy(NamedTuple):
    """Dtypes of a run.

    Attributes:
      param_dtype: parameters, BN statistics, classifier, softmax, loss and optimizer state.
      compute_dtype: activations, and kernels inside convolutions.
    """

    param_dtype: jnp.dtype
    compute_dtype: jnp.dtype


POLICIES = {
    "fp32": Policy(jnp.dtype("float32"), jnp.dtype("float32")),
    "bf16": Policy(jnp.dtype("float32"), jnp.dtype("bfloat16")),
    "fp64": Policy(jnp.dtype("float64"), jnp.dtype("float64")),  # for tests and comparisons; needs jax_enable_x64
}
