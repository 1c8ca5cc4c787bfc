import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxcls
from jaxcls.config import OptimConfig
from jaxcls.report.collectives import collectives
from jaxcls.train import steps
from jaxcls.train.augment import Augment, normalize_images
from jaxcls.train.optim import make_optimizer

CLASSES = 5


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(32, 32, 32, 3), dtype=np.uint8), rng.integers(CLASSES, size=32, dtype=np.int32)


MIXUP = Augment(mixup_alpha=0.2, block=8)


def run(devices, batch, steps_count=3, dtype=jnp.float32, bn_axis=None, augment=MIXUP, bn_groups=None, frozen=(), **options):
    """Trains a few steps; the state, the losses, and the compiled program's text."""
    mesh = steps.make_mesh(jax.devices()[:devices])
    model = jaxcls.create_model(
        "tiny",
        num_classes=CLASSES,
        zero_init_last_bn=True,
        bn_axis_name=bn_axis,
        bn_groups=bn_groups,
        frozen=frozen,
        dtype=dtype,
        param_dtype=dtype,
    )
    optimizer = make_optimizer(OptimConfig(weight_decay=1e-4, freeze=frozen), lambda step: 0.05)
    state = steps.init_state(model, optimizer, mesh, 0)
    options = {"label_smoothing": 0.1, "augment": augment} | options
    step = steps.make_train_step(model, optimizer, lambda step: 0.05, mesh, **options)
    arrays = jax.device_put(batch, steps.batch_sharding(mesh))
    key = jax.random.key(1)
    compiled = step.lower(state, *arrays, key).compile()
    losses = []
    for _ in range(steps_count):
        state, metrics = compiled(state, *arrays, key)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses, compiled.as_text()


@pytest.mark.long
def test_synchronised_bn_gives_one_result_on_any_number_of_devices(batch):
    with jax.enable_x64(True):
        one, losses, _ = run(1, batch, dtype=jnp.float64, bn_axis=steps.AXIS)
        for devices in (2, 4):
            other, other_losses, _ = run(devices, batch, dtype=jnp.float64, bn_axis=steps.AXIS)
            np.testing.assert_allclose(other_losses, losses, rtol=1e-10)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-10)


def test_local_bn_on_two_devices_is_the_mean_of_two_halves(batch):
    with jax.enable_x64(True):
        both, losses, _ = run(2, batch, 1, jnp.float64, augment=Augment())
        halves = [run(1, [a[part] for a in batch], 1, jnp.float64, augment=Augment()) for part in (slice(16), slice(16, 32))]
    np.testing.assert_allclose(losses, np.mean([half[1] for half in halves], 0), rtol=1e-12)
    # One step is linear in the gradients, and so are the running statistics in the moments.
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(half[0] for half in halves))
    for a, b in zip(jax.tree.leaves(expected.variables), jax.tree.leaves(both.variables), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_groups_of_bn_are_devices_of_their_own(batch):
    """Two groups of two devices are as two runs of two devices, each with synchronised BN, on half of the batch."""
    axis = {"bn_axis": steps.AXIS, "augment": Augment()}
    with jax.enable_x64(True):
        grouped, losses, _ = run(4, batch, 1, jnp.float64, bn_groups=((0, 1), (2, 3)), **axis)
        halves = [run(2, [a[part] for a in batch], 1, jnp.float64, **axis) for part in (slice(16), slice(16, 32))]
    np.testing.assert_allclose(losses, np.mean([half[1] for half in halves], 0), rtol=1e-12)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, *(half[0] for half in halves))
    for a, b in zip(jax.tree.leaves(expected.variables), jax.tree.leaves(grouped.variables), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_parts_of_a_batch_are_as_shares_of_devices(batch):
    """BN apart, whose running statistics take parts one after another, and devices' means."""
    with jax.enable_x64(True):
        devices, losses, _ = run(4, batch, 1, jnp.float64)
        parts, parts_losses, _ = run(2, batch, 1, jnp.float64, grad_accum=2)
    np.testing.assert_allclose(parts_losses, losses, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(devices.params), jax.tree.leaves(parts.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


def test_parts_of_a_batch_are_the_batch_where_bn_does_not_see_it(batch):
    frozen = ("stem", "stage1", "stage2")
    with jax.enable_x64(True):
        whole, losses, _ = run(1, batch, 2, jnp.float64, frozen=frozen)
        parts, parts_losses, _ = run(1, batch, 2, jnp.float64, frozen=frozen, grad_accum=4)
    np.testing.assert_allclose(parts_losses, losses, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grad_accum", [1, 2])
def test_one_all_reduce_a_step(batch, grad_accum):
    _, _, text = run(4, batch, 0, grad_accum=grad_accum, augment=Augment())
    found = collectives(text)
    model = jaxcls.create_model("tiny", num_classes=CLASSES)
    variables = jax.eval_shape(lambda k: model.init(k, jnp.zeros((1, 32, 32, 3)), train=False), jax.random.key(0))
    values = sum(leaf.size for leaf in jax.tree.leaves(variables)) + 1  # gradients, running statistics, the loss
    assert found == [("all-reduce", 4 * values)]


def test_the_step_copies_no_parameter(batch):
    """Parameters and momentum are written where the old ones lay; a wrong order of reads makes XLA copy all of them."""
    _, _, text = run(1, batch, 0, augment=Augment())
    copied = re.findall(r"= f32\[([\d,]+)\]\S* copy\(%?state_", text)
    assert "alias" in text and copied == []


def test_evaluation_on_four_devices_counts_each_record_once(batch):
    mesh = steps.make_mesh(jax.devices()[:4])
    model = jaxcls.create_model("tiny", num_classes=CLASSES)
    variables = steps.init_state(model, optax.identity(), mesh, 0).variables
    mask = np.ones(32, np.float32)
    mask[27:] = 0
    evaluate = steps.make_eval_step(model, mesh, label_smoothing=0.0)
    sums, outcomes = evaluate(variables, *jax.device_put((*batch, mask), steps.batch_sharding(mesh)))
    logits = model.apply(variables, normalize_images(batch[0][:27], jnp.float32), train=False)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    assert float(sums["count"]) == 27
    assert float(sums["top1"]) == np.sum(np.argmax(logits, -1) == batch[1][:27])
    np.testing.assert_allclose(sums["loss"], -log_p[range(27), batch[1][:27]].sum(), rtol=1e-4)
    assert np.array_equal(outcomes["prediction"][:27], np.argmax(logits, -1))
    np.testing.assert_allclose(outcomes["confidence"][:27], np.exp(log_p).max(-1), rtol=1e-4)
