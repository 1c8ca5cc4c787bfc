"""The networks and the training step against an independent PyTorch build, on the same random weights and images.

Float64 finds real differences, since rounding is 1e-16 there; float32 is measured by PyTorch's own rounding error. In
float32 gradients cannot be compared: an activation near zero falls on either side of a ReLU by rounding.
"""

import copy
import math
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

import jaxcls  # noqa: E402
from jaxcls.config import OptimConfig, ScheduleConfig  # noqa: E402
from jaxcls.interop.torch_resnet import build  # noqa: E402
from jaxcls.interop.torch_weights import from_torch, to_torch  # noqa: E402
from jaxcls.train import optim, steps  # noqa: E402
from jaxcls.train.losses import cross_entropy  # noqa: E402
from jaxcls.train.state import TrainState  # noqa: E402

# resnet50-v1 has the stride elsewhere, so the weights are those of resnet50.
PARAMETERS = {
    "resnet50": 25_557_032,
    "resnet50-v1": 25_557_032,
    "resnext101-32x4d": 44_177_704,
    "se-resnext101-32x4d": 45_251_128,
}
CLASSES = 1000
SMOOTHING = 0.1
PEAK_LR, MOMENTUM, DECAY, EPOCHS = 0.1, 0.875, 1 / 16384, 10
EVALUATION_SIZE = {"resnet50": 224}  # pixels; 64 for the others, to save time


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    model = jaxcls.create_model(name, num_classes=CLASSES)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[name]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("output", ["logits", "losses"])
def test_evaluation_in_float64(evaluated, output):
    assert evaluated.jax_float64[output] <= 1e-10


@pytest.mark.parametrize("output", ["logits", "losses"])
def test_evaluation_in_float32(evaluated, output):
    """No worse than three times PyTorch's own error in float32."""
    assert evaluated.jax_float32[output] <= 3 * evaluated.torch_float32[output]


def test_training_loss_and_learning_rate(trained):
    np.testing.assert_allclose(*trained.losses, rtol=1e-8)
    np.testing.assert_allclose(*trained.lrs, rtol=1e-12)


@pytest.mark.parametrize("what", ["gradients", "updates", "statistics"])
def test_training_in_float64(trained, what):
    """Gradients of every parameter, what two steps of the optimizer did to it, and every running mean and variance."""
    errors = getattr(trained, what)
    assert {key: error for key, error in errors.items() if not error <= 1e-8} == {}


@pytest.fixture(scope="module", params=PARAMETERS)
def network(request):
    """A PyTorch network in float32: nothing is 0 or 1, and its BN statistics are of a forward pass on noise."""
    name = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(name, CLASSES)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                torch.nn.init.normal_(module.bias, std=0.2)
    for module in net.modules():
        if hasattr(module, "bn3"):
            module.bn3.weight.data /= 4  # as after training; with 33 blocks of full weight gradients grow by depth
    size = EVALUATION_SIZE.get(name, 64)
    calibrate(net, as_torch(normalized(noise(1, 4, size)), torch.float32))
    return name, net, size


def calibrate(net, images):
    layers = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0  # keep this batch's statistics only
    with torch.no_grad():
        net.train()(images)
    for layer in layers:
        layer.momentum = 0.1


@pytest.fixture(scope="module")
def evaluated(network):
    """Errors of logits and losses on both sides, relative to the largest logit; PyTorch in float64 is right."""
    name, net, size = network
    images = normalized(noise(2, 4, size)).astype(np.float32)
    truth = evaluate_torch(net, images, torch.float64)
    variables = from_torch({key: tensor.numpy() for key, tensor in net.state_dict().items()})

    def errors(outputs):
        return {key: np.abs(outputs[key] - truth[key]).max() / np.abs(truth["logits"]).max() for key in truth}

    result = types.SimpleNamespace(
        torch_float32=errors(evaluate_torch(net, images, torch.float32)),
        jax_float32=errors(evaluate_jax(name, variables, images, "float32")),
        jax_float64=errors(evaluate_jax(name, variables, images, "float64")),
    )
    print(f"\n{name}, {size} px, logits:", *(f"{side} {error['logits']:.1e}" for side, error in vars(result).items()))
    return result


def evaluate_torch(net, images, dtype):
    """Logits `[N, C]`, and the smoothed losses `[N, C]` that each of the classes would give as label."""
    net = copy.deepcopy(net).to(dtype).eval()
    with torch.no_grad():
        logits = net(as_torch(images, dtype))
        labels = torch.arange(CLASSES).expand(len(images), CLASSES)
        logits_per_label = logits[:, :, None].expand(-1, -1, CLASSES)  # [N,C] -> [N,C,labels]
        losses = torch.nn.functional.cross_entropy(logits_per_label, labels, label_smoothing=SMOOTHING, reduction="none")
    return {"logits": logits.numpy(), "losses": losses.numpy()}


def evaluate_jax(name, variables, images, dtype):
    """As `evaluate_torch`."""
    with jax.enable_x64(dtype == "float64"):
        model = jaxcls.create_model(name, num_classes=CLASSES, dtype=dtype, param_dtype=dtype)
        variables = jax.tree.map(lambda array: jnp.array(array, dtype), variables)
        logits = jax.jit(lambda *args: model.apply(*args, train=False))(variables, jnp.array(images, dtype))

        def losses_if_all_were(label):
            targets = jax.nn.one_hot(jnp.full(len(images), label), CLASSES, dtype=dtype)
            return cross_entropy(logits, targets, SMOOTHING)

        losses = jax.vmap(losses_if_all_were, out_axes=1)(jnp.arange(CLASSES))
        assert logits.dtype == losses.dtype == dtype
        return {"logits": np.asarray(logits), "losses": np.asarray(losses)}


@pytest.fixture(scope="module")
def trained(network):
    """Two steps of SGD on either side in float64, from the same weights on the same images."""
    name, net, _ = network
    net = copy.deepcopy(net).double()
    start = {key: tensor.numpy().copy() for key, tensor in net.state_dict().items()}
    batches = [(noise(seed, 4, 64), np.array([seed, 5, 7, 999])) for seed in (3, 4)]
    theirs = train_torch(net, batches)
    ours = train_jax(name, from_torch(start), batches)
    errors = {"gradients": {}, "updates": {}, "statistics": {}}
    for key in theirs["gradients"]:
        # The momentum after the first step is the gradient plus the decay.
        gradient = ours["momentum"][key] - (0 if "bn" in key else DECAY) * start[key]
        errors["gradients"][key] = relative_error(gradient, theirs["gradients"][key])
        # Of how far the parameter moved: harder than of the parameter.
        errors["updates"][key] = relative_error(ours["end"][key] - start[key], theirs["end"][key] - start[key])
    for key in start:
        if "running" in key:
            errors["statistics"][key] = relative_error(ours["end"][key], theirs["end"][key])
    print(f"\n{name}, float64, worst:", *(f"{what} {max(error.values()):.1e}" for what, error in errors.items()))
    lists = {key: (ours[key], theirs[key]) for key in ("losses", "lrs")}
    return types.SimpleNamespace(**lists, **errors)


def train_torch(net, batches):
    """The reference's optimizer: decay goes by name, so the shortcuts' BN, called `downsample.1`, is decayed."""
    named = dict(net.named_parameters())
    groups = [
        {"params": [named[key] for key in named if "bn" in key], "weight_decay": 0.0},
        {"params": [named[key] for key in named if "bn" not in key], "weight_decay": DECAY},
    ]
    optimizer = torch.optim.SGD(groups, lr=PEAK_LR, momentum=MOMENTUM)
    result = {"losses": [], "lrs": []}
    net.train()
    for epoch, (images, labels) in enumerate(batches):  # of one step each
        lr = PEAK_LR * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        logits = net(as_torch(normalized(images), torch.float64))
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=SMOOTHING)
        loss.backward()
        result.setdefault("gradients", {key: parameter.grad.numpy().copy() for key, parameter in named.items()})
        optimizer.step()
        result["losses"].append(loss.item())
        result["lrs"].append(lr)
    optimizer.zero_grad()  # drops the gradients' memory
    return result | {"end": {key: tensor.numpy() for key, tensor in net.state_dict().items()}}


def train_jax(name, variables, batches):
    """The step that training runs, on one device."""
    with jax.enable_x64(True):
        model = jaxcls.create_model(name, num_classes=CLASSES, dtype=jnp.float64, param_dtype=jnp.float64)
        schedule = optim.make_schedule(
            ScheduleConfig(name="cosine", warmup_epochs=0.0), peak_lr=PEAK_LR, epochs=EPOCHS, steps_per_epoch=1
        )
        optimizer = optim.make_optimizer(OptimConfig(momentum=MOMENTUM, weight_decay=DECAY, decay_bn="reference"), schedule)
        mesh = steps.make_mesh(jax.devices()[:1])
        step = steps.make_train_step(model, optimizer, schedule, mesh, label_smoothing=SMOOTHING)
        variables = jax.tree.map(jnp.array, variables)  # copies: the step takes its arguments' memory
        params, batch_stats = variables["params"], variables["batch_stats"]
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
        state = jax.device_put(state, jax.sharding.NamedSharding(mesh, steps.REPLICATED))  # where the step leaves it
        result = {"losses": [], "lrs": []}
        for images, labels in batches:
            state, metrics = step(state, images, labels.astype(np.int32), jax.random.key(0))
            result["losses"].append(float(metrics["loss"]))
            result["lrs"].append(float(metrics["lr"]))
            if "momentum" not in result:
                trace = optax.tree_utils.tree_get(state.opt_state, "trace")
                result["momentum"] = to_torch({"params": trace, "batch_stats": state.batch_stats})
        return result | {"end": to_torch(state.variables)}


def noise(seed, count, size):
    """uint8 images `[count, size, size, 3]`."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def normalized(images):
    """float64, as networks take images of ImageNet."""
    return (images / 255.0 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])


def as_torch(images, dtype):
    return torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)  # NHWC -> NCHW


def relative_error(actual, expected):
    """The largest difference over the largest value expected."""
    assert np.abs(expected).max() > 0, "zeros test nothing"
    return np.abs(actual - expected).max() / np.abs(expected).max()
