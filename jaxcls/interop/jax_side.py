"""The JAX half of a comparison: what a network of jaxcls computes, as NumPy arrays, by the very code that training runs."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from jaxcls import xla
from jaxcls.config import OptimConfig, ScheduleConfig
from jaxcls.models import layers
from jaxcls.models.resnet import BatchNorm, Bottleneck, Conv, Dense, ResNet, Stem
from jaxcls.train import optim, steps
from jaxcls.train.losses import cross_entropy
from jaxcls.train.state import TrainState

RECORDED = (Conv, BatchNorm, Dense, Stem, Bottleneck)


def forward(model: ResNet, variables: Mapping[str, Any], images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Evaluation: the output of each convolution, BN, dense layer, block and stage, and `logits`, in order of depth.

    Args:
      model: its dtypes do not matter.
      images: `[N, H, W, 3]`, normalised.
      dtype: `float32` or `float64`, of the whole computation.
    """
    with jax.enable_x64(True):
        model = model.clone(dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
        variables = _cast(variables, dtype)

        @functools.partial(xla.jit, train=False)
        def run(variables, images):
            logits, recorded = model.apply(
                variables,
                images,
                train=False,
                mutable="intermediates",
                capture_intermediates=lambda module, name: name == "__call__" and isinstance(module, RECORDED),
            )
            found = {"/".join(path[:-1]): output for path, (output,) in flatten_dict(recorded["intermediates"]).items()}
            return logits, found | _without_gates(model, variables, found)

        logits, found = jax.device_get(run(variables, jnp.asarray(images, dtype)))
    for index, depth in enumerate(model.spec.depths, 1):
        found[f"stage{index}"] = found[f"stage{index}/block{depth - 1}"]
    return {name: found[name] for name in layer_names(model) if name in found} | {"logits": logits}


def _without_gates(model: ResNet, variables: Mapping[str, Any], found: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The outputs of BN layers whose own ones have a gate in them."""
    outputs = {}
    for name in found:
        if model.spec.squeeze_excite and name.endswith("/bn3"):
            stage, block, bn = name.split("/")
            parameters, statistics = (variables[part][stage][block][bn] for part in ("params", "batch_stats"))
            moments = statistics["mean"], statistics["var"]
            x = found[f"{stage}/{block}/conv3"]
            outputs[name] = layers.normalize(x, *moments, parameters["scale"], parameters["bias"], model.bn_epsilon)
    return outputs


def layer_names(model: ResNet) -> list[str]:
    """Names of what `forward` records, in order of depth, the logits apart."""
    names = ["stem/conv", "stem/bn", "stem"]
    for stage, depth in enumerate(model.spec.depths, 1):
        for block in range(depth):
            parts = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "se/squeeze", "se/expand")
            names += [f"stage{stage}/block{block}/{part}" for part in (*parts, "shortcut/conv", "shortcut/bn")]
            names.append(f"stage{stage}/block{block}")
        names.append(f"stage{stage}")
    return names


def gradients(
    model: ResNet, variables: Mapping[str, Any], images: np.ndarray, targets: np.ndarray, smoothing: float
) -> tuple[float, dict[str, Any]]:
    """The smoothed loss of a training forward pass in float64, and its gradient: a tree like `variables["params"]`."""
    with jax.enable_x64(True):
        model = model.clone(dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64"))
        variables = _cast(variables, "float64")

        @functools.partial(xla.jit, train=True)
        def run(params, images):
            def loss_of(params):
                logits, _ = model.apply(variables | {"params": params}, images, train=True, mutable="batch_stats")
                return cross_entropy(logits, jnp.asarray(targets), smoothing).mean()

            return jax.value_and_grad(loss_of)(params)

        loss, gradient = jax.device_get(run(variables["params"], jnp.asarray(images)))
    return float(loss), gradient


class Trainer:
    """Steps of training as jaxcls runs it, in float64 on one device."""

    def __init__(
        self,
        model: ResNet,
        variables: Mapping[str, Any],
        optimizer: OptimConfig,
        schedule: ScheduleConfig,
        *,
        peak_lr: float,
        epochs: float,
        steps_per_epoch: int,
        **step: Any,
    ):
        """`step`: `label_smoothing` and `augment` of `steps.make_train_step`."""
        with jax.enable_x64(True):
            model = model.clone(dtype=jnp.dtype("float64"), param_dtype=jnp.dtype("float64"))
            rate = optim.make_schedule(schedule, peak_lr=peak_lr, epochs=epochs, steps_per_epoch=steps_per_epoch)
            self._optimizer = optim.make_optimizer(optimizer, rate)
            mesh = steps.make_mesh(jax.devices()[:1])
            self._replicated = jax.sharding.NamedSharding(mesh, steps.REPLICATED)
            self._step = steps.make_train_step(model, self._optimizer, rate, mesh, **step)
            params = jax.tree.map(np.asarray, variables["params"])
            self.reset(0, variables, jax.tree.map(np.zeros_like, params))

    def step(self, images: np.ndarray, labels: np.ndarray, key: jax.Array) -> tuple[float, float]:
        """One step on uint8 `[N, H, W, 3]` and int32 `[N]`; returns the loss and the learning rate."""
        with jax.enable_x64(True):
            self._state, metrics = self._step(self._state, images, labels, key)
            return float(metrics["loss"]), float(metrics["lr"])

    def variables(self) -> dict[str, Any]:
        """`{"params", "batch_stats"}` as NumPy arrays."""
        return jax.device_get(self._state.variables)

    def reset(self, step: int, variables: Mapping[str, Any], momentum: Mapping[str, Any]) -> None:
        """Goes on from a state that comes from elsewhere; `momentum` is a tree like the parameters."""
        with jax.enable_x64(True):
            # Copies: the step takes its arguments' memory.
            params, batch_stats, trace = (
                _cast(tree, "float64") for tree in (variables["params"], variables["batch_stats"], momentum)
            )
            opt_state = optax.tree_utils.tree_set(self._optimizer.init(params), trace=trace, count=jnp.int32(step))
            state = TrainState(jnp.int32(step), params, batch_stats, opt_state)
            self._state = jax.device_put(state, self._replicated)


def _cast(tree: Any, dtype: str) -> Any:
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype), tree)
