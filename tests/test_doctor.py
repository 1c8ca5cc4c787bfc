import importlib.metadata
import json
import sys

import jax
import pytest

from jaxcls import checkup, doctor, versions
from jaxcls.errors import ConfigError, RunError, Warn
from jaxcls.train.setup import build
from jaxcls.train.steps import make_mesh
from jaxcls.workdir import claim
from tests.train.runs import configure, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def call(folder, tmp_path, monkeypatch):
    """Runs the command, in this process; returns the exit code."""
    monkeypatch.setattr("jaxcls.command.os._exit", sys.exit)
    monkeypatch.setattr(doctor, "MEASURED_SECONDS", 0.1)
    settings = {"model.name": "tiny", "data.path": folder, "data.image_size": 32, "train.batch_size": 8}

    def run(*arguments, **changes):
        flags = [f"--config.{key}={value}" for key, value in (settings | changes).items()]
        try:
            return doctor.main(["doctor", "--workdir", str(tmp_path / "run"), *flags, *arguments])
        except SystemExit as ended:
            return ended.code

    return run


def test_all_is_well(call, tmp_path, capsys):
    assert call("--json", str(tmp_path / "found.json"), "--devices", str(jax.device_count())) == 0
    out = capsys.readouterr().out
    found = {line["check"]: line for line in json.loads((tmp_path / "found.json").read_text())}
    assert list(found) == [
        *(
            "Python",
            "packages",
            "devices",
            "cache",
            "weights",
            "decoder",
            "data",
            "input",
            "batch",
            "workdir",
            "disk",
            "memory",
        )
    ]
    assert all(line["status"] == "OK" and f"OK   {name}" in out for name, line in found.items())
    assert found["data"]["message"].startswith("26 train and 11 val images of 2 classes from image_folder")
    assert found["batch"]["message"] == f"train.batch_size=8: 2 images on each of {jax.device_count()}; 3 steps an epoch"
    assert f"jax {jax.__version__} (>=0.10)" in found["packages"]["message"]
    assert not (tmp_path / "run").exists(), "looking changes nothing"


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"train.batch_size": 6}, 2, "FAIL batch        train.batch_size=6 cannot be split over 4 devices; 4 could"),
        ({"train.batch_sise": 6}, 2, "did you mean train.batch_size?"),
        ({"optim.momentum": 7}, 2, "optim.momentum=7.0 must be between 0 and 1"),
        ({"data.path": "/no/such/place"}, 3, "FAIL data         there is no data directory /no/such/place"),
        ({"checkpoint.init_from": "/no/weights"}, 4, "FAIL weights      checkpoint.init_from=/no/weights is not there"),
    ],
)
def test_what_stands_in_the_way(call, capsys, changes, code, message):
    assert call(**changes) == code
    out, err = capsys.readouterr()
    assert message in out + err and "Traceback" not in out + err
    assert err.splitlines()[-1].startswith("jaxcls: ")


def test_fewer_devices_than_expected(call, capsys, monkeypatch):
    monkeypatch.setattr(checkup, "step_memory", lambda task: "not looked at")
    assert call("--devices", "64") == 5
    out, err = capsys.readouterr()
    assert "FAIL devices      4 x cpu in 1 process, and --devices=64 are expected" in out
    assert "1 of 12 checks failed; the first, devices: 4 x cpu" in err
    with pytest.raises(RunError, match="the launcher started 4 processes; they do not find each other"):
        checkup.devices(None, processes=4)


def test_memory(folder):
    task = build(configure(folder), make_mesh())
    with pytest.raises(RunError, match="a smaller train.batch_size than 8, or a larger train.grad_accum than 1, needs less"):
        checkup.step_memory(task, limit=100_000)


def test_disk(tmp_path):
    gib = 2**30
    assert checkup.disk(tmp_path, gib, keep=3, free=6 * gib) == "6.0 GiB free; 5 checkpoints of 1.00 GiB need 5.0"
    with pytest.raises(RunError, match=r"4.5 GiB free; 5 checkpoints .* make room, or set a smaller checkpoint.keep"):
        checkup.disk(tmp_path, gib, keep=3, free=9 * gib // 2)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert "of which 1 are there, need 4.0" in checkup.disk(tmp_path, gib, keep=3, free=9 * gib // 2)


def test_workdirs(folder, tmp_path):
    config = configure(folder, **{"model.num_classes": 2})
    assert checkup.own_workdir(tmp_path, config) == f"{tmp_path} can be written to"
    assert checkup.own_workdir(tmp_path / "a" / "b", config) == f"{tmp_path}/a/b can be made"
    with claim(tmp_path, config):
        (tmp_path / "metrics.jsonl").touch()
    assert "which will be resumed" in checkup.own_workdir(tmp_path, config)
    with pytest.raises(ConfigError, match=r"another config \(seed is 0 there and 1 here\)"):
        checkup.own_workdir(tmp_path, configure(folder, **{"model.num_classes": 2, "seed": 1}))
    (tmp_path / "file").touch()  # nobody can write into it, root neither
    with pytest.raises(RunError, match="cannot be written to"):
        checkup.own_workdir(tmp_path / "file", config)


def test_a_directory_that_processes_do_not_share(tmp_path):
    def together(name):
        (tmp_path / ".doctor-1").touch()

    assert checkup.shared_workdir(tmp_path, 0, 2, together) == f"{tmp_path} is seen by all 2 processes"
    assert not (tmp_path / ".doctor-0").exists()
    (tmp_path / ".doctor-1").unlink()
    with pytest.raises(RunError, match="is not shared: process 0 of 2 on .* does not see what process 1 wrote there"):
        checkup.shared_workdir(tmp_path, 0, 2, lambda name: None)


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    try:
        for place, message in ((str(tmp_path / "file" / "cache"), "cannot be written to"), (None, "every start compiles")):
            jax.config.update("jax_compilation_cache_dir", place)
            with pytest.raises(Warn, match=message):
                checkup.compilation_cache()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_versions_that_do_not_fit(call, capsys, monkeypatch):
    found = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.4.1" if name == "jax" else found(name))
    assert call() == 5
    assert "FAIL packages     jax 0.4.1 is installed: pip install 'jax>=0.10'" in capsys.readouterr().out
    monkeypatch.setattr(versions.platform, "python_version", lambda: "3.9.1")
    with pytest.raises(RunError, match=r"3.9.1; >=3.11 is needed"):
        versions.python_version()


def test_json_that_cannot_be_written(call, capsys):
    assert call("--json", "/no/such/place/found.json") == 2
    assert "cannot be written" in capsys.readouterr().err
