"""Initial values of a network's variables, drawn on the host.

Nothing is compiled for them (as programs, those of ResNet-50 take the compiler 13 s on two cores), and a seed gives the
same numbers on every platform and with every number of devices.
"""

import contextvars
import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

# Makers of the variables' values by their paths, while they are listed.
_FOUND: contextvars.ContextVar[dict[tuple[str, ...], Callable] | None] = contextvars.ContextVar("found", default=None)


@dataclasses.dataclass(frozen=True)
class Initial:
    """Initial values: `scale` times a standard normal, or uniform between -1 and 1, or `scale` itself."""

    distribution: Literal["normal", "uniform", "constant"]
    scale: float

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """As linen asks for them, in `Module.init`: of other numbers than `draw`'s, equally distributed."""
        if self.distribution == "constant":
            return jnp.full(shape, self.scale, dtype)
        if self.distribution == "normal":
            return self.scale * jax.random.normal(key, shape, dtype)
        return self.scale * jax.random.uniform(key, shape, dtype, -1)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """On the host; `dtype` is float32 or float64."""
        if self.distribution == "constant":
            return np.full(shape, self.scale, dtype)
        normal = self.distribution == "normal"
        values = rng.standard_normal(shape, dtype) if normal else 2 * rng.random(shape, dtype) - 1
        return values * dtype.type(self.scale)


class Module(nn.Module):
    """A linen module whose variables `initial_variables` can make: each parameter has an `Initial`."""

    @nn.nowrap
    def param(self, name: str, init_fn: Initial, *arguments, **options):
        """As linen's."""
        if self._note("params", name, init_fn):
            self.put_variable("params", name, jnp.zeros(*arguments))
        # linen would trace `init_fn` for its shape: a tenth of the time that a network takes.
        if self.has_variable("params", name) and (value := self.get_variable("params", name)).shape == arguments[0]:
            return value
        return super().param(name, init_fn, *arguments, **options)

    @nn.nowrap
    def variable(self, col: str, name: str, init_fn: Callable, *arguments, **options):
        """As linen's; `init_fn` is called with `arguments`."""
        self._note(col, name, functools.partial(init_fn, *arguments))
        return super().variable(col, name, init_fn, *arguments, **options)

    @nn.nowrap
    def _note(self, collection: str, name: str, init_fn: Callable) -> bool:
        """Whether variables are being listed."""
        if (found := _FOUND.get()) is not None:
            found[collection, *self.path, name] = init_fn
        return found is not None


def variable_shapes(model: nn.Module) -> dict[str, Any]:
    """The variables that `model.init` makes, as `jax.ShapeDtypeStruct`s: nested dicts, without the work."""
    return _traced(model)[0]


def initial_variables(model: nn.Module, seed: int) -> dict[str, Any]:
    """The variables of a fresh network, in host memory; each depends on the seed, its path and its shape alone.

    Args:
      model: one whose variables belong to modules of class `Module`.
      seed: at least 0.
    """
    shapes, found = _traced(model)

    def make(path: tuple[str, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        init = found[path]
        if not isinstance(init, Initial):
            return np.asarray(init())
        return init.draw(np.random.default_rng((seed, zlib.crc32("/".join(path).encode()))), shape.shape, shape.dtype)

    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = ((tuple(key.key for key in path), shape) for path, shape in leaves)
    return unflatten_dict({path: make(path, shape) for path, shape in paths})


@functools.lru_cache(maxsize=8)
def _traced(model: nn.Module) -> tuple[dict[str, Any], dict[tuple[str, ...], Callable]]:
    """The variables' shapes, and by their paths what makes them."""
    # No parameter's shape depends on the image size; 32 px are the least that every stage can take.
    key, image = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((1, 32, 32, 3), model.dtype)
    found: dict[tuple[str, ...], Callable] = {}
    token = _FOUND.set(found)
    try:
        return jax.eval_shape(lambda key, x: model.init(key, x, train=False), key, image), found
    finally:
        _FOUND.reset(token)
