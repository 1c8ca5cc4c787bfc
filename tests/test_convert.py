"""`jaxcls convert`: PyTorch to jaxcls and back."""

import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from jaxcls import convert, loading  # noqa: E402
from jaxcls.interop import torch_weights, weights  # noqa: E402
from jaxcls.interop.torch_resnet import build  # noqa: E402
from tests.torch_states import (  # noqa: E402
    as_published,
    as_timm,
    assert_same_states,
    make_state,
    prefixed,
    with_convolutional_gates,
)
from tests.train.runs import configure, write_run  # noqa: E402


def run(*arguments):
    return convert.main(["jaxcls convert", *map(str, arguments)])


def save(path, state):
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)
    return path


def read(path):
    """A state dict as NumPy arrays, read by PyTorch alone."""
    found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return {name: tensor.numpy() for name, tensor in found.get("state_dict", found).items()}


@pytest.fixture
def state():
    return make_state()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("back", ["back.pth", "back.pth.tar", "back.safetensors"])
def test_there_and_back_bit_for_bit(tmp_path, capsys, back, dtype):
    """The counts of batches, which differ from layer to layer, included."""
    state = make_state(dtype=dtype)
    state["layers.1.0.bn2.bias"][:2] = [-0.0, 1e-42]
    assert run("--model", "tiny", save(tmp_path / "a.pth", state), tmp_path / "weights") == 0
    assert run(tmp_path / "weights", tmp_path / back) == 0
    assert_same_states(read(tmp_path / back), state)
    out, err = capsys.readouterr()
    assert out == f"Wrote {tmp_path / 'weights'}.\nWrote {tmp_path / back}.\n"
    assert f"{tmp_path / 'a.pth'}: weights with reference names, tiny, 5 classes, {np.dtype(dtype)}." in err


@pytest.mark.parametrize(
    ("names", "expected"), [("reference", lambda state: state), ("torchvision", as_published), ("timm", as_timm)]
)
def test_names_of_each_family_are_written(state, tmp_path, names, expected):
    source = save(tmp_path / "a.pth", prefixed(as_published(with_convolutional_gates(state))))
    assert run("--names", names, source, tmp_path / "b.pth") == 0
    assert_same_states(read(tmp_path / "b.pth"), expected(state))


def test_a_training_checkpoint_keeps_its_facts(state, tmp_path):
    content = {"state_dict": prefixed(state), "state_dict_ema": prefixed(make_state(seed=1))}
    content = {entry: {name: torch.from_numpy(np.array(a)) for name, a in s.items()} for entry, s in content.items()}
    facts = {"epoch": 7, "best_prec1": 76.5}
    torch.save(content | facts | {"best_prec1": torch.tensor(76.5)}, tmp_path / "a.pth.tar")
    assert run("--ema", tmp_path / "a.pth.tar", tmp_path / "weights") == 0
    assert run(tmp_path / "weights", tmp_path / "b.pth.tar") == 0
    found = torch.load(tmp_path / "b.pth.tar", weights_only=True)
    assert found.keys() == {"epoch", "best_prec1", "state_dict"} and {key: found[key] for key in facts} == facts
    assert_same_states(read(tmp_path / "b.pth.tar"), make_state(seed=1))


def test_class_names_and_origin_are_kept(state, tmp_path):
    source = save(tmp_path / "a.pth", state)
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\nemu\n")
    assert run("--labels", tmp_path / "names.txt", source, tmp_path / "weights") == 0
    metadata = weights.load(tmp_path / "weights")[1]
    assert metadata["classes"] == ["ant", "bee", "cat", "dog", "emu"]
    assert metadata["model"] == {"name": "tiny", "num_classes": 5, "se_width": 16}
    assert metadata["provenance"]["source"] == str(source) and metadata["provenance"]["names"] == "reference"


def test_a_run_to_pytorch(tmp_path):
    """Its steps are the batches that BN has seen."""
    state = make_state(classes=2)
    write_run(tmp_path / "run", configure("images"), ["ant", "bee"], {6: (torch_weights.from_torch(state), 50.0)})
    assert run(tmp_path / "run", tmp_path / "a.pth.tar") == 0
    counted = {name: np.array(6) if name.endswith("tracked") else array for name, array in state.items()}
    assert_same_states(read(tmp_path / "a.pth.tar"), counted)
    assert torch.load(tmp_path / "a.pth.tar", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("name", ["resnet50", "se-resnext101-32x4d"])
def test_the_networks_load_strictly_what_is_exported(name):
    with torch.device("meta"):
        net = build(name, num_classes=7)
    net.to_empty(device="cpu")
    for index, tensor in enumerate(net.state_dict().values()):
        tensor.fill_(index + 0.5)
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    variables, options, names = loading.from_state(state, name)
    assert options == {"name": name, "num_classes": 7, "se_width": 16}
    counts = torch_weights.batches_tracked(state, torch_weights.NAMINGS[names])
    exported = torch_weights.to_torch(variables, batches_tracked=counts)
    assert_same_states(exported, state)
    with torch.device("meta"):
        again = build(name, num_classes=7)
    again.load_state_dict({key: torch.from_numpy(array) for key, array in exported.items()}, strict=True, assign=True)


def truncated(path, state):
    save(path, state)
    path.write_bytes(path.read_bytes()[:-1000])


def wrong_shape(path, state):
    save(path, state | {"bn1.weight": np.zeros(32, np.float32)})


@pytest.mark.parametrize(
    ("make", "flags", "reason"),
    [
        (lambda path, state: None, [], "there is no file"),
        (lambda path, state: path.write_bytes(b""), [], "is not a PyTorch checkpoint, or is truncated"),
        (truncated, [], "is not a PyTorch checkpoint, or is truncated"),
        (lambda path, state: path.mkdir(), [], "is neither a run (with checkpoints/) nor weights"),
        (lambda path, state: torch.save(np.arange(3), path), [], "was refused: reading it would run code of its own"),
        (wrong_shape, ["--model", "tiny"], "bn1.weight has shape (32,), the network needs (64,)"),
        (save, ["--model", "resnet50"], "these are the weights of tiny, not of resnet50; name that network"),
        (save, ["--ema"], "holds no averaged weights"),
    ],
)
def test_weights_that_cannot_be_used(state, tmp_path, capsys, make, flags, reason):
    make(tmp_path / "a.pth", state)
    assert run(*flags, tmp_path / "a.pth", tmp_path / "weights") == 4
    out, err = capsys.readouterr()
    assert reason in err and err.startswith("jaxcls: ") and err.count("\n") == 1 and not out
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--model", "resnet5"], "no network is called 'resnet5'; did you mean 'resnet50'?"),
        (["--names", "keras"], "argument --names: invalid choice: 'keras'"),
        (["--mode", "tiny"], "unrecognized arguments: --mode"),
        (["--labels", "none.txt"], "class names none.txt cannot be read (No such file or directory)"),
        (["more"], "unrecognized arguments"),
    ],
)
def test_wrong_commands(state, tmp_path, capsys, flags, reason):
    source = save(tmp_path / "a.pth", state)
    assert run(source, tmp_path / "weights", *flags) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("jaxcls: ") and reason in err[-1] and len(err) <= 2
    assert not (tmp_path / "weights").exists()


def test_another_directory_is_left_alone(state, tmp_path):
    """In a process of its own, which ends at once where nothing can be written."""
    source = save(tmp_path / "a.pth", state)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    program = "import sys; from tests import tiny_main; from jaxcls.convert import main; sys.exit(main(sys.argv))"
    command = [sys.executable, "-c", program, str(source), str(tmp_path / "thesis")]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert found.returncode == 5, found.stderr
    last = found.stderr.splitlines()[-1]
    assert last == f"jaxcls: {tmp_path / 'thesis'} is not empty and holds no weights of jaxcls; take another directory"
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
