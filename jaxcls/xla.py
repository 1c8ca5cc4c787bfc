"""What jaxcls asks of XLA, in one place: options of the compiler, for speed alone.

They go with each program, so a process's other programs are compiled as ever. An option that the user has set in
`XLA_FLAGS` stays as it is there, and one that this version of XLA does not know is left out.
"""

import functools
import os
from collections.abc import Callable

import jax

OPTIONS = {
    "cpu": {
        # XLA 0.10 and 0.11 hand convolutions to YNNPACK, whose forward pass takes twice as long as Eigen's and whose kernel
        # gradient ten times. Of its operations, sums are faster here, and in training (below) matrix products.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE",
        # This pass takes `optimization_barrier` away, and with it what keeps `layers.materialize` in memory.
        "xla_disable_hlo_passes": "cse_barrier_expander",
    },
}
TRAINING = {  # over `OPTIONS`, in programs that train
    "cpu": {
        # In inference XLA fuses what follows a product into it, and YNNPACK's is then slower than Eigen's.
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT",
    },
}


def jit(function: Callable, *, train: bool, **arguments) -> Callable:
    """`jax.jit` for a program as a whole, with the options of the platform; JAX refuses them inside of another `jit`.

    Args:
      function: of arrays.
      train: whether it computes gradients of a network.
      arguments: of `jax.jit`.
    """
    return jax.jit(function, compiler_options=compiler_options(jax.default_backend(), train), **arguments)


@functools.cache
def compiler_options(platform: str, train: bool) -> dict[str, str]:
    """Those of `OPTIONS`, and in training of `TRAINING`, for a platform, as JAX names it; without those that the user has
    set or that XLA does not know."""
    own = os.environ.get("XLA_FLAGS", "")
    wanted = OPTIONS.get(platform, {}) | (TRAINING.get(platform, {}) if train else {})
    wanted = {name: value for name, value in wanted.items() if name not in own}
    return {name: value for name, value in wanted.items() if _known(name, value)}


def _known(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
