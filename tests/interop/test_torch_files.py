"""Files that PyTorch wrote, real and broken ones, and files for PyTorch."""

import argparse
import datetime
import os
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import save_file as save_numpy  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from jaxcls.errors import CheckpointError, RunError  # noqa: E402
from jaxcls.interop import torch_files  # noqa: E402
from tests.torch_states import assert_same_states, make_state, prefixed  # noqa: E402


def tensors(state):
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


@pytest.fixture(scope="module")
def state():
    return prefixed(make_state())


@pytest.fixture(scope="module")
def averaged():
    return prefixed(make_state(seed=1))


@pytest.fixture
def training(state, averaged):
    """What the reference's training saves: DistributedDataParallel's names, and learning rates that NumPy computed."""
    groups = [{"lr": np.float64(0.256) * 0.5, "momentum": 0.875, "params": [0]}]
    return {
        "epoch": 7,
        "best_prec1": torch.tensor(76.5),
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": groups},
        "state_dict": tensors(state),
        "state_dict_ema": tensors(averaged),
    }


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path, **options):
    """The message with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        torch_files.read(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_a_training_checkpoint_of_the_reference(training, state, averaged, tmp_path, zipped):
    path = save(tmp_path / "checkpoint.pth.tar", training, zipped)
    with pytest.raises(pickle.UnpicklingError, match="numpy"):  # so the allowance is needed
        torch.load(path, weights_only=True)
    raw, ema = torch_files.read(path), torch_files.read(path, ema=True)
    assert_same_states(raw.arrays, state)
    assert_same_states(ema.arrays, averaged)
    assert (raw.entry, raw.others) == ("state_dict", ("state_dict_ema",))
    assert (ema.entry, ema.others) == ("state_dict_ema", ("state_dict",))
    assert raw.facts == {"epoch": 7, "best_prec1": 76.5} and type(raw.facts["best_prec1"]) is float


def test_one_written_under_numpy_1(training, state, tmp_path):
    path = save(tmp_path / "checkpoint.pth.tar", training, zipped=False)
    new = path.read_bytes()
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new and b"numpy._core" not in old
    path.write_bytes(old)
    assert_same_states(torch_files.read(path).arrays, state)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.arange(3.0), "numpy._core.multiarray._reconstruct"),
        (argparse.Namespace(arch="resnet50"), "argparse.Namespace"),
        (datetime.date(2020, 6, 1), "datetime.date"),
    ],
)
def test_other_classes_are_refused_by_name(training, tmp_path, value, name):
    path = save(tmp_path / "checkpoint.pth.tar", training | {"args": value})
    assert f"was refused: reading it would run code of its own ({name})" in refusal(path)


class Malicious:
    """Makes a directory when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", 0, 1, 2, 3, 4, 5])
def test_code_in_a_pickle_does_not_run(form, tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "ran"
    content = {"conv1.weight": torch.zeros(1), "fc.bias": Malicious(marker)}
    if form in ("zip", "legacy"):
        save(path, content, form == "zip")
    else:  # the protocol of a pickle without more
        path.write_bytes(pickle.dumps({"fc.bias": Malicious(marker)}, protocol=form))
    message = refusal(path)
    assert not marker.exists()
    if form not in (0, 4, 5):  # which PyTorch's restricted unpickler does not know
        assert re.search(r"would run code of its own \(\w+\.mkdir\)", message)
    # It would have run: the file names the call, and the call leaves the marker. (No pickle is executed to show it.)
    assert b"mkdir" in path.read_bytes() and str(marker).encode() in path.read_bytes()
    function, arguments = Malicious(marker).__reduce__()
    function(*arguments)
    assert marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_pickle_is_refused_wherever_it_ends(state, tmp_path, zipped):
    whole = save(tmp_path / "whole.pth", tensors(state), zipped).read_bytes()
    path = tmp_path / "weights.pth"
    for end in [0, 1, 2, 100, *range(999, len(whole) - 1, len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:end])
        assert "is not a PyTorch checkpoint, or is truncated" in refusal(path)


def test_damage_is_never_a_traceback(training, tmp_path):
    """Of a few bytes; what is still a checkpoint may be read."""
    rng, path, refused = np.random.default_rng(0), tmp_path / "weights.pth", 0
    for zipped in (True, False):
        whole = np.frombuffer(save(path, training, zipped).read_bytes(), np.uint8)
        for start in (0, len(whole) - 4000) * 50:
            damaged = whole.copy()
            damaged[start + rng.integers(4000, size=3)] = rng.integers(256, size=3)
            path.write_bytes(damaged.tobytes())
            try:
                torch_files.read(path)
            except CheckpointError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 50


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"\x89PNG\r\n\x1a\n", bytes(1000), b"PK\x03\x04" + bytes(100)])
@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.safetensors"])
def test_what_is_not_a_checkpoint(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    kind = "safetensors file" if name.endswith("safetensors") else "PyTorch checkpoint"
    assert f"is not a {kind}, or is truncated" in refusal(path)


def test_a_truncated_safetensors_file(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_numpy(state, path)
    whole = path.read_bytes()
    for end in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert "is truncated" in refusal(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.zeros(3), "holds a Tensor, not weights by name"),
        ([torch.zeros(3)], "holds a list, not weights by name"),
        ({}, "holds no weights; its entries are: none"),
        ({"epoch": 3, "net": {"fc.bias": torch.zeros(3)}}, "holds no weights; its entries are: epoch, net"),
        ({"fc.bias": torch.zeros(3), "epoch": 3}, "epoch is a int, not a tensor"),
        ({"state_dict_ema": {"fc.bias": torch.zeros(3)}}, "holds only averaged weights (state_dict_ema); say --ema"),
    ],
)
def test_a_file_without_a_state_dict(tmp_path, content, reason):
    assert reason in refusal(save(tmp_path / "a.pth", content))


def test_averaged_weights_that_are_not_there(state, tmp_path):
    for content in (tensors(state), {"state_dict": tensors(state)}):
        path = save(tmp_path / "a.pth", content)
        assert "holds no averaged weights (none of state_dict_ema, model_ema); leave --ema out" in refusal(path, ema=True)


def test_no_file(tmp_path):
    assert "there is no file" in refusal(tmp_path / "a.pth")


def test_entries_of_other_trainers_and_odd_facts(tmp_path):
    content = {"epoch": torch.tensor([1, 2]), "model": {"a": torch.ones(2)}, "model_ema": {"a": torch.zeros(2)}}
    found = torch_files.read(save(tmp_path / "a.pth", content))
    assert found.arrays["a"].tolist() == [1, 1] and found.entry == "model" and found.others == ("model_ema",)
    assert found.facts == {}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_every_dtype_of_weights_is_read_as_it_is(tmp_path, name):
    values = [1.5, -0.0, 3.140625]
    state = {str(dtype): torch.tensor(values, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    found = torch_files.read(tmp_path / name).arrays
    dtypes = {"torch.float16": np.float16, "torch.bfloat16": ml_dtypes.bfloat16, "torch.float64": np.float64}
    assert {key: array.dtype for key, array in found.items()} == dtypes
    assert all(array.astype(np.float64).tobytes() == np.array(values).tobytes() for array in found.values())


def test_what_is_written_pytorch_reads(state, tmp_path):
    arrays = state | {"read.only": np.broadcast_to(np.float32(2), (3, 2))}
    facts = {"epoch": 7, "best_prec1": 76.5}
    for name in ("new/a.pth", "a.pth.tar", "a.safetensors"):
        torch_files.write(tmp_path / name, arrays, facts)
        path = tmp_path / name
        found = load_file(path) if name.endswith("safetensors") else torch.load(path, weights_only=True)
        if name.endswith(".tar"):
            assert {key: found[key] for key in facts} == facts and len(found) == 3
            found = found["state_dict"]
        assert_same_states({key: tensor.numpy() for key, tensor in found.items()}, arrays)
        assert_same_states(torch_files.read(tmp_path / name).arrays, arrays)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_cannot_be_written(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / name, tmp_path / "file" / name):
        with pytest.raises(RunError, match=f"{path} cannot be written"):
            torch_files.write(path, {"a": np.zeros(2)}, {})
    assert {path.name for path in tmp_path.rglob("*")} == {name, "file"}


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
    "meta": lambda: torch.zeros(3, device="meta"),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_numpy_cannot_hold(tmp_path, kind):
    path = save(tmp_path / "a.pth", {"fc.bias": torch.zeros(3), "fc.weight": ODD_TENSORS[kind]()})
    assert "fc.weight cannot be read (" in refusal(path)


def test_8_bit_floats_in_safetensors(tmp_path):
    save_file({"fc.weight": torch.zeros(3).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
    assert "holds numbers of a kind that cannot be read" in refusal(tmp_path / "a.safetensors")


def test_a_fact_beyond_all_bounds_is_left_out(state, tmp_path):
    path = save(tmp_path / "a.pth", {"state_dict": tensors(state), "epoch": 10**400, "best_prec1": 76.0})
    assert torch_files.read(path).facts == {"best_prec1": 76.0}
