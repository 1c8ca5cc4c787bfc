import functools

import jax
import numpy as np
import pytest

from jaxcls.train.losses import cross_entropy
from jaxcls.train.mixup import block_size, cutmix, mixup, mixup_or_cutmix


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


def mixed(records, shares=1, mix=mixup):
    """Mixes one-hot records 0..n-1, in so many shares; the result's row i says what went into record i."""
    identity = np.eye(records, dtype=np.float32)
    images = np.broadcast_to(np.arange(records, dtype=np.float32)[:, None, None, None], (records, 12, 10, 3))
    blocks = records // shares // 8
    parts = [
        mix(jax.random.key(3), x, t, alpha=0.2, block=8, first_block=i * blocks)
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


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("shares", [2, 4])
def test_mixing_is_the_same_on_any_number_of_devices(shares, mix):
    for whole, split in zip(mixed(32, mix=mix), mixed(32, shares, mix), strict=True):
        np.testing.assert_array_equal(whole, split)


def test_mixup_weights_follow_the_beta_distribution():
    x, t = np.zeros((8, 1, 1, 3), np.float32), np.eye(8, dtype=np.float32)
    draw = jax.jit(jax.vmap(lambda key: mixup(key, x, t, alpha=0.2, block=8)[1]))
    own = np.array(draw(jax.random.split(jax.random.key(0), 2000)))[:, range(8), range(8)]
    weights = own.min(1)[own.min(1) < 1]  # the batch's one weight, seen at a record that has another partner
    # Beta(0.2, 0.2): mean 1/2, variance 1 / (4 * (2 * 0.2 + 1)).
    assert weights.mean() == pytest.approx(0.5, abs=0.03)
    assert weights.var() == pytest.approx(1 / 5.6, rel=0.05)


HEIGHT, WIDTH = 12, 10


@functools.cache
def draws(mix, count, **alphas):
    """`count` batches of eight records 0 to 7: pixels `[count, 8, HEIGHT, WIDTH]` and targets `[count, 8, 8]`."""
    x = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None, None], (8, HEIGHT, WIDTH, 3))
    t = np.eye(8, dtype=np.float32)
    images, targets = jax.jit(jax.vmap(lambda key: mix(key, x, t, block=8, **alphas)))(
        jax.random.split(jax.random.key(0), count)
    )
    return np.asarray(images)[..., 0], np.asarray(targets)


def own_weights(targets):
    return targets[:, range(8), range(8)].min(1)  # of a record that is not its own partner


def paper_weight(alpha, rng):
    """What is left of a picture by the box of CutMix's published code."""
    share = np.sqrt(1 - rng.beta(alpha, alpha))
    h, w, y, x = int(HEIGHT * share), int(WIDTH * share), rng.integers(HEIGHT), rng.integers(WIDTH)
    rows = np.clip(y + h // 2, 0, HEIGHT) - np.clip(y - h // 2, 0, HEIGHT)
    return 1 - rows * (np.clip(x + w // 2, 0, WIDTH) - np.clip(x - w // 2, 0, WIDTH)) / (HEIGHT * WIDTH)


def test_cutmix_puts_one_box_of_the_partner_into_every_record():
    boxes = []
    for images, targets in zip(*(array[:100] for array in draws(cutmix, 3000, alpha=1.0)), strict=True):
        others = np.where(np.eye(8), 0, targets)
        partners = np.where(others.max(1) > 0, others.argmax(1), range(8))
        assert len(set(partners)) == 8
        inside = images[0] == -1
        for i in np.flatnonzero(partners != range(8)):
            inside = images[i] == partners[i]
            np.testing.assert_array_equal(inside, inside.any(1)[:, None] & inside.any(0))
        kept = 1 - inside.mean()
        for i, partner in enumerate(partners):
            np.testing.assert_array_equal(images[i], np.where(inside, partner, i))  # the same box, and nothing else
            np.testing.assert_allclose(targets[i], kept * np.eye(8)[i] + (1 - kept) * np.eye(8)[partner], atol=1e-6)
        boxes.append(inside.tobytes())
    assert len(set(boxes)) > 80


def test_cutmix_weights_are_the_papers():
    rng, quantiles = np.random.default_rng(0), [0.1, 0.25, 0.5, 0.75]
    found = own_weights(draws(cutmix, 3000, alpha=1.0)[1])
    expected = [paper_weight(1.0, rng) for _ in range(20_000)]
    np.testing.assert_allclose(np.quantile(found, quantiles), np.quantile(expected, quantiles), atol=0.04)
    assert found.mean() == pytest.approx(np.mean(expected), abs=0.015)


def test_every_second_batch_is_cut_where_both_are_on():
    images, targets = draws(mixup_or_cutmix, 2000, mixup_alpha=1000.0, cutmix_alpha=0.3)
    own = own_weights(targets)
    cut = (images == np.round(images)).all((1, 2, 3))  # every pixel is one record's
    assert cut.mean() == pytest.approx(0.5, abs=0.04)
    assert ((own[~cut] > 0.4) & (own[~cut] < 0.6)).all()  # Beta(1000, 1000)
    rng = np.random.default_rng(0)
    assert own[cut].mean() == pytest.approx(np.mean([paper_weight(0.3, rng) for _ in range(20_000)]), abs=0.03)
    assert (own[cut] > 0.99).mean() == pytest.approx(
        np.mean([paper_weight(0.3, rng) > 0.99 for _ in range(20_000)]), abs=0.05
    )
    np.testing.assert_allclose(images.mean((2, 3)), targets @ np.arange(8), atol=1e-5)  # pictures as their labels
