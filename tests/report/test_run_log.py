import json
import os

import numpy as np
import pytest

from jaxcls.errors import DataError
from jaxcls.report.run_log import MOST_BAD, read_run


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    return tmp_path


def test_a_run_is_read_back(directory):
    lines = [
        {"step": 1, "epoch": 0.5, "train.loss": 2.0},
        {"step": 2, "epoch": 1.0, "train.loss": None, "val.top1": 50.0},
        {"step": 3, "epoch": 1.5, "train.loss": 1},
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "summary.json").write_text('{"steps": 3}')
    run = read_run(directory)
    assert run.config == {"seed": 3} and run.summary == {"steps": 3} and run.data == {} and not run.remarks
    np.testing.assert_array_equal(run.curves["train.loss"].values, [2, np.nan, 1])
    np.testing.assert_array_equal(run.curves["val.top1"].steps, [2])
    assert (run.last("train.loss"), run.last("val.top1"), run.last("val.loss")) == (1, 50, None)
    assert "step" not in run.curves


def test_a_run_that_is_writing_its_last_line(directory):
    (directory / "metrics.jsonl").write_text('{"step": 1, "train.loss": 2.0}\n{"step": 2, "train.lo')
    run = read_run(directory)
    assert run.curves["train.loss"].steps.tolist() == [1] and not run.remarks


def test_damage_is_remarked_on(directory):
    (directory / "config.json").write_text("[1")
    (directory / "summary.json").write_text("3")
    (directory / "metrics.jsonl").write_bytes(
        b'{"step": 1, "train.loss": 2.0}\n\xff\n"text"\n{"step": "x", "train.loss": 9}\n'
    )
    run = read_run(directory)
    assert (run.config, run.summary) == ({}, {}) and run.curves["train.loss"].values.tolist() == [2]
    assert [remark.split(" (")[0] for remark in run.remarks] == [
        "config.json cannot be read",
        "summary.json is not a JSON object",
        "line 2 of metrics.jsonl is not a JSON object",
        "line 3 of metrics.jsonl is not a JSON object",
    ]


def test_an_empty_run(directory):
    run = read_run(directory)
    assert run.curves == {} and run.bad == [] and run.last("train.loss") is None


def test_records_that_could_not_be_used(directory):
    (directory / "bad_records.jsonl").write_text('{"step": 1, "id": "a"}\n' * (MOST_BAD + 5))
    run = read_run(directory)
    assert len(run.bad) == MOST_BAD and run.bad_count == MOST_BAD + 5


def test_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="is not a run's directory: it holds neither config.json nor metrics.jsonl"):
            read_run(path)


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl", "bad_records.jsonl", "predictions.npz"])
def test_what_is_no_file_is_not_waited_for(directory, name):
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)
    (remark,) = read_run(directory).remarks
    assert remark.startswith(f"{name} cannot be read (") and "it is no file" in remark


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("summary.json", '{"wall_seconds": Infinity}', "wall_seconds"),
        ("summary.json", '{"wall_seconds": "long"}', "wall_seconds"),
        ("summary.json", '{"seconds": {"step": "x"}}', "seconds"),
        ("summary.json", '{"seconds": {"step": -1}}', "seconds"),
        ("summary.json", '{"final_top1": "high"}', "final_top1"),
        ("summary.json", '{"ema": 5}', "ema"),
        ("summary.json", '{"versions": "x"}', "versions"),
        ("config.json", '{"model": "resnet"}', "model"),
        ("config.json", '{"precision": "fp16"}', "precision"),
    ],
)
def test_what_no_run_writes_is_left_out(directory, name, text, key):
    (directory / name).write_text(text)
    run = read_run(directory)
    assert run.remarks == [f"{key} in {name} is not what a run writes"]
    assert key not in run.summary and key not in run.config


def test_what_is_nested_without_end(directory):
    (directory / "summary.json").write_text("[" * 200_000)
    (directory / "metrics.jsonl").write_text("[" * 200_000 + '\n{"step": 1, "train.loss": 1e308}\n')
    run = read_run(directory)
    assert run.remarks[0].startswith("summary.json cannot be read") and "line 1 of metrics.jsonl" in run.remarks[1]
    assert np.isnan(run.curves["train.loss"].values).all()


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(DataError, match="cannot be read .File name too long"):
        read_run(tmp_path / ("a" * 300))
