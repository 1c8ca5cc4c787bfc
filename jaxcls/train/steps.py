"""The compiled steps: pure functions of (state, batch, key), the same on one device and on a thousand.

Each device runs the function below on its share of the batch (`shard_map` over a one-axis mesh), as in the reference, so
BN normalises by its own share's moments. What devices must agree on meets in one all-reduce per step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls.models.resnet import ResNet
from jaxcls.train.augment import NO_AUGMENTATION, Augment, augment_batch, normalize_images
from jaxcls.train.losses import cross_entropy
from jaxcls.train.metrics import evaluation_sums
from jaxcls.train.state import TrainState

AXIS = "data"  # the mesh's only axis
REPLICATED, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def make_mesh(devices=None) -> Mesh:
    """A mesh of one axis, `data`, over all devices of all processes (or those given)."""
    return jax.sharding.Mesh(jax.devices() if devices is None else devices, (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: split along its first axis."""
    return NamedSharding(mesh, SPLIT)


# No parameter's shape depends on the image size; 32 px are the least that every stage can take.
_SMALLEST_IMAGE = (1, 32, 32, 3)


def init_state(model: ResNet, optimizer: optax.GradientTransformation, mesh: Mesh, key: jax.Array) -> TrainState:
    """The state of a fresh run, replicated over the mesh."""
    # lazy_init runs the initialisers alone, one by one: they compile once a shape, where `jit(model.init)` takes the
    # compiler through every one of them, three times as long for the deep networks.
    variables = model.lazy_init(key, jax.ShapeDtypeStruct(_SMALLEST_IMAGE, model.dtype), train=False)
    params = variables["params"]
    state = TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], jax.jit(optimizer.init)(params))
    return jax.device_put(state, NamedSharding(mesh, REPLICATED))


def abstract_state(model: ResNet, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The shapes, dtypes and shardings of `init_state`'s result, without the work."""

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.zeros(_SMALLEST_IMAGE, model.dtype), train=False)
        params = variables["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, variables["batch_stats"], optimizer.init(params))

    replicated = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        jax.eval_shape(init, jax.random.key(0)),
    )


def make_train_step(
    model: ResNet,
    optimizer: optax.GradientTransformation,
    schedule: Callable,
    mesh: Mesh,
    *,
    label_smoothing: float,
    augment: Augment = NO_AUGMENTATION,
) -> Callable:
    """The compiled `(state, images, labels, key) -> (state, metrics)`.

    `images` is uint8 `[B, S, S, 3]` and `labels` int32 `[B]`, B the global batch, split over the mesh; `key` is the run's
    key, the same at every step. `metrics` are replicated scalars: `loss` (the mean over the global batch, of the mixed
    and smoothed targets) and `lr`. The state is donated: its old buffers are gone after the call.
    """
    dtype = model.param_dtype

    def loss_of(params, batch_stats, images, targets):
        params = {part: lax.stop_gradient(p) if part in model.frozen else p for part, p in params.items()}
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, images, train=True, mutable="batch_stats")
        return cross_entropy(logits, targets, label_smoothing).mean(), updates["batch_stats"]

    def local_step(state: TrainState, images, labels, key):
        images, targets = augment_batch(
            images,
            labels,
            key,
            state.step,
            augment=augment,
            num_classes=model.num_classes,
            dtype=dtype,
            first_record=lax.axis_index(AXIS) * images.shape[0],
        )
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, batch_stats), gradients = differentiate(state.params, state.batch_stats, images, targets)
        # The one all-reduce. Running statistics travel along (0.2% more bytes): they are then equal on all devices at
        # every step, so that evaluation, checkpoints and a resumption on other devices need no special care.
        gradients, batch_stats, loss = _mean_over_devices((gradients, batch_stats, loss))
        # On 3 devices the mean of three equal numbers may be another one, by rounding.
        batch_stats |= {part: state.batch_stats[part] for part in model.frozen if part in batch_stats}
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "lr": jnp.asarray(schedule(state.step), dtype)}
        return TrainState(state.step + 1, params, batch_stats, opt_state), metrics

    step = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(REPLICATED, SPLIT, SPLIT, REPLICATED),
        out_specs=REPLICATED,
        check_vma=False,  # with it on, the gradients would be reduced one by one as they are made
    )
    return jax.jit(step, donate_argnums=0)


def _mean_over_devices(tree):
    """`pmean` in one all-reduce: scalars and vectors travel as one long vector, since XLA combines at most 256 arrays."""
    if lax.axis_size(AXIS) == 1:
        return tree  # XLA:CPU would copy every array
    leaves, structure = jax.tree.flatten(tree)
    small = [leaf for leaf in leaves if leaf.ndim < 2]
    joined, unravel = ravel_pytree(small)
    large, joined = lax.pmean(([leaf for leaf in leaves if leaf.ndim >= 2], joined), AXIS)
    large, small = iter(large), iter(unravel(joined))
    return jax.tree.unflatten(structure, [next(small if leaf.ndim < 2 else large) for leaf in leaves])


def make_eval_step(model: ResNet, mesh: Mesh, *, label_smoothing: float) -> Callable:
    """The compiled `(variables, images, labels, mask) -> sums`, added up over all devices.

    `images` uint8 `[B, S, S, 3]`, `labels` int32 `[B]` and `mask` float32 `[B]` (0 for padding) are split over the mesh;
    `sums` as in `metrics.evaluation_sums`.
    """

    def local_step(variables, images, labels, mask):
        logits = model.apply(variables, normalize_images(images, model.param_dtype), train=False)
        targets = jax.nn.one_hot(labels, model.num_classes, dtype=logits.dtype)
        losses = cross_entropy(logits, targets, label_smoothing)
        return lax.psum(evaluation_sums(logits, losses, labels, mask), AXIS)

    step = jax.shard_map(
        local_step, mesh=mesh, in_specs=(REPLICATED, SPLIT, SPLIT, SPLIT), out_specs=REPLICATED, check_vma=False
    )
    return jax.jit(step)


def make_predict(model: ResNet, topk: int) -> Callable:
    """The compiled `(variables, images) -> (probabilities, classes)` of the `topk` likeliest classes, likeliest first.

    `images` is uint8 `[N, S, S, 3]`; the results are `[N, topk]`, in `model.param_dtype` and int32.
    """

    def predict(variables, images):
        logits = model.apply(variables, normalize_images(images, model.param_dtype), train=False)
        return lax.top_k(jax.nn.softmax(logits), topk)

    return jax.jit(predict)
