"""What happens to a run's files and clocks, and what the run makes of it."""

import errno
import json
import os
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.errors import CheckpointError, RunError
from jaxcls.report.console import Console
from jaxcls.report.files import RecordsFile
from jaxcls.train import loop
from jaxcls.train.checkpoints import Checkpoints, read_state
from tests.train.runs import configure, lines, make_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@contextmanager
def full_disk():
    """Files of this process cannot grow beyond 40 KB, which a write meets as it would a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def checkpoints(tmp_path):
    said = []
    opened = Checkpoints(tmp_path / "checkpoints", keep=3, warn=said.append)
    opened.said = said
    yield opened
    opened._manager.close()


def save(checkpoints, step, state=None):
    # Noise, which does not compress.
    state = state or {"params": jnp.asarray(np.random.default_rng(step).standard_normal(100_000), jnp.float32)}
    checkpoints.save(step, state, {"progress": {"step": step}}, None)
    return state


def until_written(checkpoints):
    while checkpoints._manager.is_saving_in_progress():
        time.sleep(0.01)


def test_a_save_that_failed_is_told_and_the_next_takes_its_place(checkpoints, tmp_path):
    first = save(checkpoints, 1)
    checkpoints.wait()
    with full_disk():
        save(checkpoints, 2)
        until_written(checkpoints)
    save(checkpoints, 3)
    checkpoints.wait()
    (told,) = checkpoints.said
    assert told.startswith("checkpoint at step 2 could not be written to ") and "File too large" in told
    assert told.endswith("; that of step 3 takes its place")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]
    assert np.array_equal(read_state(tmp_path / "checkpoints", 1)["params"], first["params"])
    with full_disk():  # it was forgiven once again, for one in between went well
        save(checkpoints, 4)
        until_written(checkpoints)
    checkpoints.wait()
    assert checkpoints.said[1].endswith("; trying once more") and len(checkpoints.said) == 2
    assert read_state(tmp_path / "checkpoints", 4)["params"].size == 100_000


def test_a_save_that_fails_twice_ends_the_run(checkpoints, tmp_path):
    save(checkpoints, 1)
    checkpoints.wait()
    with full_disk():
        save(checkpoints, 2)
        with pytest.raises(RunError, match=r"checkpoint at step 2 .*File too large.* the last complete one is intact"):
            checkpoints.wait()
    assert len(checkpoints.said) == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()) == ["1"]


def test_a_checkpoint_that_is_written_again_is_there_until_the_new_one_is(checkpoints, tmp_path):
    first = save(checkpoints, 1)
    checkpoints.wait()
    with full_disk():
        save(checkpoints, 1, {"params": first["params"] + 1})
        until_written(checkpoints)
    shutil.copytree(checkpoints.directory, tmp_path / "killed")  # as a kill would leave it
    assert not (tmp_path / "killed" / "1").exists()
    after = Checkpoints(tmp_path / "killed", keep=3)
    assert jnp.array_equal(after.restore(first)[0]["params"], first["params"])
    after.close()

    checkpoints.wait()
    assert [path.name for path in checkpoints.directory.iterdir()] == ["1"]
    assert jnp.array_equal(checkpoints.restore(first)[0]["params"], first["params"] + 1)


def test_a_state_that_the_next_step_has_taken_over_is_not_saved_again(checkpoints):
    with full_disk():
        state = save(checkpoints, 1)
        until_written(checkpoints)
    state["params"].delete()
    with pytest.raises(RunError, match="checkpoint at step 1"):
        checkpoints.wait()
    assert not checkpoints.said


def test_a_workdir_that_vanishes_ends_the_run(folder, tmp_path, monkeypatch):
    def vanishing(self, step, *arguments, read=loop.Trainer._read):
        if step == 4:
            self._checkpoints.wait()  # a save would make files while they are deleted
            shutil.rmtree(tmp_path / "run")
        return read(self, step, *arguments)

    monkeypatch.setattr(loop.Trainer, "_read", vanishing)
    with pytest.raises(
        RunError,
        match=r"run/metrics.jsonl cannot be written \(it was deleted while the run went on\); put the directory back",
    ):
        train(tmp_path / "run", configure(folder))


def test_a_write_that_fails_is_told_once(tmp_path):
    """The file is closed with what could not be written still in its buffer."""
    records = RecordsFile(tmp_path / "a.jsonl", resume_step=0)
    with full_disk():
        with pytest.raises(RunError, match=r"a.jsonl cannot be written \(File too large\)"):
            records.write({"step": 1, "text": "x" * 50_000})
        records.close()


def test_records_of_a_deleted_file_are_not_written_in_silence(tmp_path):
    records = RecordsFile(tmp_path / "metrics.jsonl", resume_step=0)
    records.write({"step": 1})
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match="it was deleted while the run went on"):
        records.write({"step": 2})
    records.close()


def test_records_of_a_workdir_that_was_moved_are_not_written_elsewhere(tmp_path):
    (tmp_path / "run").mkdir()
    records = RecordsFile(tmp_path / "run" / "metrics.jsonl", resume_step=0)
    records.write({"step": 1})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunError, match="it was moved while the run went on"):
        records.write({"step": 2})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()  # another one in its place
    with pytest.raises(RunError, match="it was moved while the run went on"):
        records.write({"step": 3})
    records.close()


def test_metrics_that_may_not_be_read(checkpoints, monkeypatch):
    save(checkpoints, 1)
    checkpoints.wait()
    (checkpoints.directory / "1" / "metrics" / "metrics").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoint .*/1 cannot be read \(Is a directory\)"):
        Checkpoints(checkpoints.directory, keep=1)


def test_metrics_damaged_again(checkpoints, tmp_path):
    """In the place where the step was set aside before; and one that is set aside is let be."""
    for _ in range(2):
        save(checkpoints, 1)
        first = save(checkpoints, 2)
        checkpoints.wait()
        (checkpoints.directory / "2" / "metrics").mkdir(exist_ok=True)
        (checkpoints.directory / "2" / "metrics" / "metrics").write_text("{")
        with pytest.raises(CheckpointError, match=r"/2 cannot be read \(damaged metrics\); rename it to 2.broken"):
            Checkpoints(checkpoints.directory, keep=1, read_only=True)
        for said in (1, 0):
            after = Checkpoints(checkpoints.directory, keep=3, warn=checkpoints.said.append)
            assert after.restore(first)[1]["progress"] == {"step": 1} and len(checkpoints.said) == said
            after.close()
            checkpoints.said.clear()
        checkpoints._manager.reload()
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["1", "2.broken"]
    Checkpoints(checkpoints.directory, keep=1, read_only=True).close()


def test_a_workdir_on_a_disk_that_is_read_only(folder, tmp_path, monkeypatch):
    """Root may write wherever it likes, so the system's answer is made up."""

    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match=r"workdir .*run cannot be used \(Read-only file system\)"):
        train(tmp_path / "run", configure(folder))


def test_a_disk_that_becomes_read_only_in_the_run(folder, tmp_path, monkeypatch):
    def refuse(self, record):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("jaxcls.report.files.MetricsFile._append", refuse)
    with pytest.raises(RunError, match=r"metrics.jsonl cannot be written \(Read-only file system\); .* resume"):
        train(tmp_path / "run", configure(folder))


def test_a_clock_that_runs_backwards(folder, tmp_path, monkeypatch):
    ticks = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))  # an hour back at each look
    train(tmp_path, configure(folder, **{"train.max_steps": 4}))
    summary = train(tmp_path, configure(folder))
    assert summary["wall_seconds"] > 0 and summary["images_per_second"] > 0 and summary["first_step_seconds"] > 0
    assert 0 <= summary["data_wait_fraction"] <= 1
    for record in lines(tmp_path):
        assert min(record["train.data_time"], record["train.compute_time"], record["train.total_ips"]) >= 0
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())[-1] == 9
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 9


def test_progress_by_a_clock_that_runs_backwards(monkeypatch, capsys):
    monkeypatch.setattr(time, "time", iter(range(1000, 0, -1)).__next__)
    console = Console()
    console.begin("training", 0, 10, "step")
    for step in (1, 5):  # before the first step there was the compiler, which says nothing of the time left
        console._shown_time -= 60
        console.update(step, {"loss": "1"})
    assert capsys.readouterr().out == "training: step 1/10, loss 1\ntraining: step 5/10, loss 1, 0:00 left\n"
