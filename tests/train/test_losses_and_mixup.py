import jax
import numpy as np
import pytest

from jaxcls.train.losses import cross_entropy
from jaxcls.train.mixup import block_size, mixup


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_cross_entropy_with_label_smoothing():
    logits = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    labels = np.array([0, 3, 6, 3])
    log_p = log_softmax(logits)
    expected = 0.9 * -log_p[np.arange(4), labels] + 0.1 * -log_p.mean(-1)
    np.testing.assert_allclose(cross_entropy(logits, np.eye(7)[labels], 0.1), expected, rtol=1e-5)


def test_a_mixed_target_is_a_mixture_of_losses():
    logits = np.random.default_rng(0).normal(size=(1, 5)).astype(np.float32)
    log_p = log_softmax(logits)[0]
    expected = 0.9 * -(0.3 * log_p[1] + 0.7 * log_p[4]) + 0.1 * -log_p.mean()
    target = np.array([[0, 0.3, 0, 0, 0.7]], np.float32)
    np.testing.assert_allclose(cross_entropy(logits, target, 0.1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("batch", "block"), [(256, 8), (32, 8), (4, 4), (12, 4), (10, 2), (7, 1)])
def test_block_size(batch, block):
    assert block_size(batch) == block


def mixed(records, shares=1):
    """Mixes one-hot records 0..n-1, in so many shares; the result's row i says what went into record i."""
    identity = np.eye(records, dtype=np.float32)
    images = np.broadcast_to(np.arange(records, dtype=np.float32)[:, None, None, None], (records, 2, 2, 3))
    blocks = records // shares // 8
    parts = [
        mixup(jax.random.key(3), x, t, alpha=0.2, block=8, first_block=i * blocks)
        for i, (x, t) in enumerate(zip(np.split(images, shares), np.split(identity, shares), strict=True))
    ]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def test_mixup_pairs_records_inside_blocks_by_one_weight():
    images, targets = mixed(32)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(images[:, 0, 0, 0], targets @ np.arange(32), rtol=1e-5)  # images as their labels
    own = np.diag(targets)
    weight = own[own < 1][0]
    assert set(np.round(own, 5)) <= {np.round(weight, 5), 1.0}  # 1: a record that is its own partner
    for block in range(4):
        inside = slice(8 * block, 8 * block + 8)
        np.testing.assert_allclose(targets[inside, inside].sum(), 8, rtol=1e-6)
        np.testing.assert_allclose(targets[inside, inside].sum(0), 1, rtol=1e-5)  # a permutation


@pytest.mark.parametrize("shares", [2, 4])
def test_mixup_is_the_same_on_any_number_of_devices(shares):
    for whole, split in zip(mixed(32), mixed(32, shares), strict=True):
        np.testing.assert_array_equal(whole, split)


def test_mixup_weights_follow_the_beta_distribution():
    x, t = np.zeros((8, 1, 1, 3), np.float32), np.eye(8, dtype=np.float32)
    draw = jax.jit(jax.vmap(lambda key: mixup(key, x, t, alpha=0.2, block=8)[1]))
    own = np.array(draw(jax.random.split(jax.random.key(0), 2000)))[:, range(8), range(8)]
    weights = own.min(1)[own.min(1) < 1]  # the batch's one weight, seen at a record that has another partner
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 * (2 * 0.2 + 1)).
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / 5.6, rel=0.05)
