import re
import zlib

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcls
from jaxcls import xla
from jaxcls.errors import ConfigError
from jaxcls.models.initial import Initial, initial_variables, variable_shapes
from jaxcls.models.resnet import ResNet, Spec, feature_names


def shapes(model, side=224):
    return jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, side, side, 3)), train=False), jax.random.key(0))


def count(name, **options):
    tree = shapes(jaxcls.create_model(name, num_classes=1000, **options))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet50", 25_557_032),
        ("resnet50-v1", 25_557_032),
        ("resnext101-32x4d", 44_177_704),
        ("se-resnext101-32x4d", 45_251_128),
    ],
)
def test_parameter_counts(name, parameters):
    assert count(name) == parameters


def test_se_width_of_a_sixteenth_of_the_channels():
    # 33 blocks with 3, 4, 23, 3 of them at 256, 512, 1024, 2048 channels c: c * c/16 twice, and both biases.
    gates = sum(n * (2 * c * (c // 16) + c + c // 16) for n, c in zip((3, 4, 23, 3), (256, 512, 1024, 2048), strict=True))
    assert count("se-resnext101-32x4d", se_width=0) == 44_177_704 + gates


@pytest.mark.parametrize(("name", "first", "second"), [("resnet50", 28, 14), ("resnet50-v1", 14, 14)])
def test_the_stride_sits_in_the_3x3_and_in_v1_in_the_first_1x1(name, first, second):
    model = jaxcls.create_model(name, num_classes=10)
    sides = {}

    def spy(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        sides["/".join(context.module.path)] = result
        return result

    def run(key):
        with nn.intercept_methods(spy):
            model.init(key, jnp.zeros((1, 224, 224, 3)), train=False)
        return {name: sides[f"stage3/block0/{name}"] for name in ("conv1", "conv2")}

    outputs = jax.eval_shape(run, jax.random.key(0))
    assert (outputs["conv1"].shape[1], outputs["conv2"].shape[1]) == (first, second)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        jaxcls.create_model("resnet-50", num_classes=10)
    model = jaxcls.create_model("tiny", num_classes=10)
    with pytest.raises(ValueError, match="no features.*stage9"):
        jax.eval_shape(
            lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False, features=("stage9",)), jax.random.key(0)
        )


@pytest.fixture(scope="module")
def variables():
    model = jaxcls.create_model("se-resnext101-32x4d", num_classes=1000, zero_init_last_bn=True)
    return initial_variables(model, 0)


def test_initialisation(variables):
    params = variables["params"]
    grouped = params["stage3"]["block5"]["conv2"]["kernel"]
    assert grouped.shape == (3, 3, 16, 512)
    # He normal: variance 2 / fan-in, the fan-in of one group; 73,728 samples give the deviation to half a percent.
    assert grouped.std() == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.02)
    assert abs(grouped).max() > 3.5 * grouped.std()  # untruncated
    assert (params["stage3"]["block5"]["bn3"]["scale"] == 0).all()
    assert (params["stage3"]["block5"]["bn2"]["scale"] == 1).all()
    head = params["head"]
    for leaf in (head["kernel"], head["bias"]):
        assert abs(leaf).max() <= 2048**-0.5
        assert leaf.std() == pytest.approx(2048**-0.5 / 3**0.5, rel=0.1)


def test_fan_out_is_not_divided_by_the_groups():
    model = jaxcls.create_model("tiny", num_classes=10, conv_init="fan_out")
    kernels = [initial_variables(model, seed)["params"]["stage2"]["block1"]["conv2"]["kernel"] for seed in range(4)]
    assert np.std(kernels) == pytest.approx((2 / (9 * 16)) ** 0.5, rel=0.1)  # 16 outputs, 4 groups


@pytest.mark.parametrize("distribution", ["normal", "uniform", "constant"])
def test_what_linen_draws_is_distributed_as_what_the_host_draws(distribution):
    initial, shape = Initial(distribution, 0.5), (40_000,)
    ours, linens = initial.draw(np.random.default_rng(0), shape, np.dtype("f4")), initial(jax.random.key(0), shape, "f4")
    assert ours.dtype == linens.dtype == np.float32
    quantiles = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(linens, quantiles), atol=0.02)


def test_a_value_depends_on_the_seed_and_its_place_alone():
    first, same, other = (initial_variables(jaxcls.create_model("tiny", num_classes=10), seed) for seed in (0, 0, 1))
    wider = initial_variables(jaxcls.create_model("tiny", num_classes=7), 0)
    equal = {
        name: jax.tree.map(np.array_equal, first["params"], tree["params"])
        for name, tree in {"same": same, "other": other, "wider": wider}.items()
    }
    assert all(jax.tree.leaves(equal["same"]))
    assert not equal["other"]["stem"]["conv"]["kernel"] and not equal["other"]["head"]["bias"]
    assert not any(jax.tree.leaves(equal["wider"].pop("head"))) and all(jax.tree.leaves(equal["wider"]))
    blocks = first["params"]["stage2"]
    assert not np.array_equal(blocks["block0"]["conv3"]["kernel"], blocks["block1"]["conv3"]["kernel"])
    # The same numbers for good: NumPy's PCG64 from SeedSequence((seed, CRC-32 of the path)).
    rng = np.random.default_rng((0, zlib.crc32(b"params/head/bias")))
    np.testing.assert_array_equal(first["params"]["head"]["bias"], (2 * rng.random(10, "f4") - 1) * np.float32(32**-0.5))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), first) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), variable_shapes(jaxcls.create_model("tiny", num_classes=10))
    )


def test_parameters_of_other_shapes_are_refused():
    model = jaxcls.create_model("tiny", num_classes=10)
    variables = initial_variables(jaxcls.create_model("tiny", num_classes=7), 0)
    with pytest.raises(flax.errors.ScopeParamShapeError, match="head"):
        model.apply(variables, jnp.ones((1, 32, 32, 3)), train=False)
    del variables["params"]["head"]["bias"]
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="bias"):
        jaxcls.create_model("tiny", num_classes=7).apply(variables, jnp.ones((1, 32, 32, 3)), train=False)


def test_features_by_name():
    model = jaxcls.create_model("tiny", num_classes=10)
    images = jnp.ones((2, 64, 64, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    names = feature_names(model.spec)
    features = model.apply(variables, images, train=False, features=names)
    assert list(features) == list(names)
    assert features["stem"].shape == (2, 16, 16, 64)
    assert features["stage2"].shape == features["stage2/block1"].shape == (2, 8, 8, 32)
    assert features["pooled"].shape == (2, 32)
    np.testing.assert_array_equal(features["logits"], model.apply(variables, images, train=False))


def test_running_statistics_are_pytorchs():
    model = jaxcls.create_model("tiny", num_classes=10, bn_momentum=0.25)
    images = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    _, updates = model.apply(variables, images, train=True, mutable="batch_stats")
    kernel = variables["params"]["stem"]["conv"]["kernel"]
    y = jax.lax.conv_general_dilated(images, kernel, (2, 2), [(3, 3)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    stats = updates["batch_stats"]["stem"]["bn"]
    np.testing.assert_allclose(stats["mean"], 0.25 * np.mean(y, (0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.75 + 0.25 * np.var(y, (0, 1, 2), ddof=1), rtol=1e-4)


def test_bf16_computes_in_bf16_and_answers_in_float32():
    model = jaxcls.create_model("tiny", num_classes=10, dtype=jnp.bfloat16)
    images = jnp.ones((2, 32, 32, 3))
    variables = model.init(jax.random.key(0), images, train=False)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    features = model.apply(variables, images, train=False, features=("stem", "stage2", "logits"))
    assert [features[name].dtype for name in features] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    text = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line or "dot_general" in line]
    # Only the classifier and the SE gates multiply in float32, and they see [N, C]; all else has four dimensions.
    four_dimensional = re.compile(r"tensor<(\d+x){4}(\w+)>")
    assert {match[2] for line in products for match in four_dimensional.finditer(line)} == {"bf16"}


def test_blocks_computed_again_are_the_same_in_less_memory():
    images = np.random.default_rng(0).standard_normal((8, 64, 64, 3), np.float32)

    def gradients(remat):
        model = ResNet(Spec((6,), (32,), expansion=2), 10, remat=remat)
        variables = initial_variables(model, 0)

        def loss(params):
            logits, updates = model.apply(variables | {"params": params}, images, train=True, mutable="batch_stats")
            return jnp.square(logits).mean(), updates

        program = xla.jit(jax.value_and_grad(loss, has_aux=True), train=True).lower(variables["params"]).compile()
        return program(variables["params"]), program.memory_analysis().temp_size_in_bytes

    (kept, memory), (again, less) = gradients(False), gradients(True)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    assert less < 0.8 * memory
