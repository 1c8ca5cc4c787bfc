import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.models.convolution import LOWERINGS, Plan, choose_plan, conv, suits

# side, input channels, output channels, window, stride, groups: every kind of convolution in the networks, made small
SHAPES = [
    (9, 3, 8, 7, 2, 1),
    (8, 3, 8, 7, 2, 1),
    (6, 8, 16, 1, 1, 1),
    (7, 8, 16, 1, 2, 1),
    (6, 8, 8, 3, 1, 1),
    (7, 8, 6, 3, 1, 1),
    (6, 8, 8, 3, 2, 1),
    (1, 8, 8, 3, 1, 1),
    (6, 16, 16, 3, 1, 4),
    (5, 16, 32, 3, 2, 8),
    (1, 16, 16, 3, 1, 8),
    (5, 32, 32, 3, 2, 2),
    (4, 64, 64, 3, 1, 2),
]


def by_hand(x, kernel, stride, padding, groups):
    """Convolution by its definition, in float64."""
    kh, kw, per_group, out = kernel.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    h, w = (x.shape[1] - kh) // stride + 1, (x.shape[2] - kw) // stride + 1
    y = np.zeros((x.shape[0], h, w, out))
    for i in range(h):
        for j in range(w):
            window = x[:, i * stride : i * stride + kh, j * stride : j * stride + kw]
            for o in range(out):
                first = o // (out // groups) * per_group
                y[:, i, j, o] = np.sum(window[..., first : first + per_group] * kernel[..., o], (1, 2, 3))
    return y


@pytest.mark.parametrize("shape", SHAPES)
def test_every_lowering_computes_the_convolution_and_its_gradients(shape):
    side, channels, out, window, stride, groups = shape
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, side, side, channels))
    kernel = rng.normal(size=(window, window, channels // groups, out))
    padding = window // 2
    expected = by_hand(x, kernel, stride, padding, groups)
    dy = rng.normal(size=expected.shape)
    # The convolution is linear in each argument: <conv(u, k), dy> = <u, dx> for any u, and likewise for the kernel.
    u, v = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    with jax.enable_x64(True):
        for name in (name for name in LOWERINGS if suits(name, kernel.shape, stride, groups)):
            y, vjp = jax.vjp(
                lambda x, k, name=name: conv(
                    x, k, stride=stride, padding=padding, groups=groups, plan=Plan(name, name, name)
                ),
                *map(jnp.asarray, (x, kernel)),
            )
            dx, dkernel = vjp(jnp.asarray(dy))
            np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(np.sum(u * dx), np.sum(by_hand(u, kernel, stride, padding, groups) * dy), rtol=1e-10)
            np.testing.assert_allclose(np.sum(v * dkernel), np.sum(by_hand(x, v, stride, padding, groups) * dy), rtol=1e-10)


def test_the_gradients_use_the_lowering_that_the_plan_names(monkeypatch):
    used = []
    for name in ("a", "b", "c"):
        monkeypatch.setitem(LOWERINGS, name, lambda *args, name=name: used.append(name) or LOWERINGS["lax"](*args))
    x, kernel = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    jax.grad(lambda x, k: conv(x, k, padding=1, plan=Plan("a", "b", "c")).sum(), (0, 1))(x, kernel)
    assert used == ["a", "b", "c"]


def test_inference_has_a_lowering_of_its_own(monkeypatch):
    used = []
    for name in ("a", "b"):
        monkeypatch.setitem(LOWERINGS, name, lambda *args, name=name: used.append(name) or LOWERINGS["lax"](*args))
    x, kernel = np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 3, 3), np.float32)
    apply = functools.partial(conv, padding=1, plan=Plan("a", "lax", "lax", inference="b"))
    jax.jit(apply)(x, kernel)
    assert used == ["b"]
    jax.grad(lambda kernel: apply(x, kernel).sum())(kernel)
    assert used == ["b", "a"]


def test_convolutions_of_one_shape_are_traced_once(monkeypatch):
    traced = []
    monkeypatch.setitem(LOWERINGS, "counted", lambda *args: traced.append(1) or LOWERINGS["lax"](*args))

    def loss(x, kernels):
        for kernel in kernels:
            x = conv(x, kernel, padding=1, plan=Plan("counted", "counted", "counted"))
        return x.sum()

    x, kernel = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 2), np.float32)
    jax.jit(jax.grad(loss, (0, 1))).lower(x, [kernel] * 5)
    assert len(traced) == 3  # forward, dx and dw


def test_accelerators_take_their_own_convolution():
    for platform in ("gpu", "tpu", "something else"):
        assert choose_plan(platform, np.float32, (3, 3, 4, 128), 1, 32, 8, 56 * 56) == Plan("lax", "lax", "lax")


def test_winograd_is_for_large_float32_images_on_a_cpu_in_inference():
    def inference(channels, side, batch, dtype=np.float32, platform="cpu"):
        plan = choose_plan(platform, dtype, (3, 3, channels, channels), 1, 1, batch, side**2)
        assert plan[:3] == ("lax", "lax", "lax")
        return plan.inference

    assert inference(64, 56, 1) == inference(128, 28, 1) == inference(256, 14, 16) == inference(512, 7, 32) == "winograd"
    assert inference(512, 7, 16) is inference(256, 14, 2) is None  # few pixels for a kernel so large
    assert inference(64, 8, 32) is inference(128, 4, 32) is None  # a few million multiplications
    assert inference(128, 28, 8, jnp.bfloat16) is inference(128, 28, 8, platform="gpu") is None


def test_winograd_rounds_as_float32_does():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 14, 14, 256)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 256, 64)).astype(np.float32)
    dy = rng.normal(size=(2, 14, 14, 64)).astype(np.float32)

    def results(name, dtype):
        def apply(x, kernel):
            return conv(x, kernel, padding=1, plan=Plan(name, name, name))

        y, vjp = jax.vjp(apply, jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
        return [np.asarray(array) for array in (y, *vjp(jnp.asarray(dy, dtype)))]

    with jax.enable_x64(True):
        exact = results("lax", jnp.float64)
    for got, expected in zip(results("winograd", jnp.float32), exact, strict=True):
        assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_plan_is_of_lowerings_that_suit():
    for platform in ("cpu", "gpu"):
        for window, stride, channels, groups, side in itertools.product((1, 2, 3, 7), (1, 2), (4, 64), (1, 2, 4), (3, 56)):
            kernel = (window, window, channels // groups, channels)
            plan = choose_plan(platform, np.float32, kernel, stride, groups, 8, side**2)
            assert all(suits(name, kernel, stride, groups) for name in plan if name)


def test_wrong_channels_and_lowerings_are_refused():
    x = np.ones((1, 4, 4, 6), np.float32)
    for wrong, message in (
        ({"stride": 0}, "stride 0 must be at least 1"),
        ({"padding": -1}, "padding -1 at least 0"),
        ({"kernel": np.ones((5, 5, 6, 8), np.float32)}, "smaller than kernel"),
        ({"kernel": np.ones((3, 3, 6, 8), jnp.bfloat16)}, "images are float32, the kernel is bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            conv(x, **{"kernel": np.ones((3, 3, 6, 8), np.float32)} | wrong)
    with pytest.raises(ValueError, match="6 channels do not fit"):
        conv(x, np.ones((3, 3, 2, 8), np.float32), groups=2)
    with pytest.raises(ValueError, match=r"transposed cannot do kernel \(3, 3, 6, 8\) with stride 1 and 1 groups"):
        conv(x, np.ones((3, 3, 6, 8), np.float32), plan=Plan("lax", "lax", "transposed"))
    with pytest.raises(ValueError, match="winograd cannot do .* with stride 2"):
        conv(x, np.ones((3, 3, 6, 8), np.float32), stride=2, plan=Plan("winograd", "lax", "lax"))
    with pytest.raises(ValueError, match="no lowering"):
        conv(x, np.ones((3, 3, 6, 8), np.float32), plan=Plan("lax", "fft", "lax"))
