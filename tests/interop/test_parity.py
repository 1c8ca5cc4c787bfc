"""The networks and the training step against an independent PyTorch build, on the same random weights and images.

Float64 finds real differences, since rounding is 1e-16 there; float32 is measured by PyTorch's own rounding error. In
float32 gradients cannot be compared: an activation near zero falls on either side of a ReLU by rounding.
"""

import math
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import jaxcls  # noqa: E402
from jaxcls.interop import comparison, jax_side, torch_side  # noqa: E402
from jaxcls.interop.torch_resnet import ARCHITECTURES, Architecture, build, randomize  # noqa: E402
from jaxcls.interop.torch_weights import REFERENCE, from_torch  # noqa: E402
from jaxcls.models import resnet  # noqa: E402
from jaxcls.models.convolution import conv  # noqa: E402
from jaxcls.models.initial import variable_shapes  # noqa: E402
from jaxcls.train.losses import cross_entropy  # noqa: E402

# resnet50-v1 has the stride elsewhere, so the weights are those of resnet50.
PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet50-v1": 25_557_032,
    "resnext101-32x4d": 44_177_704,
    "se-resnext101-32x4d": 45_251_128,
}
CLASSES = 1000
SIZE = 224
SMALL = 64  # pixels, of what trains
AT_FULL_SIZE = [pytest.param((name, SIZE), marks=pytest.mark.long) for name in PARAMETERS if name != "resnet50-v1"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    shapes = variable_shapes(jaxcls.create_model(name, num_classes=CLASSES))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[name]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == PARAMETERS[name]


def test_evaluation_in_float64(evaluation):
    network, evaluated = evaluation
    assert evaluated["logits"]["max_rel"] <= 1e-10 and evaluated["logits"]["top1_agreement"] == 100
    assert evaluated["first_divergence"] is None
    layers = sum(isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear) for m in network.net.modules())
    blocks = sum(network.model.spec.depths)
    assert len(evaluated["activations"]) == layers + blocks + len(network.model.spec.depths), "every layer, block and stage"


def test_evaluation_in_float32(evaluation):
    """No worse than three times PyTorch's own error in float32."""
    _, evaluated = evaluation
    assert evaluated["logits"]["float32"]["jax"] <= 3 * evaluated["logits"]["float32"]["torch"]


def test_smoothed_loss():
    """The losses `[N, labels]` that each of the classes would give as label."""
    network = make_network("resnet50")

    def theirs(dtype):
        logits = torch.from_numpy(torch_side.forward(network.net, REFERENCE, network.small, dtype)["logits"])
        repeated = logits[:, :, None].expand(-1, -1, CLASSES)  # [N,C] -> [N,C,labels]
        labels = torch.arange(CLASSES).expand(len(logits), CLASSES)
        return torch.nn.functional.cross_entropy(repeated, labels, label_smoothing=0.1, reduction="none").numpy()

    @jax.enable_x64(True)
    def ours(dtype):
        logits = jnp.asarray(jax_side.forward(network.model, network.variables, network.small, dtype)["logits"])
        losses = jax.vmap(lambda target: cross_entropy(logits, target[None], 0.1), out_axes=1)
        losses = losses(jnp.eye(CLASSES, dtype=dtype))
        assert losses.dtype == dtype
        return np.asarray(losses)

    truth = theirs("float64")
    assert comparison.relative_error(ours("float64"), truth) <= 1e-10
    assert comparison.relative_error(ours("float32"), truth) <= 3 * comparison.relative_error(theirs("float32"), truth)


@pytest.mark.parametrize("name", ["resnet50", pytest.param("se-resnext101-32x4d", marks=pytest.mark.long)])
def test_gradients_in_float64(name):
    """The others are made of the same parts, but for v1's stride."""
    network = make_network(name)
    labels = np.array([3, 5, 7, 999])
    found = comparison.compare_gradients(*network.sides, network.small, labels)
    assert {name: error for name, error in found["parameters"].items() if not error <= 1e-8} == {}
    assert found["loss_jax"] == pytest.approx(found["loss_torch"], rel=1e-12)
    assert len(found["parameters"]) == len(list(network.net.parameters()))


def test_steps_in_float64(tiny):
    """What steps of the optimizer do to each parameter, and the running means and variances; mixup is on."""
    for step in train(tiny, steps=6, reseat=True):
        assert step["loss_jax"] == pytest.approx(step["loss_torch"], rel=1e-8)
        assert step["lr_jax"] == pytest.approx(step["lr_torch"], rel=1e-12)
        assert step["updates"] <= 1e-8 and step["statistics"] <= 1e-8


@pytest.mark.long
def test_twenty_steps_by_themselves_in_float64():
    """With the last BN scale of each block 0 training is not chaotic."""
    network = make_network("resnet50", zero_init_last_bn=True)
    rows = list(train(network, steps=20, reseat=False))
    assert len(rows) == 20 and len({row["lr_torch"] for row in rows}) > 7, "warm-up and cosine"
    for row in rows:
        assert row["loss_jax"] == pytest.approx(row["loss_torch"], rel=1e-8)
        assert row["parameters"] <= 1e-8 and row["statistics"] <= 1e-8
    assert rows[-1]["loss_torch"] != pytest.approx(rows[0]["loss_torch"], rel=1e-2), "it has trained"


def test_the_known_differences_show_when_they_are_not_matched(tiny):
    unlike = [next(train(tiny, steps=4, reseat=True, **options)) for options in ({"decay_bn": "none"}, {"every": "step"})]
    assert unlike[0]["updates"] > 1e-6 and unlike[0]["loss_jax"] == pytest.approx(unlike[0]["loss_torch"], rel=1e-12)
    assert unlike[1]["lr_jax"] != pytest.approx(unlike[1]["lr_torch"], rel=1e-3)


# A difference planted on the JAX side is found, and its layer named.


@pytest.mark.long
def test_planted_padding(monkeypatch):
    def lopsided(x, kernel, *, stride, padding, groups):
        """What `SAME` does to a strided 3x3 on an even image: no zeros before, one behind."""
        if stride == 1 or padding != 1:
            return conv(x, kernel, stride=stride, padding=padding, groups=groups)
        return conv(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), kernel, stride=stride, groups=groups)

    network = make_network("resnet50", size=SIZE)
    monkeypatch.setattr(resnet, "conv", lopsided)
    assert compare(network)["first_divergence"] == "stage2/block0/conv2"


@pytest.mark.long
def test_planted_epsilon():
    network = make_network("resnet50", size=SIZE)
    found = compare(network, model=network.model.clone(bn_epsilon=1e-3))
    assert found["first_divergence"] == "stem/bn"


@pytest.mark.long
def test_planted_transposed_gate():
    network = make_network("se-resnext101-32x4d", size=SIZE)
    kernel = network.variables["params"]["stage3"]["block2"]["se"]["squeeze"]["kernel"]
    transposed = kernel.T.reshape(kernel.shape)  # (in, out) taken for (out, in)
    variables = jax.tree.map(lambda leaf: transposed if leaf is kernel else leaf, network.variables)
    assert compare(network, variables=variables)["first_divergence"] == "stage3/block2/se/squeeze"


@pytest.mark.long
def test_planted_stride():
    network = make_network("resnet50", size=SIZE)
    found = compare(network, model=jaxcls.create_model("resnet50-v1", num_classes=CLASSES))
    assert found["first_divergence"] == "stage2/block0/conv1"
    (row,) = (row for row in found["activations"] if row["name"] == "stage2/block0/conv1")
    assert row["note"] == "shape [2, 28, 28, 128] in place of [2, 56, 56, 128]"


@pytest.fixture
def tiny(monkeypatch):
    """Two stages, grouped and gated: of the same parts as the full networks."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", Architecture((1, 2), 8, 2, groups=4, gated=True))
    return make_network("tiny")


@pytest.fixture(scope="module", params=[*((name, SMALL) for name in PARAMETERS), *AT_FULL_SIZE])
def evaluation(request):
    """A network, and `compare` of its evaluation."""
    name, size = request.param
    network = make_network(name, size=size)
    return network, compare(network)


def make_network(name, size=SMALL, zero_init_last_bn=False):
    """Both sides of a network with random weights, and its BN statistics of a forward pass on noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(name, CLASSES, zero_init_last_bn=zero_init_last_bn)
    if not zero_init_last_bn:
        randomize(net, seed=0)
    images = torch_side.normalized(noise(1, 2, size))
    torch_side.calibrate(net, torch_side.normalized(noise(2, 4, size)))
    variables = from_torch(torch_side.arrays(net.state_dict()))
    model = jaxcls.create_model(name, num_classes=CLASSES)
    sides = (model, variables, net, REFERENCE)
    small = torch_side.normalized(noise(3, 4, SMALL))
    return types.SimpleNamespace(
        name=name, model=model, variables=variables, net=net, sides=sides, images=images, small=small
    )


def compare(network, model=None, variables=None):
    sides = (model or network.model, variables or network.variables, network.net, REFERENCE)
    return comparison.compare_forward(*sides, network.images)


def train(network, **options):
    labels = np.arange(3, 11, dtype=np.int32)
    return comparison.compare_training(*network.sides, noise(4, 8, SMALL), labels, **options)


def noise(seed, count, size):
    """uint8 images `[count, size, size, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
