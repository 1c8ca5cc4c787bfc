import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxcls import xla
from jaxcls.models import layers


def test_max_pool_is_the_maximum_of_each_padded_window():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.stack(
        [np.stack([padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in range(0, 8, 2)], 1) for i in range(0, 7, 2)],
        1,
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


def test_max_pool_keeps_nan():
    x = np.ones((1, 4, 4, 1), np.float32)
    x[0, 1, 2, 0] = np.nan
    assert np.isnan(layers.max_pool(x)[0, :, :, 0]).tolist() == [[False, True], [False, True]]


def test_max_pool_gives_the_gradient_of_a_tie_to_the_first():
    gradient = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    # Windows start at -1 and 1; the first pixel inside each is 0 or 1, in rows and in columns.
    expected = np.zeros((4, 4))
    expected[np.ix_([0, 1], [0, 1])] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_batch_moments_and_normalize():
    x = np.random.default_rng(0).normal(3, 2, size=(4, 5, 5, 6)).astype(np.float32)
    mean, variance = layers.batch_moments(x)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var((0, 1, 2)), rtol=1e-5)
    scale, bias = np.arange(1, 7, dtype=np.float32), np.arange(6, dtype=np.float32)
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3) * scale + bias
    np.testing.assert_allclose(layers.normalize(x, mean, variance, scale, bias, 1e-3), expected, rtol=1e-4, atol=1e-4)


def test_low_precision_is_summed_in_float32():
    x = jnp.full((64, 32, 32, 2), 1.001, jnp.bfloat16)
    mean, variance = layers.batch_moments(x)
    assert mean.dtype == variance.dtype == jnp.float32
    np.testing.assert_allclose(mean, float(x[0, 0, 0, 0]), rtol=1e-6)
    assert layers.normalize(x, mean, variance, jnp.ones(2), jnp.zeros(2), 1e-5).dtype == jnp.bfloat16


def _gate(pooled):
    return jax.nn.sigmoid(pooled[:, ::-1] - 0.5 * pooled)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("groups", [None, ((0, 2), (1, 3))])
def test_the_gradient_of_batch_normalisation_is_that_of_its_formula(groups, gated):
    rng = np.random.default_rng(0)
    x, dy = (rng.normal(3, 2, size=(8, 3, 2, 5)) for _ in range(2))
    scale, bias = rng.normal(size=(2, 5))

    def formula(x, scale, bias):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        y = (x - mean) / jnp.sqrt(variance + 1e-3) * scale + bias
        return y * _gate(y.mean((1, 2)))[:, None, None] if gated else y

    def on_devices(x, scale, bias, dy):
        y, vjp = jax.vjp(
            lambda *a: layers.batch_normalize(*a, 1e-3, "data", groups, _gate if gated else None)[0], x, scale, bias
        )
        dx, dscale, dbias = vjp(dy)
        return y, dx, jax.lax.psum((dscale, dbias), "data")

    with jax.enable_x64(True):
        split, whole = PartitionSpec("data"), PartitionSpec()
        run = jax.shard_map(
            on_devices,
            mesh=jax.sharding.Mesh(jax.devices(), ("data",)),
            in_specs=(split, whole, whole, split),
            out_specs=(split, split, whole),
            check_vma=False,
        )
        y, dx, sums = run(x, scale, bias, dy)
        expected_sums = [0, 0]
        for devices in groups or (range(4),):
            rows = [row for device in devices for row in (2 * device, 2 * device + 1)]  # of a batch of 8 on 4 devices
            expected, vjp = jax.vjp(formula, *map(jnp.asarray, (x[rows], scale, bias)))
            expected_dx, *of_group = vjp(jnp.asarray(dy[rows]))
            np.testing.assert_allclose(y[np.array(rows)], expected, rtol=1e-10)
            np.testing.assert_allclose(dx[np.array(rows)], expected_dx, rtol=1e-9, atol=1e-12)
            expected_sums = [one + other for one, other in zip(expected_sums, of_group, strict=True)]
        for found, expected in zip(sums, expected_sums, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(("residual", "gated", "passes"), [(False, False, 13), (True, False, 14), (True, True, 14)])
def test_how_often_batch_normalisation_and_relu_go_through_memory(residual, gated, passes):
    """Reads and writes of whole arrays in the compiled program.

    Forward: two sums read x; then x (and the shortcut) is read and y written. Backward: dy and x (after a shortcut, y) are
    read and their masked product written; two sums read it, one of them x, too; both are read and dx written. A gate adds
    nothing to it.
    """
    x, channels = jnp.ones((8, 28, 28, 256)), jnp.ones(256)

    def block(x, scale, bias, shortcut):
        y = layers.batch_normalize(x, scale, bias, 1e-5, gate=_gate if gated else None)[0]
        return layers.bottleneck(x, lambda _: y, lambda _: shortcut) if residual else jax.nn.relu(y)

    def both(x, scale, bias, shortcut, dy):
        y, vjp = jax.vjp(block, x, scale, bias, shortcut)
        return y, vjp(dy)[: 3 + residual]

    text = xla.jit(both, train=True).lower(x, channels, channels, x, x).compile().as_text()
    text = text[text.index("ENTRY") :]
    lines = re.findall(r"^ *(?:ROOT )?%(\S+) = (.*?) ([\w-]+)\((.*?)\)", text, re.M)
    large = {name for name, shape, *_ in lines if "[8,28,28,256]" in shape or "[6272,256]" in shape}
    moving = [(name, re.findall(r"%([\w.-]+)", operands)) for name, _, kind, operands in lines if kind in ("fusion", "copy")]
    assert sum((name in large) + len(large.intersection(operands)) for name, operands in moving) == passes


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gate_scales_what_is_normalised(dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(3, 2, size=(2, 3, 3, 4)), dtype)
    mean, scale, bias = rng.normal(size=(3, 4)).astype(np.float32)
    variance = rng.uniform(1, 2, 4).astype(np.float32)
    found = layers.normalize(x, mean, variance, scale, bias, 1e-3, _gate)
    y = (np.asarray(x, np.float32) - mean) / np.sqrt(variance + 1e-3) * scale + bias
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 2**-8}
    np.testing.assert_allclose(found.astype(jnp.float32), y * _gate(y.mean((1, 2)))[:, None, None], **tolerance)


def test_excitation_is_a_small_network_of_the_means():
    pooled = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    down, up = np.ones((4, 2), np.float32), np.full((2, 4), 0.5, np.float32)
    expected = 1 / (1 + np.exp(-np.maximum(pooled @ down, 0) @ up))
    np.testing.assert_allclose(layers.excitation(pooled, lambda x: x @ down, lambda x: x @ up), expected, rtol=1e-5)
