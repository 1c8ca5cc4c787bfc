import jax
import jax.numpy as jnp
import pytest

from jaxcls import xla
from jaxcls.models.convolution import conv
from jaxcls.models.layers import materialize


@pytest.fixture(autouse=True)
def forget():
    xla.compiler_options.cache_clear()
    yield
    xla.compiler_options.cache_clear()


def test_every_option_is_known_here():
    assert xla.compiler_options("cpu", train=False) == xla.OPTIONS["cpu"]
    assert xla.compiler_options("cpu", train=True) == xla.OPTIONS["cpu"] | xla.TRAINING["cpu"]
    assert xla.compiler_options("something else", train=True) == {}


def test_what_the_user_has_set_is_left_alone(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_disable_hlo_passes=fusion")
    assert "xla_disable_hlo_passes" not in xla.compiler_options("cpu", train=True)
    assert "xla_cpu_experimental_ynn_fusion_type" in xla.compiler_options("cpu", train=True)


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(xla.OPTIONS, "cpu", xla.OPTIONS["cpu"] | {"xla_cpu_no_such_option": "1"})
    assert set(xla.compiler_options("cpu", train=False)) == set(xla.OPTIONS["cpu"]) - {"xla_cpu_no_such_option"}


def test_a_residual_sum_is_computed_once_however_deep_the_network():
    def residual(x, kernels, keep):
        for kernel in kernels:
            x = keep(jax.nn.relu(x @ kernel + x))
        return x

    x, kernels = jnp.ones((64, 64)), [jnp.ones((64, 64))] * 6

    def sums(keep):
        text = xla.jit(lambda x, kernels: residual(x, kernels, keep), train=False).lower(x, kernels).compile().as_text()
        return text.count(" add(")

    assert sums(materialize) == 6
    assert sums(lambda x: x) > 6  # what XLA:CPU does by itself; no longer so: `materialize` can go


def test_the_three_products_of_a_1x1_are_ynnpacks_in_training():
    x, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((1, 1, 32, 64))

    def gradients(x, kernel):
        return jax.value_and_grad(lambda x, kernel: jnp.square(conv(x, kernel)).sum(), (0, 1))(x, kernel)

    text = {train: xla.jit(gradients, train=train).lower(x, kernel).compile().as_text() for train in (True, False)}
    # What there is of another product is in the computations of the fusions.
    outside = {train: text[train].partition("ENTRY")[2].count(" dot(") for train in text}
    assert outside == {True: 0, False: 3}


def test_convolutions_are_not_ynnpacks():
    x, kernel = jnp.ones((4, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    def dw(x, kernel):
        return jax.grad(lambda kernel: conv(x, kernel, padding=1).sum())(kernel)

    assert "ynn_fusion" not in xla.jit(dw, train=True).lower(x, kernel).compile().as_text()
