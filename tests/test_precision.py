"""Loss scales against hand arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.precision import DynamicLossScale, NoLossScale, StaticLossScale, make_loss_scale


def adjusted(scale, finite):
    return scale.adjust(jnp.array(finite))


def test_only_fp16_has_a_scale():
    for policy in ("fp32", "bf16", "fp64"):
        assert type(make_loss_scale(policy, 0.0)) is NoLossScale
    assert type(make_loss_scale("fp16", 512.0)) is StaticLossScale
    dynamic = make_loss_scale("fp16", 0.0)
    assert type(dynamic) is DynamicLossScale and float(dynamic.value) == 128


def test_scaling_and_its_inverse():
    loss, gradients = jnp.float32(3), {"a": jnp.arange(4, dtype=jnp.float32)}
    assert float(NoLossScale().scale(loss)) == 3 and NoLossScale().unscale(gradients) is gradients
    scale = make_loss_scale("fp16", 1024.0)
    assert float(scale.scale(loss)) == 3072 and float(scale.factor) == 1024
    np.testing.assert_array_equal(scale.unscale(gradients)["a"], np.arange(4) / 1024)
    assert float(adjusted(scale, False).value) == 1024, "a static one stays"


def test_the_scale_is_doubled_after_100_good_steps_and_halved_at_an_overflow():
    scale = make_loss_scale("fp16", 0.0)
    adjust = jax.jit(lambda scale, finite: scale.adjust(finite))
    seen = []
    for step in range(310):
        scale = adjust(scale, step not in (150, 151))
        seen.append(float(scale.value))
    # 0 to 99: doubled; 150 and 151: halved twice; 152 to 251: doubled again.
    assert seen == [128] * 99 + [256] * 51 + [128] + [64] * 100 + [128] * 59


@pytest.mark.parametrize(("value", "finite", "expected"), [(1, False, 1), (1.5, False, 1), (2**24, True, 2**24)])
def test_the_scale_has_bounds(value, finite, expected):
    scale = DynamicLossScale(value=jnp.float32(value), good_steps=jnp.int32(99))
    assert float(adjusted(scale, finite).value) == expected
