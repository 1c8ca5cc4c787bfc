"""Whole runs of a tiny network on a small image folder, on four virtual devices."""

import dataclasses
import errno
import json
import os
import re
import shutil
import sys
import threading
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcls
from jaxcls import prepare
from jaxcls.config import from_config_dict
from jaxcls.data.pipeline import _Order, train_batches
from jaxcls.data.sources import make_source
from jaxcls.errors import CheckpointError, ConfigError, DataError, Interrupted, RunError
from jaxcls.report import predictions, tensorboard
from jaxcls.train import checkpoints, loop, run, setup, steps
from jaxcls.train.programs import Programs
from jaxcls.train.signals import StopSignal
from jaxcls.workdir import claim
from tests.report.test_tensorboard import events, scalars
from tests.train.runs import configure, lines, make_folder, same_state, saved_state, train

STEPS_PER_EPOCH = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A finished run, never interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(workdir, configure(folder), page=True)


def test_what_a_run_leaves(whole):
    workdir, summary = whole
    records = lines(workdir)
    assert [record["step"] for record in records] == list(range(1, 10))
    assert records[2]["epoch"] == 1 and records[3]["epoch"] == pytest.approx(4 / 3, abs=1e-5)
    assert all(np.isfinite(record["train.loss"]) for record in records)
    evaluated = [record for record in records if "val.top1" in record]
    assert [record["step"] for record in evaluated] == [3, 6, 9]
    assert {"val.loss", "val.top5", "val.compute_ips", "val.compute_latency_at99"} <= evaluated[0].keys()
    assert summary["eval_count"] == 11 and len(summary["eval_digest"]) == 16
    assert summary["best_top1"] == max(record["val.top1"] for record in evaluated)
    assert summary["final_top1"] == evaluated[-1]["val.top1"]
    assert summary["steps"] == 9 and not summary["stopped_early"] and summary["images_per_second"] > 0
    assert f"{summary['final_top1']:.2f}%" in (workdir / "report.html").read_text()
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["num_classes"] == 2 and config["optim"]["weight_decay"] == 1 / 16384
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [3, 6, 9]


def test_the_evaluation_step_waits_until_the_first_training_step_is_done(folder, tmp_path, monkeypatch):
    order = []

    def noting(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: order.append(name) or original(*args))

    noting(Programs, "lower_train")
    noting(Programs, "lower_eval")
    noting(loop.Trainer, "_read")
    train(tmp_path, configure(folder, **{"train.max_steps": 3}))
    assert order[:2] == ["lower_train", "_read"] and "lower_eval" in order


def test_what_images_were_taken_for(whole):
    workdir, summary = whole
    found = predictions.load(workdir / "predictions.npz")
    assert found.id.tolist() == sorted(f"val/{'ab'[index % 2]}/{index:02}.png" for index in range(11))
    assert 100 * found.right.mean() == pytest.approx(summary["final_top1"]) and found.classes.tolist() == ["a", "b"]
    assert (found.confidence > 0.5).all() and (found.confidence <= 1).all()
    pictures = {path.name for path in (workdir / "plots").iterdir()}
    assert {"curves.png", "curves.svg", "random.jpg"} <= pictures and ("worst.jpg" in pictures) == (not found.right.all())
    assert "What it gets wrong" in (workdir / "report.html").read_text()


def test_tensorboard_has_the_metrics(whole, folder, tmp_path, monkeypatch):
    workdir = whole[0]
    found = [event for event in events(workdir / "tensorboard") if event.summary.value]
    for event, record in zip(found, lines(workdir), strict=True):
        assert event.step == record.pop("step") and scalars(event) == pytest.approx(record, rel=1e-6, nan_ok=True)
    for wanted, installed in ((False, True), (None, False)):
        monkeypatch.setattr(tensorboard, "is_installed", lambda installed=installed: installed)
        config = configure(folder, **{"log.tensorboard": wanted})
        assert loop.Trainer._open_events(types.SimpleNamespace(config=config, workdir=tmp_path), 0) is None
    with pytest.raises(ConfigError, match=r"log.tensorboard=true needs tensorboardX: pip install 'jaxcls\[tensorboard\]'"):
        configure(folder, **{"log.tensorboard": True})


def test_the_summary_says_where_the_time_went(whole):
    workdir, summary = whole
    seconds = dict(summary["seconds"])
    assert seconds.pop("lost") == 0 and min(seconds[name] for name in ("startup", "step", "evaluation", "saving")) > 0
    assert sum(seconds.values()) == pytest.approx(summary["wall_seconds"], abs=seconds["saving"])
    steps = [record["train.compute_time"] for record in lines(workdir)[1:]]
    assert seconds["step"] == pytest.approx(sum(steps), rel=1e-6)


def test_steps_that_were_lost_are_counted(folder, tmp_path, capsys):
    train(tmp_path, configure(folder, **{"train.max_steps": 5}))
    lost = lines(tmp_path)[3:]
    shutil.rmtree(tmp_path / "checkpoints" / "5")  # as if it had been killed before it could save
    summary = train(tmp_path, configure(folder), page=True)
    assert "Resuming at step 3 of 9" in capsys.readouterr().out
    taken = sum(record["train.compute_time"] + record["train.data_time"] for record in lost)
    assert [record["step"] for record in lost] == [4, 5] and summary["lost_steps"] == 2
    assert summary["seconds"]["lost"] == pytest.approx(taken)
    assert "done again after a start that was killed" in (tmp_path / "report.html").read_text()


def test_a_report_that_cannot_be_written_is_no_failure(folder, tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    assert train(tmp_path, configure(folder, **{"train.max_steps": 2}), page=True)["steps"] == 2
    said = capsys.readouterr().out
    assert f"report {tmp_path}/report.html cannot be written (Is a directory); once it can be, `jaxcls report" in said


def test_the_learning_rate_follows_the_schedule(whole):
    # Linear scaling: 0.256 * 8 / 256 = 0.008; cosine over 9 steps.
    expected = [0.008 * 0.5 * (1 + np.cos(np.pi * step / 9)) for step in range(9)]
    np.testing.assert_allclose([record["train.lr"] for record in lines(whole[0])], expected, rtol=1e-4)


def test_a_finished_run_says_so_and_changes_nothing(whole, folder, capsys):
    before = (whole[0] / "metrics.jsonl").read_bytes(), (whole[0] / "summary.json").read_bytes()
    train(whole[0], configure(folder))
    assert "This run is finished: top-1" in capsys.readouterr().out
    assert before == ((whole[0] / "metrics.jsonl").read_bytes(), (whole[0] / "summary.json").read_bytes())


@pytest.mark.parametrize("changes", [{}, {"data.workers": 2}])
def test_a_run_resumed_in_mid_epoch_ends_with_the_same_state(whole, folder, tmp_path, capsys, changes):
    train(tmp_path, configure(folder, **{"train.max_steps": 4}))
    train(tmp_path, configure(folder, **{"train.max_steps": 5}))
    assert "Resuming at step 4 of 5" in capsys.readouterr().out
    summary = train(tmp_path, configure(folder, **changes))
    assert same_state(whole[0], tmp_path, 9)
    assert summary["eval_digest"] == whole[1]["eval_digest"] and summary["final_top1"] == whole[1]["final_top1"]
    for ours, theirs in zip(lines(tmp_path), lines(whole[0]), strict=True):
        assert [ours[key] for key in ("step", "train.loss", "train.lr")] == [
            theirs[key] for key in ("step", "train.loss", "train.lr")
        ]


@pytest.mark.long
def test_an_array_record_run_resumed_in_mid_epoch_sees_each_remaining_record_once(folder, tmp_path, monkeypatch):
    assert prepare.main(["prepare", str(folder), str(tmp_path / "packed"), "--shards", "3"]) == 0
    seen = []  # (step, records)

    def watched(*arguments, start_step, **options):
        for number, batch in enumerate(train_batches(*arguments, start_step=start_step, **options)):
            seen.append((start_step + number, batch.index.tolist()))
            yield batch

    monkeypatch.setattr(loop, "train_batches", watched)
    settings = {"data.source": "array_record", "train.epochs": 2.0}
    for most in (2, 4, None):
        summary = train(tmp_path / "run", configure(tmp_path / "packed", **settings, **{"train.max_steps": most}))
    assert summary["eval_count"] == 11 and summary["steps"] == 6
    assert [step for step, _ in seen] == list(range(6))
    for epoch in (seen[:3], seen[3:]):
        records = [record for _, records in epoch for record in records]
        assert len(records) == len(set(records)) == 24 and set(records) < set(range(26))


def test_a_signal_at_any_look_at_it_loses_no_line(whole, folder, tmp_path, monkeypatch):
    class Stop(StopSignal):
        looks, patience = 0, 0

        @property
        def requested(self):
            self.looks += 1
            return "SIGTERM" if self.looks > self.patience else None

        @requested.setter
        def requested(self, value):
            pass

    monkeypatch.setattr(run, "StopSignal", Stop)
    for Stop.patience in (1, 2, 3, 4, 5, 6):
        with pytest.raises(Interrupted, match="SIGTERM: saved at step"):
            train(tmp_path, configure(folder))
    Stop.patience = 10**6
    train(tmp_path, configure(folder))
    assert same_state(whole[0], tmp_path, 9)
    assert [record["step"] for record in lines(tmp_path)] == list(range(1, 10))
    for ours, theirs in zip(lines(tmp_path), lines(whole[0]), strict=True):
        assert ours.keys() == theirs.keys() and ours["train.loss"] == theirs["train.loss"]


def test_nothing_is_compiled_after_the_second_step(folder, tmp_path, monkeypatch):
    """But the evaluation, in a thread, and what the first save needs, at the end of the first epoch (step 3)."""
    compiled, before = [], {}

    def listen(event, duration, **_):
        here = threading.current_thread() is threading.main_thread()
        if event == "/jax/core/compile/backend_compile_duration" and here:
            compiled.append(duration)

    def read(self, step, *rest, original=loop.Trainer._read):
        before[step] = len(compiled)
        return original(self, step, *rest)

    monkeypatch.setattr(loop.Trainer, "_read", read)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train(tmp_path, configure(folder))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert before[1] == before[3] > 0
    assert list(before) == list(range(1, 10)) and before[4] == len(compiled)


def test_another_seed_is_another_run(whole, folder, tmp_path):
    train(tmp_path, configure(folder, seed=1))
    assert not same_state(whole[0], tmp_path, 9)


@pytest.mark.parametrize("part", ["state", "metadata", "metrics"])
def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(whole, folder, tmp_path, capsys, part):
    train(tmp_path, configure(folder, **{"train.max_steps": 6}))
    for path in [path for path in (tmp_path / "checkpoints" / "6" / part).rglob("*") if path.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(tmp_path, configure(folder))
    out = capsys.readouterr().out
    assert "checkpoints/6 cannot be read" in out and "Resuming at step 3 of 9" in out
    assert same_state(whole[0], tmp_path, 9)
    assert [record["step"] for record in lines(tmp_path)] == list(range(1, 10))


def flip_bytes(checkpoint):
    """A hundred of them, all over the largest file; where exactly an array lies in it differs from run to run."""
    largest = max(
        (path for path in (checkpoint / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = np.frombuffer(largest.read_bytes(), np.uint8).copy()
    content[np.linspace(0, len(content) - 1, 100).astype(int)] ^= 0xFF
    largest.write_bytes(content.tobytes())


def write_metadata(checkpoint, **changes):
    path = checkpoint / "metadata" / "metadata"
    metadata = json.loads(path.read_text()) | changes
    del metadata["checksum"]
    path.write_text(json.dumps(checkpoints._sealed(metadata)))


def change_text(name, before, after):
    def change(checkpoint):
        text = (checkpoint / name / name).read_text()
        assert before in text
        (checkpoint / name / name).write_text(text.replace(before, after, 1))

    return change


DAMAGES = {
    "bytes of arrays": flip_bytes,
    "the arrays of another checkpoint": lambda checkpoint: write_metadata(checkpoint, checksums={"params": 1}),
    "no progress": lambda checkpoint: (checkpoint / "metadata" / "metadata").write_text("{}"),
    "another step's progress": lambda checkpoint: write_metadata(checkpoint, progress={"step": 5}),
    "a letter of the metadata": change_text("metadata", "lost_steps", "most_steps"),
    "a letter of the evaluation": change_text("metadata", '"top1"', '"uop1"'),
    "a letter of a class": change_text("metadata", '"classes": ["a"', '"classes": ["c"'),
    "a digit of the top-1": change_text("metrics", '"top1": ', '"top1": 1'),
    "a top-1 that is no number": lambda checkpoint: (checkpoint / "metrics" / "metrics").write_text('{"top1": "x"}'),
}


@pytest.fixture(scope="module")
def two_thirds(folder, tmp_path_factory):
    """A run stopped at step 6 of 9."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    train(workdir, configure(folder, **{"train.max_steps": 6}))
    return workdir


def test_a_damaged_checkpoint_is_passed_over(whole, two_thirds, folder, tmp_path, capsys):
    workdir = shutil.copytree(two_thirds, tmp_path / "run")
    DAMAGES["bytes of arrays"](workdir / "checkpoints" / "6")
    train(workdir, configure(folder))
    out = capsys.readouterr().out
    assert re.search(r"checkpoints/6 cannot be read \(.*\)", out) and "Resuming at step 3 of 9" in out
    assert same_state(whole[0], workdir, 9)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_that_can_be_read_is_found_too(two_thirds, folder, tmp_path, damage):
    workdir = shutil.copytree(two_thirds, tmp_path / "run")
    DAMAGES[damage](workdir / "checkpoints" / "6")
    task, said = setup.build(configure(folder), steps.make_mesh()), []
    template = steps.abstract_state(task.model, task.optimizer, task.mesh)
    reader = checkpoints.Checkpoints(workdir / "checkpoints", keep=3, warn=said.append)
    state, metadata = reader.restore(template)
    reader.close()
    assert int(state.step) == metadata["progress"]["step"] == 3
    (warning,) = said
    assert re.search(r"checkpoints/6 cannot be read \(.*\)", warning)


def test_damaged_weights_are_not_loaded(folder, tmp_path):
    train(tmp_path, configure(folder, **{"train.max_steps": 3, "train.ema_decay": 0.9}))
    jaxcls.load(tmp_path), jaxcls.load(tmp_path, ema=True)
    write_metadata(tmp_path / "checkpoints" / "3", checksums={"params": 1, "ema": 2})
    for options, part in (({}, "params"), ({"ema": True}, "ema")):
        with pytest.raises(CheckpointError, match=f"cannot be read .*the checksum of {part} differs"):
            jaxcls.load(tmp_path, **options)


def test_lines_that_cannot_be_read_cost_no_others(whole, folder, tmp_path, capsys):
    train(tmp_path, configure(folder, **{"train.max_steps": 6}))
    content = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    content[1:3] = ["garbage\n", "[]\n"]
    (tmp_path / "metrics.jsonl").write_text("".join(content) + '{"step": 7')
    train(tmp_path, configure(folder))
    assert "Dropped 2 lines of metrics.jsonl, which could not be read." in capsys.readouterr().out
    assert [record["step"] for record in lines(tmp_path)] == [1, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("content", ["[]", '{"steps": 70}', '{"steps": "70"}', None])
def test_a_summary_that_is_none(whole, folder, tmp_path, monkeypatch, content):
    shutil.copytree(whole[0], tmp_path / "run")
    if content is None:
        read = Path.read_text

        def refuse(path, *arguments, **options):
            if path.name == "summary.json":
                monkeypatch.undo()
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return read(path, *arguments, **options)

        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        (tmp_path / "run" / "summary.json").write_text(content)
    assert train(tmp_path / "run", configure(folder))["steps"] == 9


def test_no_readable_checkpoint_is_an_error(folder, tmp_path):
    train(tmp_path, configure(folder, **{"train.max_steps": 3}))
    for path in (tmp_path / "checkpoints" / "3").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the checkpoints 3 in .* can be read"):
        train(tmp_path, configure(folder))


def test_early_stopping_is_part_of_the_checkpoint(folder, tmp_path):
    # Without a learning rate nothing but the running statistics changes; top-1 stays, and two epochs are waited for.
    config = configure(folder, **{"train.early_stop_epochs": 2, "optim.base_lr": 0.0, "train.epochs": 50.0})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, bn_momentum=0.0))
    summary = train(tmp_path, config)
    assert summary["stopped_early"] and summary["steps"] == 3 * STEPS_PER_EPOCH
    assert train(tmp_path, config) == summary


def test_evaluate_finds_what_training_found(whole, folder, capsys):
    run.evaluate(configure(folder), whole[0], started=0.0)
    found = json.loads((whole[0] / "evaluation.json").read_text())
    for name, other in (("top1", "final_top1"), ("loss", "loss"), ("digest", "eval_digest"), ("count", "eval_count")):
        assert found[name] == whole[1][other]
    assert "Step 9: top-1" in capsys.readouterr().out


def test_evaluate_without_a_checkpoint(folder, tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint to evaluate"):
        run.evaluate(configure(folder), tmp_path, started=0.0)


def test_init_from_a_run_with_other_classes_has_a_new_head(whole, tmp_path, capsys):
    other = make_folder(tmp_path / "images", classes=("x", "y", "z"))
    frozen = {"optim.base_lr": 0.0, "checkpoint.init_from": str(whole[0])}
    config = configure(other, **frozen)
    train(tmp_path / "run", dataclasses.replace(config, model=dataclasses.replace(config.model, bn_momentum=0.0)))
    out = capsys.readouterr().out
    best = whole[1]["best_step"]
    assert f"a run of tiny, step {best}, top-1" in out and "New: params/head/kernel (32, 3), in place of (32, 2)." in out
    theirs, ours = saved_state(whole[0], best), saved_state(tmp_path / "run", 9)
    assert np.array_equal(ours["params"]["stem"]["conv"]["kernel"], theirs["params"]["stem"]["conv"]["kernel"])
    assert np.array_equal(ours["batch_stats"]["stem"]["bn"]["var"], theirs["batch_stats"]["stem"]["bn"]["var"])
    assert ours["params"]["head"]["kernel"].shape == (32, 3)


def test_init_from_mistakes(whole, folder, tmp_path):
    with pytest.raises(CheckpointError, match="is neither a run"):
        train(tmp_path / "a", configure(folder, **{"checkpoint.init_from": str(folder)}))
    with pytest.raises(
        CheckpointError, match=r"do not fit the network: .*has shape \(16, 16\), the network needs \(4, 16\)"
    ):
        train(tmp_path / "b", configure(folder, **{"checkpoint.init_from": str(whole[0]), "model.se_width": 4}))


def test_a_workdir_of_another_config_is_refused(whole, folder):
    with pytest.raises(ConfigError, match=r"another config \(optim.momentum is 0.875 there and 0.5 here\)"):
        train(whole[0], configure(folder, **{"optim.momentum": 0.5}))


def test_a_workdir_in_which_nothing_was_done_binds_nothing(folder, tmp_path):
    for momentum in (0.875, 0.5):
        with claim(tmp_path, configure(folder, **{"optim.momentum": momentum})):
            assert json.loads((tmp_path / "config.json").read_text())["optim"]["momentum"] == momentum


def test_evaluating_a_mistyped_workdir_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(CheckpointError, match="typo holds no checkpoint to evaluate"):
        run.evaluate(configure(folder), tmp_path / "typo", started=0.0)
    assert not (tmp_path / "typo").exists()


def test_a_workdir_in_use_is_refused(folder, tmp_path):
    config = configure(folder, **{"model.num_classes": 2})
    with claim(tmp_path, config), pytest.raises(ConfigError, match="in use by another process"):
        train(tmp_path, config)


def test_a_workdir_that_cannot_be_made(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot be a folder: it, or what it is to lie in, is a file"):
            train(path, configure(folder))


def test_classes_and_batches_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ConfigError, match="model.num_classes=3, but the data has 2 classes"):
        train(tmp_path, configure(folder, **{"model.num_classes": 3}))
    with pytest.raises(ConfigError, match="train.batch_size=6 cannot be split over 4 devices; 4 could"):
        train(tmp_path, configure(folder, **{"train.batch_size": 6}))
    with pytest.raises(ConfigError, match="train.grad_accum=4 does not divide the 2 images that each of 4 devices gets of"):
        train(tmp_path, configure(folder, **{"train.grad_accum": 4}))
    with pytest.raises(ConfigError, match="model.bn_group=3 does not divide 4 devices"):
        train(tmp_path, configure(folder, **{"model.bn_group": 3, "model.bn_sync": "group"}))
    with pytest.raises(ConfigError, match="mixes blocks of 8 records, and 4 devices get 2 each"):
        train(tmp_path, configure(folder, **{"train.mixup_alpha": 0.2}))
    with pytest.raises(ConfigError, match="CutMix mixes blocks of 8 records, and 4 devices get 2 each"):
        train(tmp_path, configure(folder, **{"train.cutmix_alpha": 1.0}))
    with pytest.raises(DataError, match="26 training images cannot fill one batch of 32"):
        train(tmp_path, configure(folder, **{"train.batch_size": 32}))


def test_bad_images_are_counted(tmp_path, capsys):
    folder = make_folder(tmp_path / "images")
    (folder / "train" / "a" / "04.png").write_bytes(b"")
    broken = folder / "val" / "b" / "05.png"
    summary = train(tmp_path / "a", configure(folder))
    assert summary["bad_records"]["train"] >= 1
    assert "Replaced train/a/04.png, which cannot be used (an empty file), by the next record." in capsys.readouterr().out
    noted = [json.loads(line) for line in (tmp_path / "a" / "bad_records.jsonl").read_text().splitlines()]
    assert len(noted) == summary["bad_records"]["train"]
    assert all(record["split"] == "train" and record["id"] == "train/a/04.png" for record in noted)
    assert all(record["reason"] == "an empty file" for record in noted)
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=f"evaluation image {broken} cannot be used"):
        train(tmp_path / "b", configure(folder))
    skipped = train(tmp_path / "c", configure(folder, **{"data.on_error": "skip"}))
    assert (skipped["eval_count"], skipped["bad_records"]["val"]) == (10, 1)
    assert "over 10 images; best top-1" in (out := capsys.readouterr().out) and "Skipped 1 that cannot be used." in out
    assert skipped["eval_digest"] != summary["eval_digest"]
    noted = [json.loads(line) for line in (tmp_path / "c" / "bad_records.jsonl").read_text().splitlines()]
    assert [record["id"] for record in noted if record["split"] == "val"][:1] == ["val/b/05.png"]


def test_names_that_are_not_utf8(tmp_path, capsys):
    sys.stdout.reconfigure(errors="backslashreplace")  # as `command.run` does
    name = os.fsdecode(b"caf\xe9")
    folder = make_folder(tmp_path / "images", classes=("a", name))
    (folder / "train" / name / "03.png").write_bytes(b"")
    summary = train(tmp_path / "run", configure(folder), page=True)
    assert summary["eval_count"] == 11 and r"Replaced train/caf\udce9/03.png" in capsys.readouterr().out
    assert predictions.load(tmp_path / "run" / "predictions.npz").classes.tolist() == ["a", name]
    assert (
        r"caf\udce9" in (tmp_path / "run" / "report.html").read_text()
        and (tmp_path / "run" / "plots" / "random.jpg").exists()
    )


def test_an_evaluation_image_that_cannot_be_used_does_not_cost_the_epoch(tmp_path, capsys):
    folder = make_folder(tmp_path / "images")
    (folder / "val" / "b" / "03.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="03.png cannot be used"):
        train(tmp_path / "run", configure(folder))
    summary = train(tmp_path / "run", configure(folder, **{"data.on_error": "skip"}))
    assert "Resuming at step 3 of 9" in capsys.readouterr().out
    assert summary["eval_count"] == 10 and [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 10))
    assert "val.top1" in lines(tmp_path / "run")[2]


def test_an_epoch_that_waits_for_data_says_how_much_is_missing(folder, tmp_path, capsys, monkeypatch):
    def slow(*arguments, **options):
        for batch in train_batches(*arguments, **options):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(loop, "train_batches", slow)
    train(tmp_path, configure(folder))
    said = re.findall(
        r"Waiting for data took (\d+)% of the epoch: input-bound: needs \d+ cores? for", capsys.readouterr().out
    )
    assert len(said) >= 2 and all(5 < int(percent) <= 100 for percent in said)  # the first epoch is mostly warm-up


def test_from_config_dict_of_a_saved_config(whole):
    saved = json.loads((whole[0] / "config.json").read_text())
    assert from_config_dict(saved).train.batch_size == 8


LOW = {
    "precision.policy": "fp16",
    "train.grad_accum": 2,
    "train.ema_decay": 0.9,
    "train.batch_size": 16,
    "train.epochs": 4.0,
}


@pytest.mark.long
def test_precision_parts_and_averages_survive_an_interruption(folder, tmp_path, capsys):
    config = configure(folder, **LOW)
    whole = train(tmp_path / "whole", config)
    train(tmp_path / "run", configure(folder, **LOW | {"train.max_steps": 3}))
    assert train(tmp_path / "run", config)["ema"] == whole["ema"]
    assert same_state(tmp_path / "run", tmp_path / "whole", 4)
    last = lines(tmp_path / "run")[-1]
    assert last["val_ema.top1"] == whole["ema"]["top1"] and last["val.top1"] == whole["final_top1"]
    assert last["train.grad_scale"] == 128 and last["train.nonfinite_steps"] == 0
    assert f"Averaged weights: top-1 {whole['ema']['top1']:.2f}%" in capsys.readouterr().out
    # The averages are weights as others are.
    raw, averages = (jaxcls.load(tmp_path / "run", ema=ema)[1] for ema in (False, True))
    assert jax.tree.structure(raw) == jax.tree.structure(averages)
    assert not np.array_equal(raw["params"]["head"]["kernel"], averages["params"]["head"]["kernel"])
    saved = saved_state(tmp_path / "run", 4)
    for a, b in zip(jax.tree.leaves(saved["ema"]), jax.tree.leaves(averages), strict=True):
        np.testing.assert_array_equal(a, b)


def test_numbers_that_are_not_finite_end_a_run_and_no_checkpoint_holds_them(folder, tmp_path, capsys):
    changes = {"optim.base_lr": 1e36, "train.most_nonfinite": 3, "checkpoint.every_steps": 1}
    with pytest.raises(RunError) as failure:
        train(tmp_path, configure(folder, **changes))
    message = str(failure.value)
    assert re.fullmatch(
        r"step \d+: the loss \(\w+\) or its gradients are not finite, for 3 steps in a row; its records: .*\.png\. Look "
        r"at them with `jaxcls replay .* --step \d+`; a smaller optim.base_lr or a longer warm-up may help",
        message,
    )
    step = int(message.split()[1].rstrip(":"))
    assert capsys.readouterr().out.count("it is left out.") == 2
    order = _Order(26, 8, 0)
    source = make_source(configure(folder).data, "train")
    ids = [source.id(order.record(step - 1, slot)) for slot in range(8)]
    assert f"its records: {', '.join(ids)}. Look" in message
    assert lines(tmp_path)[-1]["train.loss"] is None and "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    for saved in (tmp_path / "checkpoints").glob("[0-9]*"):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved_state(tmp_path, int(saved.name))))


def test_a_constant_loss_scale_that_overflows_is_named(folder, tmp_path):
    changes = {"precision.policy": "fp16", "precision.loss_scale": 1e7, "train.most_nonfinite": 2}
    with pytest.raises(RunError, match="for 2 steps in a row; .* a smaller precision.loss_scale, or the dynamic one"):
        train(tmp_path, configure(folder, **changes))


def test_a_loss_scale_at_its_least_is_a_diagnosis(folder, tmp_path):
    changes = {"optim.base_lr": 1e36, "train.most_nonfinite": 2, "precision.policy": "fp16", "train.epochs": 8.0}
    with pytest.raises(RunError, match="not finite, at a loss scale of 1, for 2 steps in a row"):
        train(tmp_path, configure(folder, **changes))
    scales = [line["train.grad_scale"] for line in lines(tmp_path)]
    assert scales[0] == 128 and scales[-1] == 1 and sorted(scales, reverse=True) == scales
