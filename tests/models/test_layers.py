import jax
import jax.numpy as jnp
import numpy as np

from jaxcls.models import layers


def test_max_pool_is_the_maximum_of_each_padded_window():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    expected = np.stack(
        [np.stack([padded[:, i : i + 3, j : j + 3].max((1, 2)) for j in range(0, 8, 2)], 1) for i in range(0, 7, 2)],
        1,
    )
    np.testing.assert_array_equal(layers.max_pool(x), expected)


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


def test_squeeze_excite_scales_channels():
    x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
    down, up = np.ones((4, 2), np.float32), np.full((2, 4), 0.5, np.float32)
    gate = 1 / (1 + np.exp(-np.maximum(x.mean((1, 2)) @ down, 0) @ up))
    result = layers.squeeze_excite(x, lambda x: x @ down, lambda x: x @ up)
    np.testing.assert_allclose(result, x * gate[:, None, None], rtol=1e-5)
