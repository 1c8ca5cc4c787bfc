"""Runs of several processes on this machine: the same as one process, stopped, killed, refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from jaxcls import flags, hosts, launch
from jaxcls.errors import ConfigError, RunError
from jaxcls.report import predictions
from jaxcls.train import loop, run, steps
from jaxcls.train.checkpoints import read_state
from tests import hosts_main
from tests.train.runs import configure, lines, make_folder, train

pytestmark = pytest.mark.long

LAST = 12  # steps; an epoch has three
SETTINGS = {"checkpoint.every_steps": 2, "train.epochs": LAST / 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("images"))
    (folder / "train" / "a" / "00.png").write_bytes(b"not a picture")
    return folder


def slurm_task(index):
    """What srun tells the tasks of a step; JAX makes the port of the job's number."""
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2"}
    return step | {"SLURM_NTASKS": "2", "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}


class Processes:
    """A run of two processes with a device each, started by flags or as SLURM would; `flags` are each one's own."""

    def __init__(self, folder, workdir, flags=((), ()), slurm=False):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = SETTINGS | {"model.name": "tiny", "data.path": folder, "data.image_size": 32, "train.batch_size": 8}
        settings["schedule.every"] = "step"
        command = [sys.executable, "-m", "tests.hosts_main", "--config", "configs/resnet50.py", "--workdir", str(workdir)]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        several = [["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(index)] for index in range(2)]
        if slurm:
            several = ((), ())
        self.workdir, self.records = workdir, workdir.with_name(f"{workdir.name}-records")
        shutil.rmtree(self.records, ignore_errors=True)
        self.records.mkdir(parents=True)
        environment = os.environ | {
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
            "JAX_PLATFORMS": "cpu",
            "RECORDS": str(self.records),
        }
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.both = [
            subprocess.Popen(
                [*command, *several[index], *flags[index]],
                env=environment | (slurm_task(index) if slurm else {}),
                **options,
            )
            for index in range(2)
        ]

    def wait_for_steps(self, count):
        """Until so many lines are in metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        while not (path.exists() and path.read_bytes().count(b"\n") >= count):
            assert all(process.poll() is None for process in self.both), self.end()
            time.sleep(0.002)

    def end(self):
        """Exit codes, standard outputs and standard errors of both."""
        told = [process.communicate(timeout=300) for process in self.both]
        return [process.returncode for process in self.both], *zip(*told, strict=True)


def alone(workdir, folder, monkeypatch, devices, **changes):
    """The same run in this process; returns its summary and the records of each step."""
    records = workdir.with_name(f"{workdir.name}-alone")
    records.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setenv("RECORDS", str(records))
        patch.setattr(run, "make_mesh", lambda: steps.make_mesh(jax.devices()[:devices]))
        patch.setattr(loop, "train_batches", hosts_main.noting)
        summary = train(workdir, configure(folder, **SETTINGS | changes), page=True)
    return summary, hosts_main.drawn(records)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run on one process with two devices; nothing happens to it."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        return workdir, *alone(workdir, folder, patch, 2)


def check_same(workdir, whole):
    """Metrics, evaluation and weights are those of the whole run, bit for bit."""
    whole_dir, whole_summary, _ = whole
    timing = ("ips", "time", "latency")
    kept = [
        [{key: value for key, value in line.items() if not any(word in key for word in timing)} for line in lines(place)]
        for place in (workdir, whole_dir)
    ]
    assert kept[0] == kept[1] and [line["step"] for line in kept[0]] == list(range(1, LAST + 1))
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("eval_count", "eval_digest", "final_top1", "best_top1", "bad_records"):
        assert summary[name] == whole_summary[name], name
    ours, theirs = (predictions.load(place / "predictions.npz") for place in (workdir, whole_dir))
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    ours, theirs = (read_state(place / "checkpoints", LAST) for place in (workdir, whole_dir))
    assert len(ours) > 50 and ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert (workdir / "bad_records.jsonl").read_text() == (whole_dir / "bad_records.jsonl").read_text()


def test_two_processes_do_as_one_with_two_devices_and_the_first_alone_writes(folder, whole, tmp_path):
    processes = Processes(folder, tmp_path / "run")
    codes, outs, errs = processes.end()
    assert codes == [0, 0], errs
    assert "on 2 x cpu in 2 processes" in outs[0] and outs[1] == "" and errs == ("", "")
    check_same(tmp_path / "run", whole)
    _, summary, records = whole
    assert summary["eval_count"] == 11 and summary["bad_records"]["train"] > 0
    assert hosts_main.drawn(processes.records) == records
    here = {path.name for path in (tmp_path / "run").iterdir()}
    assert here == {path.name for path in whole[0].iterdir()} | {"logs"}


def test_stopped_and_killed_a_run_goes_on_to_the_same_end_on_any_devices(folder, whole, tmp_path, monkeypatch):
    processes = Processes(folder, tmp_path / "run")
    processes.wait_for_steps(4)
    processes.both[1].send_signal(signal.SIGTERM)
    codes, _, errs = processes.end()
    assert codes == [75, 75], errs
    at = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*"))
    assert f"told to stop through another process: saved at step {at} of {LAST}, " in errs[0]
    assert f"SIGTERM: saved at step {at} of {LAST}, " in errs[1] and all(err.count("\n") == 1 for err in errs)
    records = hosts_main.drawn(processes.records)

    processes = Processes(folder, tmp_path / "run")
    processes.wait_for_steps(at + 1)
    processes.both[0].kill()  # the coordinator, too
    codes, _, errs = processes.end()
    assert codes == [-signal.SIGKILL, 5]
    assert errs[1].startswith("jaxcls: another process of this run has gone") and errs[1].count("\n") == 1

    for devices in (4, 2):
        shutil.copytree(tmp_path / "run", tmp_path / f"on-{devices}")
        summary, later = alone(tmp_path / f"on-{devices}", folder, monkeypatch, devices)
        assert (summary["steps"], summary["eval_digest"]) == (LAST, whole[1]["eval_digest"])
        assert [line["step"] for line in lines(tmp_path / f"on-{devices}")] == list(range(1, LAST + 1))
        assert {step: records[step] for step in range(1, at + 1)} | later == whole[2] and min(later) > at
    check_same(tmp_path / "on-2", whole)


def test_steps_that_are_not_finite_end_all_processes_alike(folder, tmp_path):
    flags = ["--config.optim.base_lr=1e38", "--config.train.most_nonfinite=3", "--config.train.mixup_alpha=0"]
    codes, _, errs = Processes(folder, tmp_path / "run", (flags, flags)).end()
    assert codes == [5, 5]
    for err in errs:
        assert "not finite, for 3 steps in a row; its records: train/" in err and err.count("\n") == 1
    assert errs[0] != errs[1], "each names its share"
    assert list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_a_failure_of_all_processes_waits_for_the_save_that_is_under_way(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    closed = []
    trainer = types.SimpleNamespace(
        _programs=types.SimpleNamespace(close=lambda: None),
        _checkpoints=types.SimpleNamespace(close=lambda: closed.append(1)),
    )
    for shared in (False, True):
        error = RunError("failed")
        error.shared = shared
        with pytest.raises(RunError):
            try:
                raise error
            finally:
                loop.Trainer._close(trainer)
        assert len(closed) == shared


@pytest.mark.parametrize(
    ("flag", "difference"),
    [
        ("--config.optim.momentum=0.5", "optim.momentum is 0.875 in process 0 and 0.5 in process 1"),
        ("--mode=evaluate", "--mode is train in process 0 and evaluate in process 1"),
    ],
)
def test_processes_that_differ_are_refused_by_all(folder, tmp_path, flag, difference):
    codes, _, errs = Processes(folder, tmp_path / "run", ((), [flag]), slurm=True).end()
    assert codes == [2, 2]
    assert errs[0] == errs[1] and errs[0].count("\n") == 1
    assert f"the processes differ: {difference}" in errs[0]
    assert not (tmp_path / "run" / "config.json").exists()


def test_processes_with_other_code_are_refused(folder, monkeypatch):
    told = []
    for source in ("0123abcd", "4567cdef"):
        monkeypatch.setattr(hosts, "source_digest", lambda source=source: source)
        told.append(json.dumps(hosts.identity(configure(folder))))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(hosts, "gather", lambda mine: [told[0], told[1]])
    with pytest.raises(ConfigError, match=r"the processes differ: code is jaxcls .*0123abcd.* in process 0 and .*4567cdef"):
        hosts.agree(json.loads(told[0]))


def test_waiting_for_the_others_ends_in_time():
    ended = threading.Event()
    with hosts._ended_after(0.01, ended.set):
        assert ended.wait(10)
    ended.clear()
    with hosts._ended_after(0.05, ended.set):
        pass
    assert not ended.wait(0.2)


def test_a_wrong_coordinator_is_named(folder, tmp_path):
    command = [sys.executable, "-m", "tests.tiny_main", "--config", "configs/resnet50.py", f"--config.data.path={folder}"]
    command += ["--workdir", str(tmp_path), "--join-timeout", "2"]
    command += ["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "1"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert found.returncode == 5 and found.stderr.count("\n") == 1, found.stderr
    assert "did not meet at coordinator 127.0.0.1:9 within 2 s" in found.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--processes", "2"], "--coordinator and --process must be given, too"),
        (["--coordinator", "here", "--processes", "2", "--process", "0"], "--coordinator=here must be HOST:PORT"),
        (["--coordinator", "here:1", "--processes", "2", "--process", "2"], "--process=2 must be less than --processes=2"),
        (["--coordinator", "here:1", "--processes", "0", "--process", "0"], "must be a whole number of at least 1"),
        (["--coordinator", "here:1", "--processes", "2", "--process", "-1"], "a whole number of at least 0"),
    ],
)
def test_flags_of_several_processes_are_checked(given, message):
    with pytest.raises(ConfigError, match=message):
        flags.parse(["main", "--config", "configs/digits.py", *given])


def test_who_started_the_processes(monkeypatch):
    monkeypatch.setattr(launch, "_on_tpu", lambda environment: False)

    def found(*given, **environment):
        return launch.launched(*given, environment=environment)[:4]

    slurm = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}
    assert found() == ("nobody", 1, 0, None)
    assert found(**slurm) == ("SLURM", 4, 3, None)
    assert found(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0") == ("nobody", 1, 0, None)
    assert found("here:1", 2, 1, **slurm) == ("the flags", 2, 1, "here:1")
    ompi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "JAX_COORDINATOR_ADDRESS": "there:2"}
    assert found(**ompi) == ("Open MPI", 2, 1, "there:2")
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS=four must be a whole number"):
        found(SLURM_STEP_NUM_TASKS="four")
