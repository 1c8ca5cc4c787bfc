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

from jaxcls import hosts, xla
from jaxcls.models.initial import initial_variables, variable_shapes
from jaxcls.models.resnet import ResNet
from jaxcls.precision import NO_LOSS_SCALE, NoLossScale
from jaxcls.train.augment import NO_AUGMENTATION, Augment, augment_batch, normalize_images
from jaxcls.train.losses import cross_entropy
from jaxcls.train.metrics import evaluation_sums
from jaxcls.train.state import TrainState

AXIS = "data"  # the mesh's only axis
WISHES = "wishes"  # of several processes, see `train.agreement`
REPLICATED, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def make_mesh(devices=None) -> Mesh:
    """A mesh of one axis, `data`, over all devices of all processes (or those given)."""
    return jax.sharding.Mesh(jax.devices() if devices is None else devices, (AXIS,))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: split along its first axis."""
    return NamedSharding(mesh, SPLIT)


def init_state(
    model: ResNet,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    seed: int,
    *,
    loss_scale: NoLossScale = NO_LOSS_SCALE,
    ema: bool = False,
) -> TrainState:
    """The state of a fresh run, replicated over the mesh; with `ema`, it has running averages, which begin here."""
    variables = initial_variables(model, seed)
    state = _first_state(variables, jax.jit(optimizer.init)(variables["params"]), loss_scale, ema)
    return hosts.replicate(state, NamedSharding(mesh, REPLICATED))


def abstract_state(
    model: ResNet,
    optimizer: optax.GradientTransformationExtraArgs,
    mesh: Mesh,
    *,
    loss_scale: NoLossScale = NO_LOSS_SCALE,
    ema: bool = False,
) -> TrainState:
    """The shapes, dtypes and shardings of `init_state`'s result, without the work."""

    def init(variables: dict) -> TrainState:
        return _first_state(variables, optimizer.init(variables["params"]), loss_scale, ema)

    replicated = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
        jax.eval_shape(init, variable_shapes(model)),
    )


def _first_state(variables: dict, opt_state, loss_scale: NoLossScale, ema: bool) -> TrainState:
    params, batch_stats = variables["params"], variables["batch_stats"]
    # Copies: the step takes its arguments' memory, and could not take the same twice.
    averages = jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, opt_state, loss_scale, averages)


def make_train_step(
    model: ResNet,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: Callable,
    mesh: Mesh,
    *,
    label_smoothing: float,
    augment: Augment = NO_AUGMENTATION,
    grad_accum: int = 1,
    ema_decay: float = 0.0,
    polled: bool = False,
) -> Callable:
    """The compiled `(state, images, labels, key) -> (state, metrics)`.

    `images` is uint8 `[B, S, S, 3]` and `labels` int32 `[B]`, B the global batch, split over the mesh; `key` is the run's
    key, the same at every step. `metrics` are replicated scalars: `loss` (the mean over the global batch, of the mixed
    and smoothed targets), `lr`, `grad_scale` (of the loss, in this step) and `finite`. The state is donated: its old
    buffers are gone after the call.

    Each device takes its share in `grad_accum` equal parts, one after another, and sums their gradients: the memory is
    that of one part. BN normalises each part by itself, as if it were a device's share, and its running statistics take
    the parts one by one, as in the reference.

    If the loss, a gradient or a moment is inf or NaN, `finite` is false, and parameters, optimizer, running statistics and
    averages stay as they are; the step is counted, so that data and learning rate go on.

    With `ema_decay` d, `state.ema` becomes `m * ema + (1 - m) * new`, m = min(d, (1 + t) / (10 + t)), t optimizer steps
    having been taken before, for parameters and running statistics alike, as in the reference.

    With `polled` there is a last argument, float `[devices, W]`, split over the mesh, whose mean `[W]` comes back among the
    metrics as `wishes`: it travels in the all-reduce, too.
    """
    dtype = model.param_dtype

    def loss_of(params, batch_stats, images, targets, loss_scale):
        params = {part: lax.stop_gradient(p) if part in model.frozen else p for part, p in params.items()}
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updates = model.apply(variables, images, train=True, mutable="batch_stats")
        loss = cross_entropy(logits, targets, label_smoothing).mean()
        return loss_scale.scale(loss), (loss, updates["batch_stats"])

    def part_step(state: TrainState, batch_stats, images, labels, key, first_record):
        """Gradients (of the scaled loss), loss and new running statistics of one part of a device's share."""
        images, targets = augment_batch(
            images,
            labels,
            key,
            state.step,
            augment=augment,
            num_classes=model.num_classes,
            dtype=dtype,
            first_record=first_record,
        )
        differentiate = jax.grad(loss_of, has_aux=True)
        gradients, (loss, batch_stats) = differentiate(state.params, batch_stats, images, targets, state.loss_scale)
        return (gradients, loss), batch_stats

    def share_step(state: TrainState, images, labels, key):
        """As `part_step`, of all of a device's share."""
        first_record = lax.axis_index(AXIS) * images.shape[0]
        if grad_accum == 1:
            return part_step(state, state.batch_stats, images, labels, key, first_record)

        def add_part(carry, part):
            total, batch_stats = carry
            found, batch_stats = part_step(state, batch_stats, *part[:2], key, part[2])
            return (jax.tree.map(jnp.add, total, found), batch_stats), None

        size = images.shape[0] // grad_accum
        parts = [array.reshape(grad_accum, size, *array.shape[1:]) for array in (images, labels)]  # [N,...] -> [A,N/A,...]
        zeros = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros((), dtype))
        firsts = first_record + size * jnp.arange(grad_accum)
        (total, batch_stats), _ = lax.scan(add_part, (zeros, state.batch_stats), (*parts, firsts))
        return jax.tree.map(lambda sum_: sum_ / grad_accum, total), batch_stats

    def local_step(state: TrainState, images, labels, key, *wishes):
        (gradients, loss), batch_stats = share_step(state, images, labels, key)
        # The one all-reduce. Running statistics travel along (0.2% more bytes): they are then equal on all devices at
        # every step, so that evaluation, checkpoints and a resumption on other devices need no special care.
        wishes = [wish[0].astype(dtype) for wish in wishes]  # [1,W] -> [W]
        gradients, batch_stats, loss, wishes = _mean_over_devices((gradients, batch_stats, loss, wishes))
        # On 3 devices the mean of three equal numbers may be another one, by rounding.
        batch_stats |= {part: state.batch_stats[part] for part in model.frozen if part in batch_stats}
        gradients = state.loss_scale.unscale(gradients)
        finite = all_finite((loss, gradients, batch_stats))
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, finite=finite)
        variables = {"params": optax.apply_updates(state.params, updates), "batch_stats": batch_stats}
        ema = _averaged(state.ema, variables, ema_decay, state.step) if ema_decay else None
        variables, ema = optax.tree.where(finite, (variables, ema), (state.variables, state.ema))
        metrics = {
            "loss": loss,
            "lr": jnp.asarray(schedule(state.step), dtype),
            "grad_scale": jnp.asarray(state.loss_scale.factor, jnp.float32),
            "finite": finite,
        }
        loss_scale = state.loss_scale.adjust(finite)
        new = TrainState(state.step + 1, **variables, opt_state=opt_state, loss_scale=loss_scale, ema=ema)
        return new, metrics | dict(zip([WISHES], wishes, strict=False))

    step = jax.shard_map(
        local_step,
        mesh=mesh,
        in_specs=(REPLICATED, SPLIT, SPLIT, REPLICATED, *[SPLIT] * polled),
        out_specs=REPLICATED,
        check_vma=False,  # with it on, the gradients would be reduced one by one as they are made
    )
    return xla.jit(step, train=True, donate_argnums=0)


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


def all_finite(tree) -> jax.Array:
    """Whether all numbers of a tree are; scalars and vectors are asked as one long vector.

    Sums of `array - array`, which are 0 or NaN, in place of `isfinite` of each array: XLA:CPU hands a sum to YNNPACK, but
    would compile three programs for each shape, a fifth of all that differ in a step of resnet50.
    """
    leaves = jax.tree.leaves(tree)
    joined = jnp.concatenate([leaf.ravel() for leaf in leaves if leaf.ndim < 2])
    arrays = (joined, *(leaf for leaf in leaves if leaf.ndim >= 2))
    return jnp.isfinite(jnp.stack([(array - array).sum() for array in arrays])).all()


def _averaged(averages: dict, variables: dict, decay: float, step: jax.Array) -> dict:
    def average(old, new):
        weight = jnp.minimum(decay, (1 + step) / (10 + step)).astype(old.dtype)
        return weight * old + (1 - weight) * new

    return jax.tree.map(average, averages, variables)


def make_eval_step(model: ResNet, mesh: Mesh, *, label_smoothing: float, polled: bool = False) -> Callable:
    """The compiled `(variables, images, labels, mask) -> (sums, outcomes)`.

    `images` uint8 `[B, S, S, 3]`, `labels` int32 `[B]` and `mask` float32 `[B]` (0 for padding) are split over the mesh;
    `sums` are those of `metrics.evaluation_sums`, added up over all devices, and `outcomes` the `prediction` (int32 `[B]`,
    the likeliest class) and its `confidence` (probability, float32 `[B]`), split as the images. With `polled`, as
    `make_train_step`, but for the sum.
    """

    def local_step(variables, images, labels, mask, *wishes):
        logits = model.apply(variables, normalize_images(images, model.param_dtype), train=False)
        targets = jax.nn.one_hot(labels, model.num_classes, dtype=logits.dtype)
        losses = cross_entropy(logits, targets, label_smoothing)
        sums = evaluation_sums(logits, losses, labels, mask)
        outcomes = {
            "prediction": jnp.argmax(logits, -1).astype(jnp.int32),
            "confidence": jnp.max(jax.nn.softmax(logits), -1).astype(jnp.float32),
        }
        return lax.psum(sums | dict(zip([WISHES], [wish[0] for wish in wishes], strict=False)), AXIS), outcomes

    in_specs, out_specs = (REPLICATED, SPLIT, SPLIT, SPLIT, *[SPLIT] * polled), (REPLICATED, SPLIT)
    step = jax.shard_map(local_step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return xla.jit(step, train=False)


def make_predict(model: ResNet, topk: int) -> Callable:
    """The compiled `(variables, images) -> (probabilities, classes)` of the `topk` likeliest classes, likeliest first.

    `images` is uint8 `[N, S, S, 3]`; the results are `[N, topk]`, in `model.param_dtype` and int32.
    """

    def predict(variables, images):
        logits = model.apply(variables, normalize_images(images, model.param_dtype), train=False)
        return lax.top_k(jax.nn.softmax(logits), topk)

    return xla.jit(predict, train=False)
