"""What a step does with numbers that are not finite, with low precision, and with averaged weights."""

import functools
import re

import jax
import numpy as np
import pytest

import jaxcls
from jaxcls import xla
from jaxcls.config import OptimConfig
from jaxcls.precision import POLICIES, make_loss_scale
from jaxcls.train import steps
from jaxcls.train.optim import make_optimizer

CLASSES = 5


class Run:
    """A compiled step of `tiny` under a policy, on one device."""

    def __init__(self, policy, loss_scale, grad_accum):
        self.mesh = steps.make_mesh(jax.devices()[:1])
        param_dtype, dtype = POLICIES[policy]
        self.model = jaxcls.create_model("tiny", num_classes=CLASSES, dtype=dtype, param_dtype=param_dtype)
        self.optimizer = make_optimizer(OptimConfig(weight_decay=1e-4), lambda step: 0.05)
        self.first = jax.device_get(
            steps.init_state(
                self.model,
                self.optimizer,
                self.mesh,
                0,
                loss_scale=make_loss_scale(policy, loss_scale),
                ema=True,
            )
        )
        step = steps.make_train_step(
            self.model,
            self.optimizer,
            lambda step: 0.05,
            self.mesh,
            label_smoothing=0.1,
            ema_decay=0.9,
            grad_accum=grad_accum,
        )
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(8, 32, 32, 3), dtype=np.uint8)
        self.batch = (images, rng.integers(CLASSES, size=8, dtype=np.int32))
        self.lowered = step.lower(self.first, *self.batch, jax.random.key(1))
        self.compiled = self.lowered.compile()

    def step(self, state):
        """One step; `(state, metrics)` on the host."""
        state = jax.device_put(state, jax.sharding.NamedSharding(self.mesh, steps.REPLICATED))
        return jax.device_get(self.compiled(state, *self.batch, jax.random.key(1)))


@functools.cache
def make_run(policy, loss_scale=0.0, grad_accum=1):
    return Run(policy, loss_scale=loss_scale, grad_accum=grad_accum)


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def policy(request):
    return request.param


@pytest.fixture
def run(policy):
    return make_run(policy)


def floats(tree):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not np.issubdtype(leaf.dtype, np.integer)
    }


def test_a_good_step_changes_everything(run):
    state, metrics = run.step(run.first)
    assert metrics["finite"] and np.isfinite(metrics["loss"])
    before = floats(run.first.replace(loss_scale=None))
    after = floats(state.replace(loss_scale=None))
    assert before.keys() == after.keys() and len(before) > 100
    # In a network that has just begun, few gradients are exactly zero.
    changed = sum(not np.array_equal(before[name], after[name]) for name in before)
    assert changed > 0.95 * len(before)


@pytest.mark.parametrize("part", ["params", "batch_stats", "loss"])
def test_a_step_that_is_not_finite_changes_nothing_but_counts(run, policy, part):
    good, _ = run.step(run.first)
    if part == "loss":  # a good state, and a loss that overflows
        state = good.replace(
            params=good.params | {"head": good.params["head"] | {"bias": np.float32([3e38, -3e38, 0, 0, 0])}}
        )
    else:
        state = jax.tree.map(np.copy, good)
        tree = getattr(state, part)
        leaf = tree["stem"]["bn"]["scale" if part == "params" else "mean"]
        leaf[3] = np.nan
    after, metrics = run.step(state)
    assert not metrics["finite"]
    assert after.step == state.step + 1
    kept, found = floats(state.replace(loss_scale=None)), floats(after.replace(loss_scale=None))
    for name, value in kept.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    counts = [leaf for leaf in jax.tree.leaves(after.opt_state) if np.issubdtype(leaf.dtype, np.integer)]
    assert counts and all(count == 2 for count in counts), "the schedule goes on"
    if policy == "fp16":
        assert float(after.loss_scale.value) == 64 and metrics["grad_scale"] == 128


def test_fp16_recovers_from_an_overflow():
    run = make_run("fp16")
    state = run.first.replace(loss_scale=run.first.loss_scale.replace(value=np.float32(2**24)))
    scales, finite = [], []
    while not any(finite) and len(scales) < 24:
        state, metrics = run.step(state)
        scales.append(float(metrics["grad_scale"]))
        finite.append(bool(metrics["finite"]))
    assert not finite[0] and finite[-1], "the scale comes down to where gradients fit"
    assert scales == [2.0 ** (24 - step) for step in range(len(scales))]


def test_the_scale_leaves_the_step_as_it_is():
    """But for gradients below float16's least number, which are what scaling is for."""
    static, dynamic = (make_run("fp16", loss_scale=scale) for scale in (1024.0, 0.0))
    (a, metrics), (b, _) = static.step(static.first), dynamic.step(dynamic.first)
    assert metrics["grad_scale"] == 1024
    for x, y, before in zip(*map(jax.tree.leaves, (a.params, b.params, static.first.params)), strict=True):
        assert np.abs(x - y).max() <= 0.02 * np.abs(x - before).max() + 1e-7


@pytest.mark.parametrize("policy", ["bf16", "fp16"])
def test_no_convolution_computes_in_full_precision(policy):
    run = make_run(policy)
    short = {"bf16": "bf16", "fp16": "f16"}[policy]
    text = run.lowered.as_text()
    products = re.findall(r"stablehlo\.(?:convolution|dot_general).*: \((tensor<[^>]*>), (tensor<[^>]*>)\) -> tensor<", text)
    kinds = [tuple(re.search(r"x([a-z]+\d+)>", operand)[1] for operand in pair) for pair in products]
    # In full precision are the classifier and two layers in each of three SE gates, forward and two gradients each:
    # products of matrices, not of pictures.
    full = [pair for pair, kind in zip(products, kinds, strict=True) if kind != (short, short)]
    assert len(products) > 50 and len(full) == 3 * (1 + 2 * 3)
    assert all(len(operand.split("x")) == 3 for pair in full for operand in pair), full  # tensor<A, B, dtype>


def test_averages_follow_the_ramp(run):
    state, averages = run.first, run.first.ema
    for step in range(3):
        state, _ = run.step(state)
        weight = min(0.9, (1 + step) / (10 + step))
        averages = jax.tree.map(lambda old, new: weight * old + (1 - weight) * new, averages, state.variables)  # noqa: B023
        for a, b in zip(jax.tree.leaves(averages), jax.tree.leaves(state.ema), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


def test_parts_need_less_memory():
    whole, parts = (make_run("fp32", grad_accum=count).compiled.memory_analysis() for count in (1, 4))
    assert parts.temp_size_in_bytes < 0.75 * whole.temp_size_in_bytes


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("shape", [(), (5,), (3, 3, 8, 16), (64, 100)])
def test_what_is_not_finite_is_found_wherever_it_is(shape, number):
    arrays = [np.full(shape, 3e38, np.float32), np.ones((2, 3), np.float32), np.zeros(4, np.float32)]  # the sum overflows
    arrays[0].flat[-1] = number
    found = xla.jit(steps.all_finite, train=True)(arrays)
    assert bool(found) == np.isfinite(number)
