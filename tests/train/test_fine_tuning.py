"""Training that starts from PyTorch's weights, with parts frozen and with learning rates of their own."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

torch = pytest.importorskip("torch")

import jaxcls  # noqa: E402
from jaxcls import classify, convert, main  # noqa: E402
from jaxcls.config import OptimConfig  # noqa: E402
from jaxcls.errors import ConfigError  # noqa: E402
from jaxcls.interop.torch_resnet import Architecture, TorchResNet  # noqa: E402
from jaxcls.interop.torch_weights import from_torch, to_torch  # noqa: E402
from jaxcls.loading import load_arrays  # noqa: E402
from jaxcls.train import steps  # noqa: E402
from jaxcls.train.optim import make_optimizer  # noqa: E402
from jaxcls.train.state import TrainState  # noqa: E402
from jaxcls.train.transfer import transfer  # noqa: E402
from tests.torch_states import make_state, prefixed  # noqa: E402
from tests.train.runs import configure, lines, make_folder, same_state, saved_state, train  # noqa: E402

FROZEN = ("stem", "stage1")
SETTINGS = {"train.epochs": 1.0, "optim.freeze": FROZEN, "optim.group_lr": ("head=10",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), classes=("ant", "bee"))


@pytest.fixture(scope="module")
def state():
    return make_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    """A training checkpoint of PyTorch, of five classes."""
    return save(tmp_path_factory.mktemp("torch") / "checkpoint.pth.tar", state)


def save(path, state):
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in prefixed(state).items()}
    torch.save({"epoch": 7, "state_dict": tensors}, path)
    return path


@pytest.fixture(scope="module")
def tuned(folder, file, tmp_path_factory):
    """A finished run that started from the file."""
    workdir = tmp_path_factory.mktemp("tuned")
    train(workdir, configure(folder, **SETTINGS, **{"checkpoint.init_from": str(file)}))
    return workdir


def arrays_of(tree, part=None):
    found = flatten_dict({name: tree[name] for name in ("params", "batch_stats")})
    return {path: array for path, array in found.items() if part in (None, path[1])}


def test_frozen_parts_stay_bit_for_bit(tuned, state):
    """Their BN statistics, too; every other array moves."""
    before, after = from_torch(state), saved_state(tuned, 3)
    counts = {}
    for part in ("stem", "stage1", "stage2"):
        old, new = arrays_of(before, part), arrays_of(after, part)
        assert old.keys() == new.keys()
        counts[part] = sum(np.asarray(new[path]).tobytes() == old[path].tobytes() for path in old), len(old)
    assert counts == {"stem": (5, 5), "stage1": (24, 24), "stage2": (0, 43)}
    assert after["params"]["head"]["kernel"].shape == (32, 2)
    assert all(np.isfinite(record["train.loss"]) for record in lines(tuned))


def test_what_was_trained_goes_everywhere(tuned, folder, tmp_path, capsys):
    best = json.loads((tuned / "summary.json").read_text())["best_step"]
    _, variables, meta = jaxcls.load(tuned)
    expected = arrays_of(saved_state(tuned, best))
    for path, array in arrays_of(variables).items():
        assert np.array_equal(array, expected[path]), path
    assert meta["classes"] == ["ant", "bee"] and meta["provenance"]["step"] == best
    assert classify.main(["jaxcls classify", "--weights", str(tuned), "--json", str(folder / "val" / "ant")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 6 and {guess["label"] for one in found for guess in one["predictions"]} == {"ant", "bee"}
    assert convert.main(["jaxcls convert", str(tuned), str(tmp_path / "a.pth")]) == 0
    exported = torch.load(tmp_path / "a.pth", weights_only=True)
    net = TorchResNet(Architecture((1, 2), 8, 2, groups=4, gated=True), 2, 16)
    net.load_state_dict(exported, strict=True)
    assert exported["layers.1.0.bn1.num_batches_tracked"] == best


def command(workdir, folder, *overrides):
    """Runs `python -m jaxcls.main`; the exit code."""
    settings = {"model.name": "tiny", "data.path": folder, "data.image_size": 32, "train.batch_size": 8, "train.epochs": 1}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return main.main(["main", "--config", "configs/resnet50.py", "--workdir", str(workdir), *flags, *overrides])


FLAGS = ["--config.schedule.every=step", "--config.optim.freeze=stem,stage1", "--config.optim.group_lr=head=10"]


def test_from_what_was_converted_resumed_by_the_same_command(tuned, folder, file, tmp_path, capsys):
    """It ends as the run from the PyTorch file did, which nothing interrupted."""
    weights, workdir = tmp_path / "weights", tmp_path / "run"
    assert convert.main(["jaxcls convert", str(file), str(weights)]) == 0
    flags = [*FLAGS, f"--config.checkpoint.init_from={weights}"]
    assert command(workdir, folder, *flags, "--config.train.max_steps=2") == 0
    out = capsys.readouterr().out
    assert f"from {weights} (a training checkpoint with reference names, tiny, 5 classes, float32; took state_dict" in out
    assert "New: params/head/kernel (32, 2), in place of (32, 5)." in out
    assert command(workdir, folder, *flags) == 0
    out = capsys.readouterr().out
    assert "Resuming at step 2 of 3" in out and "New:" not in out
    assert same_state(tuned, workdir, 3)


@pytest.mark.parametrize("spoiled", [True, False])
def test_weights_that_cannot_be_trained_on(state, folder, tmp_path, capsys, spoiled):
    """With NaN in them, or of another network."""
    arrays = {name: array.copy() for name, array in state.items()} if spoiled else {"layers.0.0.conv1.weight": np.zeros(3)}
    for name in ("fc.bias", "layers.1.1.bn3.running_mean") if spoiled else ():
        arrays[name].flat[0] = np.nan
    file = save(tmp_path / "a.pth", arrays)
    assert command(tmp_path / "run", folder, *FLAGS, f"--config.checkpoint.init_from={file}") == 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"jaxcls: checkpoint.init_from={file} cannot be trained on: " if spoiled else f"jaxcls: {file}: ")
    nan = "2 arrays hold NaN or infinity: batch_stats/stage2/block1/bn3/mean, params/head/bias."
    assert nan in last if spoiled else "missing conv1.weight" in last


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("optim.freeze", "stem,stage3", "optim.freeze: tiny has no part 'stage3'; it has stem, stage1, stage2, head"),
        ("optim.freeze", "stem,stage1,stage2,head", "optim.freeze names every part of the network"),
        ("optim.group_lr", "fc=10", "optim.group_lr: tiny has no part 'fc'; it has stem, stage1, stage2, head"),
        ("optim.group_lr", "head", "optim.group_lr=head is not PART=FACTOR, such as head=10"),
        ("optim.group_lr", "head=10,stem=", "optim.group_lr=stem= is not PART=FACTOR"),
        ("optim.group_lr", "head=ten", "optim.group_lr=head=ten is not PART=FACTOR"),
        (
            "optim.group_lr",
            "head=-1",
            "optim.group_lr=head=-1 is not PART=FACTOR, such as head=10, with a factor of at least 0",
        ),
        ("optim.group_lr", "head=inf", "optim.group_lr=head=inf is not PART=FACTOR"),
        ("optim.group_lr", "head=nan", "optim.group_lr=head=nan is not PART=FACTOR"),
        ("optim.group_lr", "=3", "optim.group_lr: tiny has no part ''"),
    ],
)
def test_wrong_parts(folder, tmp_path, capsys, key, value, reason):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, configure(folder, **{key: tuple(value.split(","))}))
    assert reason in str(caught.value)
    assert command(tmp_path, folder, f"--config.{key}={value}") == 2
    assert capsys.readouterr().err == f"jaxcls: {caught.value}\n"
    assert not list(tmp_path.iterdir())


def test_the_classifier_is_kept_where_it_fits(state, file):
    for classes, new in ((5, False), (2, True)):
        fresh = jax.tree.map(jnp.asarray, from_torch(make_state(classes=classes, seed=1)))
        found, said = transfer(fresh, load_arrays(file)[0], "there")
        expected = from_torch(state)
        if new:
            expected["params"]["head"] = fresh["params"]["head"]
        for path, array in arrays_of(expected).items():
            assert np.array_equal(arrays_of(found)[path], array), path
        assert said[0].startswith(f"Loaded {74 - 2 * new} arrays (") and said[0].endswith(" from there.")
        assert len(said) == 1 + 2 * new


def make_step(frozen, group_lr, devices, dtype):
    """A training step with a learning rate of 0.1, and its first state, from `make_state()`."""
    model = jaxcls.create_model("tiny", num_classes=5, frozen=frozen, dtype=dtype, param_dtype=dtype)
    config = OptimConfig(momentum=0.875, weight_decay=0.01, freeze=frozen, group_lr=group_lr)
    optimizer = make_optimizer(config, lambda step: 0.1)
    mesh = steps.make_mesh(jax.devices()[:devices])
    step = steps.make_train_step(model, optimizer, lambda step: 0.1, mesh, label_smoothing=0.1)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), from_torch(make_state()))
    params = variables["params"]
    state = TrainState(np.int32(0), params, variables["batch_stats"], jax.jit(optimizer.init)(params))
    return step, jax.device_put(state, jax.sharding.NamedSharding(mesh, steps.REPLICATED))


def make_batch(records):
    rng = np.random.default_rng(0)
    return rng.integers(256, size=(records, 32, 32, 3), dtype=np.uint8), rng.integers(5, size=records, dtype=np.int32)


@pytest.fixture
def net(state):
    """PyTorch's `tiny`, in float64."""
    net = TorchResNet(Architecture((1, 2), 8, 2, groups=4, gated=True), 5, 16).double()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return net


def normalized(images):
    pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)  # NHWC -> NCHW


def test_three_steps_as_in_pytorch(net, state):
    """There: modules in evaluation mode without gradients, and parameter groups."""
    images, labels = make_batch(6)
    net.train()
    for module in (net.conv1, net.bn1, net.layers[0]):
        module.eval().requires_grad_(False)
    groups = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            bn = name.rsplit(".", 2)[-2].startswith("bn") or ".downsample.1." in name
            options = (4.0 if name.startswith("fc.") else 0.5, 0.0 if bn else 0.01)
            groups.setdefault(options, []).append(parameter)
    groups = [{"params": ps, "lr": 0.1 * factor, "weight_decay": decay} for (factor, decay), ps in groups.items()]
    assert len(groups) == 3
    optimizer = torch.optim.SGD(groups, momentum=0.875)
    inputs = normalized(images)
    with jax.enable_x64(True):
        step, ours = make_step(FROZEN, ("head=4", "stage2=0.5"), 1, np.float64)
        for _ in range(3):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(net(inputs), torch.from_numpy(labels).long(), label_smoothing=0.1)
            loss.backward()
            optimizer.step()
            ours, metrics = step(ours, images, labels, jax.random.key(0))
            assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-10)
        found = to_torch(jax.device_get({"params": ours.params, "batch_stats": ours.batch_stats}))
    for name, tensor in net.state_dict().items():
        if not name.endswith("tracked"):
            expected = tensor.numpy()
            assert np.abs(found[name] - expected).max() <= 1e-8 * np.abs(expected).max(), name
            frozen = name.startswith(("conv1", "bn1", "layers.0"))
            assert np.array_equal(found[name], state[name]) == frozen, name


def test_a_frozen_backbone_stays_bit_for_bit_on_three_devices(net, state):
    """Whose means round; and the classifier's first step, by hand, from PyTorch's features in evaluation mode."""
    step, ours = make_step(("stem", "stage1", "stage2"), (), 3, np.float32)
    images, labels = make_batch(6)
    arrays = jax.device_put((images, labels), steps.batch_sharding(steps.make_mesh(jax.devices()[:3])))
    net.fc = torch.nn.Identity()
    with torch.no_grad():
        logits = net.eval()(normalized(images)).numpy() @ state["fc.weight"].T + state["fc.bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    targets = 0.9 * np.eye(5)[labels] + 0.1 / 5
    ours, metrics = step(ours, *arrays, jax.random.key(0))
    np.testing.assert_allclose(metrics["loss"], -(targets * np.log(p)).sum(1).mean(), rtol=1e-4)
    gradient = (p - targets).mean(0) + 0.01 * state["fc.bias"]
    np.testing.assert_allclose(ours.params["head"]["bias"], state["fc.bias"] - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    for _ in range(2):
        ours, _ = step(ours, *arrays, jax.random.key(0))
    before, after = arrays_of(from_torch(state)), arrays_of({"params": ours.params, "batch_stats": ours.batch_stats})
    moved = {path[1] for path in before if np.asarray(after[path]).tobytes() != before[path].tobytes()}
    assert moved == {"head"}
