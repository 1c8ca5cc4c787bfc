import math

import jax
import numpy as np
import pytest

from jaxcls.config import OptimConfig, ScheduleConfig
from jaxcls.errors import ConfigError
from jaxcls.train.optim import decay_mask, make_optimizer, make_schedule, part_factors

PER_EPOCH = 10


def rates(steps, epochs=20.0, **config):
    schedule = make_schedule(ScheduleConfig(**config), peak_lr=2.0, epochs=epochs, steps_per_epoch=PER_EPOCH)
    return [float(schedule(step)) for step in steps]


def test_cosine_once_an_epoch_as_in_the_reference():
    expected = [2 * (e + 1) / 4 if e < 4 else 2 * 0.5 * (1 + math.cos(math.pi * (e - 4) / 16)) for e in range(20)]
    for offset in (0, 9):  # constant inside an epoch
        steps = [e * PER_EPOCH + offset for e in range(20)]
        np.testing.assert_allclose(rates(steps, name="cosine", warmup_epochs=4.0), expected, rtol=1e-5, atol=1e-7)


def test_cosine_every_step():
    steps = range(200)
    expected = [2 * (s + 1) / 16 if s < 16 else 2 * 0.5 * (1 + math.cos(math.pi * (s - 16) / (200 - 16))) for s in steps]
    found = rates(steps, name="cosine", warmup_epochs=1.6, every="step")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_linear_and_end():
    expected = [2 + (0.5 - 2) * e / 20 for e in range(20)]
    steps = [e * PER_EPOCH for e in range(20)]
    np.testing.assert_allclose(rates(steps, name="linear", warmup_epochs=0.0, end_lr=0.5), expected, rtol=1e-5)
    assert rates([10_000], name="cosine", warmup_epochs=0.0, end_lr=0.5) == [0.5]  # past the end


def test_step():
    found = rates([e * PER_EPOCH for e in (0, 4, 5, 9, 10)], name="step", warmup_epochs=0.0, boundaries=(5.0, 10.0))
    np.testing.assert_allclose(found, [2, 2, 0.2, 0.2, 0.02], rtol=1e-5)


PARAMS = {
    "stem": {"conv": {"kernel": 0}, "bn": {"scale": 0, "bias": 0}},
    "stage1": {"block0": {"bn1": {"scale": 0}, "shortcut": {"bn": {"bias": 0}}, "se": {"squeeze": {"bias": 0}}}},
    "head": {"kernel": 0, "bias": 0},
}


@pytest.mark.parametrize(
    ("decay_bn", "exempt"),
    [
        ("none", ["stem/bn/scale", "stem/bn/bias", "stage1/block0/bn1/scale", "stage1/block0/shortcut/bn/bias"]),
        ("reference", ["stem/bn/scale", "stem/bn/bias", "stage1/block0/bn1/scale"]),
        ("all", []),
    ],
)
def test_decay_mask(decay_bn, exempt):
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(PARAMS, decay_bn))
    found = {"/".join(entry.key for entry in path) for path, decayed in mask if not decayed}
    assert found == set(exempt)


@pytest.mark.parametrize("nesterov", [False, True])
def test_three_steps_of_sgd_by_hand(nesterov):
    config = OptimConfig(momentum=0.9, nesterov=nesterov, weight_decay=0.1)
    optimizer = make_optimizer(config, lambda step: 0.5 / (step + 1))
    params = {"head": {"kernel": np.float32([1.0, -2.0])}, "bn1": {"scale": np.float32([3.0])}}
    kernel, scale, buffers = np.array([1.0, -2.0]), np.array([3.0]), [0.0, 0.0]
    state = optimizer.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda p, step=step: np.ones_like(p) * (step + 1), params)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
        moved = []
        for i, (p, decay) in enumerate([(kernel, 0.1), (scale, 0.0)]):
            d = (step + 1) + decay * p
            buffers[i] = 0.9 * buffers[i] + d
            moved.append(p - 0.5 / (step + 1) * (d + 0.9 * buffers[i] if nesterov else buffers[i]))
        kernel, scale = moved
    np.testing.assert_allclose(params["head"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(params["bn1"]["scale"], scale, rtol=1e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_buffers_stay_where_a_step_is_not_finite(nesterov):
    optimizer = make_optimizer(OptimConfig(nesterov=nesterov, weight_decay=0.1), lambda step: 0.5)
    params = {"head": {"kernel": np.float32([1.0, -2.0])}}
    _, before = optimizer.update(params, optimizer.init(params), params)
    broken = jax.tree.map(lambda p: p * np.nan, params)
    _, kept = optimizer.update(broken, before, params, finite=False)
    _, spoiled = optimizer.update(broken, before, params, finite=True)
    buffers = [state[1].trace["head"]["kernel"] for state in (before, kept, spoiled)]
    np.testing.assert_array_equal(buffers[1], buffers[0])
    assert np.isnan(buffers[2]).all()
    assert kept[-1].count == 2  # the schedule goes on


def test_decay_leaves_frozen_parts_alone():
    for decay_bn in ("none", "reference", "all"):
        mask = jax.tree_util.tree_leaves_with_path(decay_mask(PARAMS, decay_bn, ("stem", "stage1")))
        assert {path[0].key for path, decayed in mask if decayed} == {"head"}


def test_frozen_parts_stay_bit_for_bit():
    """With gradients of zero, as the training step gives them."""
    params = {part: {"kernel": np.float32([1e-30, -0.0, 3.3])} for part in ("stem", "head")}
    optimizer = make_optimizer(OptimConfig(weight_decay=0.1, freeze=("stem",), group_lr=("stem=3",)), lambda step: 0.5)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = jax.tree.map(np.add, params, updates)
    assert moved["stem"]["kernel"].tobytes() == params["stem"]["kernel"].tobytes()
    np.testing.assert_allclose(moved["head"]["kernel"][2], 3.3 - 0.5 * 0.1 * 3.3, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_factors_of_parts(nesterov):
    """The first step of a part is its factor times what it would be; all as with PyTorch's parameter groups."""
    torch = pytest.importorskip("torch")
    factors = {"stem": 1.0, "stage1": 0.0, "stage2": 0.25, "head": 8.0}
    rng = np.random.default_rng(0)
    params = {part: {"kernel": rng.standard_normal((3, 2)).astype(np.float32)} for part in factors}
    theirs = {part: torch.nn.Parameter(torch.from_numpy(tree["kernel"].copy())) for part, tree in params.items()}
    groups = [{"params": [theirs[part]], "lr": 0.5 * factor} for part, factor in factors.items()]
    sgd = torch.optim.SGD(groups, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    config = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    plain = make_optimizer(OptimConfig(**config), lambda step: 0.5)
    optimizer = make_optimizer(OptimConfig(**config, group_lr=("stage1=0", "stage2=0.25", "head=8")), lambda step: 0.5)
    state = optimizer.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), params)
        updates, state = optimizer.update(gradients, state, params)
        if step == 0:
            without, _ = plain.update(gradients, plain.init(params), params)
            for part, factor in factors.items():  # powers of two: exactly
                np.testing.assert_array_equal(updates[part]["kernel"], factor * without[part]["kernel"])
        params = jax.tree.map(np.add, params, updates)
        for part, tree in gradients.items():
            theirs[part].grad = torch.from_numpy(tree["kernel"])
        sgd.step()
        for part, parameter in theirs.items():
            np.testing.assert_allclose(params[part]["kernel"], parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_factors_are_read():
    assert part_factors(("head=10", "stage1=0.1", "stem=0", "stage2=1e-3")) == {
        "head": 10.0,
        "stage1": 0.1,
        "stem": 0.0,
        "stage2": 0.001,
    }
    for wrong in ("head", "head=", "head=ten", "head=-1", "head=nan", "head=inf", "head=1=2"):
        with pytest.raises(ConfigError, match=f"optim.group_lr={wrong} is not PART=FACTOR"):
            part_factors((wrong,))
