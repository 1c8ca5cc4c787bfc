import json
import re
import shutil
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import pytest

from jaxcls import recorded, trial, verify_resume
from jaxcls.errors import ConfigError, RunError
from jaxcls.flags import parse_verify_resume
from jaxcls.proof import compare_runs
from jaxcls.train import loop, run
from jaxcls.trial import Trial, devices_environment
from tests.train.runs import configure, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def verify(folder, tmp_path, monkeypatch):
    """Runs the command on `tiny`, in processes that have it; its temporary directories are in `tmp_path`."""
    monkeypatch.setattr(trial, "PROGRAM", (sys.executable, "-m", "tests.tiny_recorded"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    settings = {"model.name": "tiny", "data.path": folder, "data.image_size": 32, "train.batch_size": 8}
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return lambda *arguments: verify_resume.main(["verify", *flags, *arguments])


@pytest.mark.long
def test_a_run_resumed_on_other_devices(verify, tmp_path, capsys):
    assert verify("--steps", "16", "--devices", "1,2", "--config.train.ema_decay=0.9") == 0
    out = capsys.readouterr().out
    assert "16 steps of 8 images on 1 x cpu, then 2" in out and "Killed by SIGKILL after step" in out
    assert "BN normalises each device's own share of a batch" in out
    assert re.search(
        r"restored state +ok +that of step \d+ \(step, weights, BN statistics, optimizer state, averaged weights\): "
        "bit-identical to the whole run's",
        out,
    )
    assert "records           ok   128 consumed, each step's the same" in out and "averaged weights  ok" in out
    assert "Proven." in out and not list(tmp_path.iterdir())


def test_devices_that_do_not_divide_the_batch_are_refused_at_once(verify, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Trial, "start", lambda *arguments: pytest.fail("a run was started"))
    assert verify("--devices", "1,3") == 2
    assert "train.batch_size=8 cannot be split over 3 devices" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_proven_is_kept(verify, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("jaxcls.command.os._exit", sys.exit)
    monkeypatch.setattr(verify_resume, "_prove", lambda *arguments: False)
    with pytest.raises(SystemExit) as ended:
        verify()
    (kept,) = tmp_path.iterdir()
    assert ended.value.code == 5 and f"both are kept, with their output, in {kept}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "Trainer", recorded.Trainer)
        run.train(configure(folder), workdir, started=time.perf_counter())
    return workdir


def changed(path, change):
    """Rewrites a file of JSON lines."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in change(records)))


@pytest.mark.parametrize(
    ("file", "change", "wrong"),
    [
        ("metrics.jsonl", lambda records: records, None),
        ("metrics.jsonl", lambda records: records[:3] + records[4:], "missing steps [4], doubled []"),
        ("metrics.jsonl", lambda records: [*records[:3], records[2], *records[3:]], "missing steps [], doubled [3]"),
        (
            "metrics.jsonl",
            lambda records: [records[0] | {"train.loss": 7.0}, *records[1:]],
            "the loss of step 1 is 7.0, not",
        ),
        ("records.jsonl", lambda records: records[1:], "missing steps [1], doubled []"),
        ("records.jsonl", lambda records: [records[0] | {"records": [99]}, *records[1:]], "step 1 lacks ["),
        ("summary.json", lambda records: records, "final_top1 is"),
    ],
)
def test_what_is_found(whole, tmp_path, file, change, wrong):
    other = shutil.copytree(whole, tmp_path / "other")
    if file == "summary.json":
        summary = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps(summary | {"final_top1": -1.0}))
    else:
        changed(other / file, change)
    found = [check.found for check in compare_runs(whole, other) if not check.ok]
    assert (len(found) == 1 and wrong in found[0]) if wrong else not found


def test_a_resumption_that_forgets_its_momentum_is_found(whole, folder, tmp_path, monkeypatch):
    def forgetful(self, restore=loop.Trainer._restore):
        state = restore(self)
        return state and state.replace(opt_state=jax.tree.map(jnp.zeros_like, state.opt_state))

    monkeypatch.setattr(run, "Trainer", recorded.Trainer)
    run.train(configure(folder, **{"train.max_steps": 3}), tmp_path, started=time.perf_counter())
    assert [check.name for check in compare_runs(whole, tmp_path) if not check.ok][:1] == ["steps"]
    monkeypatch.setattr(loop.Trainer, "_restore", forgetful)
    run.train(configure(folder), tmp_path, started=time.perf_counter())
    checks = {check.name: check for check in compare_runs(whole, tmp_path)}
    assert not checks["optimizer state"].ok and not checks["weights"].ok and not checks["metrics.jsonl"].ok
    assert "the loss of step 5 is" in checks["metrics.jsonl"].found  # that of step 4 is of the weights that were restored
    assert checks["records"].ok and checks["step"].ok
    # On other devices weights would be other ones at the end in any case; what was restored tells.
    others = {check.name: check for check in compare_runs(whole, tmp_path, same_devices=False, resumed_at=3)}
    assert others["metrics.jsonl"].ok and "losses of 3 steps up to the resumption are equal" in others["metrics.jsonl"].found
    assert [name for name, check in others.items() if not check.ok] == ["restored state"]
    assert others["restored state"].found == "optimizer state of step 3 are not those that the whole run had"


def test_a_loss_that_is_not_a_number_is_compared(whole, tmp_path):
    other = shutil.copytree(whole, tmp_path / "other")
    changed(other / "metrics.jsonl", lambda records: [*records[:-1], records[-1] | {"train.loss": None}])
    (check,) = (check for check in compare_runs(whole, other) if not check.ok)
    assert check.name == "metrics.jsonl" and "is None, not" in check.found
    assert all(check.ok for check in compare_runs(whole, other, same_devices=False, resumed_at=3))


def test_devices():
    flags = devices_environment(3, "cpu", 1)["XLA_FLAGS"]
    assert flags.endswith("--xla_force_host_platform_device_count=3") and devices_environment(None, "cpu", 1) == {}
    assert devices_environment(2, "gpu", 4)["CUDA_VISIBLE_DEVICES"] == "0,1"
    with pytest.raises(ConfigError, match="8 are wanted and 4 of kind gpu are here; at most 4 can be had"):
        devices_environment(8, "gpu", 4)
    with pytest.raises(ConfigError, match="only GPUs and CPUs"):
        devices_environment(2, "tpu", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "3"], "3 leave no room to save, be killed and go on; 4 would"),
        (["--devices", "2"], "2 must be two numbers of devices, such as 1,2"),
        (["--devices", "0,2"], "0 must be a whole number of at least 1"),
        (["--config", "nothing.py"], "there is no config file nothing.py"),
        (["--config.train.batch_sise=2"], "did you mean train.batch_size?"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse_verify_resume(["verify", *arguments])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_number_of_steps_is_said_once(capsys):
    assert verify_resume.main(["jaxcls verify-resume", "--config.train.max_steps=5"]) == 2
    assert capsys.readouterr().err == "jaxcls: train.max_steps is what --steps sets; leave it out\n"


def test_what_a_run_says_is_passed_on(tmp_path, capsys):
    mistaken = Trial(["--config", "configs/resnet50.py", "--config.train.epochs=0"], tmp_path / "run")
    mistaken.start()
    with pytest.raises(ConfigError, match="train.epochs=0.0 must be between"):
        mistaken.finish()
    broken = Trial([], tmp_path / "run", program=(sys.executable, "-c", "raise SystemExit(9)"))
    broken.start()
    with pytest.raises(RunError, match="ended with code 9"):
        broken.finish()
