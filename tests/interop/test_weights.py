"""jaxcls's own directories of weights."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxcls.errors import CheckpointError, RunError
from jaxcls.interop import weights

METADATA = {"model": {"name": "tiny", "num_classes": 2}, "classes": ["Katze", "Hündin"], "provenance": {"warnings": []}}


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 2)).astype(np.float32)
    return {
        "params": {
            "stem": {"conv": {"kernel": kernel.transpose(1, 0, 3, 2)}},  # a view, as from_torch gives them
            "head": {"bias": np.array([np.nan, -0.0, 1e-300]), "kernel": np.array([[1.5]], ml_dtypes.bfloat16)},
        },
        "batch_stats": {"stem": {"bn": {"mean": np.broadcast_to(np.float16(2), 3)}}},
    }


@pytest.fixture
def directory(tmp_path, variables):
    weights.save(tmp_path / "new" / "weights", variables, METADATA)
    return tmp_path / "new" / "weights"


def edit(directory, **changes):
    path = directory / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(directory, variables):
    found, metadata = weights.load(directory)
    assert {key: metadata[key] for key in METADATA} == METADATA
    places = [("params", "stem", "conv", "kernel"), ("params", "head", "bias"), ("params", "head", "kernel")]
    for place in (*places, ("batch_stats", "stem", "bn", "mean")):
        ours, theirs = variables, found
        for name in place:
            assert ours.keys() == theirs.keys()
            ours, theirs = ours[name], theirs[name]
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def test_others_can_read_it(directory, variables):
    assert sorted(path.name for path in directory.iterdir()) == ["metadata.json", "weights.safetensors"]
    arrays = load_file(directory / "weights.safetensors")
    assert arrays.keys() == {"params/stem/conv/kernel", "params/head/bias", "params/head/kernel", "batch_stats/stem/bn/mean"}
    np.testing.assert_array_equal(arrays["params/stem/conv/kernel"], variables["params"]["stem"]["conv"]["kernel"])


def test_weights_are_replaced_by_newer_ones(directory):
    weights.save(directory, {"params": {"head": {"bias": np.ones(1)}}}, {"classes": None})
    found, metadata = weights.load(directory)
    assert found == {"params": {"head": {"bias": 1}}} and metadata["classes"] is None and "model" not in metadata


def test_a_directory_of_something_else_is_left_alone(tmp_path, variables):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and holds no weights of jaxcls; take another directory"):
        weights.save(tmp_path, variables, METADATA)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    weights.save(tmp_path / "empty", variables, METADATA)
    assert weights.is_weights(tmp_path / "empty") and not weights.is_weights(tmp_path)


def test_what_cannot_be_written(tmp_path, variables):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(RunError, match=f"{place} cannot be written"):
            weights.save(place, variables, METADATA)


def test_a_write_that_failed_leaves_the_old_weights_and_can_be_repeated(directory, variables, monkeypatch):
    def fail(path, arrays):
        path.write_bytes(b"half")
        raise OSError("disk full")

    new = {"params": {"head": {"bias": np.ones(1)}}}
    monkeypatch.setattr(weights, "save_safetensors", fail)
    for place in (directory, directory.parent / "another"):
        with pytest.raises(RunError, match="disk full"):
            weights.save(place, new, METADATA)
    monkeypatch.undo()
    assert weights.load(directory)[0].keys() == variables.keys() and not list(directory.parent.rglob("*.part"))
    killed = directory.parent / "another" / "weights.safetensors.part"
    killed.write_bytes(b"half")
    weights.save(killed.parent, new, METADATA)
    assert weights.load(killed.parent)[0] == new and not killed.exists()


def spoil_checksum(directory):
    path = directory / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncate(directory):
    path = directory / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (spoil_checksum, "weights.safetensors is not what was written (its checksum differs)"),
        (truncate, "weights.safetensors is not what was written (its checksum differs)"),
        (lambda d: edit(d, version=2), "is of format 'jaxcls weights' 2; this jaxcls reads 'jaxcls weights' up to 1"),
        (lambda d: edit(d, format="other"), "is of format 'other' 1; this jaxcls reads 'jaxcls weights' up to 1"),
        (lambda d: edit(d, version="two"), "holds no readable weights (TypeError"),
        (lambda d: edit(d, checksums={}), "holds no readable weights (KeyError"),
        (lambda d: (d / "weights.safetensors").unlink(), "holds no readable weights (FileNotFoundError"),
        (lambda d: (d / "metadata.json").unlink(), "holds no readable weights (FileNotFoundError"),
        (lambda d: (d / "metadata.json").write_text('{"format": '), "holds no readable weights (JSONDecodeError"),
        (lambda d: (d / "metadata.json").write_bytes(b"\xff\xfe"), "holds no readable weights (UnicodeDecodeError"),
        (lambda d: (d / "metadata.json").write_text("[]"), "holds no readable weights (TypeError"),
        (lambda d: (d / "metadata.json").write_text("{}"), "holds no readable weights (KeyError"),
    ],
)
def test_damage_is_noticed(directory, damage, reason):
    damage(directory)
    with pytest.raises(CheckpointError) as caught:
        weights.load(directory)
    assert reason in str(caught.value) and str(directory) in str(caught.value) and "\n" not in str(caught.value)
