import html.parser
import json
import os
import re
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxcls import command, reporting
from jaxcls.report import charts, mistakes, predictions, run_log
from jaxcls.report.page import make_page, run_names, write_report
from jaxcls.report.run_log import read_run

HOSTILE = '<script>alert("x")</script> $\\frac{1}{0}$ & '


class Reader(html.parser.HTMLParser):
    """Checks that tags are closed in order; keeps the tags, their attributes and the text."""

    VOID = ("meta", "link", "img")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_run(path, steps=40, top1=90.0, policy="fp32", **config):
    path.mkdir(parents=True)
    settings = {"model": {"name": "resnet50"}, "data": {"image_size": 32}, "precision": {"policy": policy}, **config}
    (path / "config.json").write_text(json.dumps(settings))
    with open(path / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            record = {"step": step, "epoch": step / 10, "train.loss": 1 / step, "train.lr": 0.1, "train.grad_scale": 128.0}
            record |= {"train.total_ips": 100.0, "train.compute_time": 0.2, "train.data_time": 0.01}
            record |= {"val.top1": top1 * step / steps, "val.loss": 2 / step, "val.top5": 99.0} if step % 10 == 0 else {}
            file.write(json.dumps(record) + "\n")
    seconds = {"startup": 10.0, "step": 70.0, "data": 5.0, "evaluation": 10.0, "saving": 3.0, "other": 2.0, "lost": 25.0}
    summary = {"best_top1": top1, "final_top1": top1, "top5": 99.0, "loss": 0.5, "images_per_second": 123.4}
    summary |= {"wall_seconds": 100.0, "seconds": seconds, "device": "1 x cpu", "versions": {"jax": "0.10.2"}}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_page_of_one_run(tmp_path):
    page = Reader(make_page([read_run(make_run(tmp_path / "mine"))]))
    for text in ("mine: resnet50, 32 px, fp32", "90.00% (best 90.00%)", "finished at step 40, epoch 4", "123.4", "1:40 min"):
        assert text in page.text
    assert "56.0% of 2:05 min were training steps" in page.text, "70 of 100 s and the 25 that were lost"
    assert "training steps 70.0 s (70.0%)" in page.text and "done again after a start that was killed: 25.0 s" in page.text
    assert "What differs" not in page.text and "Scale of the loss" not in page.text
    titles = [title for title in ("Loss", "Top-1", "Learning rate", "Throughput", "Time of a step") if title in page.text]
    assert len(titles) == sum(tag == "figure" for tag, _ in page.tags) == 5


def test_a_page_needs_nothing_else(tmp_path):
    page = Reader(make_page([read_run(make_run(tmp_path / "mine"))]))
    assert not {"script", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    links = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert not [attributes for tag, attributes in page.tags if tag == "meta" and "http-equiv" in attributes]


def test_runs_side_by_side(tmp_path):
    a = make_run(tmp_path / "a", seed=0)
    b = make_run(tmp_path / "b", top1=95.0, policy="fp16", seed=0, train={"batch_size": 8})
    page = Reader(make_page([read_run(a), read_run(b)]))
    differences = page.text[page.text.index("What differs") : page.text.index("Environment")]
    assert re.findall(r"precision\.policy|train\.batch_size|model\.name|seed", differences) == [
        "precision.policy",
        "train.batch_size",
    ]
    assert "a, training" in page.text and "b, training" in page.text and "Scale of the loss (fp16)" in page.text
    assert "Nothing: the configs are the same" in Reader(make_page([read_run(a), read_run(a)])).text


def test_names_tell_runs_apart(tmp_path):
    runs = [read_run(make_run(tmp_path / name)) for name in ("x/run", "y/run")]
    assert run_names(runs[:1]) == ["run"]
    assert run_names(runs[:2]) == ["x/run", "y/run"]


def test_hostile_text_is_shown_as_text(tmp_path):
    path = make_run(tmp_path / HOSTILE.replace("/", ""), model={"name": HOSTILE})
    bad = {"step": 1, "split": "train", "id": HOSTILE + os.fsdecode(b"\xff"), "reason": HOSTILE}
    (path / "bad_records.jsonl").write_text(json.dumps(bad) + "\n")
    (path / "summary.json").write_text(
        json.dumps({"device": HOSTILE, "seconds": {"step": 1.0}, "versions": {HOSTILE: HOSTILE}})
    )
    other = make_run(tmp_path / "other")
    text = make_page([read_run(path), read_run(other)])
    page = Reader(text)
    assert "script" not in {tag for tag, _ in page.tags} and page.text.count('alert("x")') > 5
    text.encode()  # it is Unicode


def test_the_scale_of_the_loss_has_numbers_on_its_axis(tmp_path):
    page = make_page([read_run(make_run(tmp_path / "run", policy="fp16"))])
    assert "Scale of the loss" in page and "mathdefault" not in page


def test_what_it_gets_wrong(tmp_path):
    path, size = make_run(tmp_path / "run"), 12
    label = np.arange(60, dtype=np.int32) % size
    prediction = np.where(np.arange(60) % 7 == 0, (label + 1) % size, label).astype(np.int32)
    classes = np.array([HOSTILE, *map(str, range(1, size))], str)
    ids = np.array([f"val/{HOSTILE}{index}" for index in range(60)], str)
    found = predictions.Predictions(
        np.arange(60, dtype=np.int32), ids, label, prediction, np.linspace(0.3, 1, 60, dtype=np.float32), classes
    )
    predictions.save(path / "predictions.npz", found)
    (path / "plots").mkdir()
    (path / "plots" / "worst.jpg").write_bytes(b"as if it were one")
    page = Reader(make_page([read_run(path)]))
    assert "run: 51 of 60 right" in page.text and "Least recognised" in page.text and "Drawn at random" not in page.text
    assert {tag for tag, _ in page.tags} & {"script", "image", "a"} == set() and page.text.count('alert("x")') > 2
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert picture["src"].startswith("data:image/jpeg;base64,")
    sure = float(found.confidence[~found.right].max())
    assert f"{100 * sure:.2f}%" in page.text
    for kept, said in ((0, "0 of 60 right; 60 answers are not finite"), (1, "0 of 60 right; 59 answers are not finite")):
        unknown = np.where(np.arange(60) < kept, found.confidence, np.nan).astype(np.float32)
        predictions.save(path / "predictions.npz", found._replace(confidence=unknown))
        with warnings.catch_warnings(action="error"):
            page = make_page([read_run(path)])
        assert said in Reader(page).text and ("Least recognised" in page) == bool(kept) and "nan" not in page
    (path / "predictions.npz").write_bytes(b"")
    assert "predictions.npz cannot be read (" in Reader(make_page([read_run(path)])).text


def test_no_matrix_of_more_classes_than_one_can_see():
    with_matrix, without = (charts.MOST_NUMBERED, mistakes.MOST_CLASSES + 1)
    for size, seen in ((with_matrix, True), (without, False)):
        label = np.arange(size, dtype=np.int32)
        found = predictions.Predictions(label, label.astype(str), label, label, np.ones(size, np.float32), label.astype(str))
        run = types.SimpleNamespace(predictions=found, path=Path("none"))
        assert ("What is taken for what" in mistakes.mistakes("run", run)) == seen


@pytest.mark.parametrize("records", ["", '{"step": 1, "train.loss": null, "val.top1": null}\n'])
def test_a_run_with_nothing_to_show(tmp_path, records):
    path = make_run(tmp_path / "run")
    (path / "summary.json").unlink()
    (path / "metrics.jsonl").write_text(records)
    page = Reader(make_page([read_run(path)]))
    assert ("not finished; step 1" if records else "nothing logged yet") in page.text


def test_damage_is_told(tmp_path):
    path = make_run(tmp_path / "run")
    (path / "summary.json").write_text("{")
    assert "summary.json cannot be read" in Reader(make_page([read_run(path)])).text


def test_lines_that_cannot_be_read_are_left_out_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "LINES_AT_ONCE", 2)
    lines = ['{"step": 1, "a": 1}', '{"step": 2, "a": [1', '2]}, {"step": 3, "a": 9}', "[]", '{"step": 5, "a": null}']
    lines += ['{"step": true, "a": 1}', '{"step": 7, "a": "7"}', '{"step": 8, "a": true}', '{"step": 9, "a": 1e400}']
    lines += [f'{{"step": {10**30}, "a": 1}}', f'{{"step": 11, "a": {10**400}}}', '{"step": 12, "a": 12']
    path = make_run(tmp_path / "run")
    (path / "metrics.jsonl").write_text("\n".join(lines))
    log = read_run(path)
    (steps, values) = log.curves["a"]
    assert steps.tolist() == [1, 5, 9] and values[0] == 1 and np.isnan(values[1]) and values[2] == np.inf
    assert log.remarks == [f"line {number} of metrics.jsonl is not a JSON object" for number in (2, 3, 4)]


def test_many_points_are_thinned():
    steps, values = np.arange(1, 100_001), np.ones(100_000)
    values[54_321], values[54_400], values[:200] = 9, np.inf, np.nan
    last, mean, low, high = charts.thin(steps, values)
    assert len(last) == charts.MOST_POINTS and last[-1] == 100_000
    assert np.nanmax(high) == 9 and np.nanmin(low) == 1 and 1 < np.nanmax(mean) < 2
    assert np.isnan(mean[0]) and not np.isnan(mean[2:]).any()


@pytest.mark.long
def test_a_log_of_ninety_epochs_of_imagenet(tmp_path):
    path = make_run(tmp_path / "run", steps=450_000)
    began = time.process_time()  # of a processor, which other tests share meanwhile: 4 s alone
    write_report(tmp_path / "report.html", [read_run(path)])
    assert time.process_time() - began < 10
    assert (tmp_path / "report.html").stat().st_size < 5e6


def run(*arguments):
    return reporting.main(["jaxcls report", *map(str, arguments)])


def test_the_command(tmp_path, capsys, monkeypatch):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert run(a) == 0 and "90.00%" in (a / "report.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert run("a", b) == 0 and "2 runs" in Path("report.html").read_text()
    assert run(a, "-o", tmp_path / "mine.html") == 0 and (tmp_path / "mine.html").exists()
    assert capsys.readouterr().out.splitlines()[-1] == f"Wrote {tmp_path / 'mine.html'}."


def test_wrong_commands(tmp_path, capsys):
    a = make_run(tmp_path / "a")
    for arguments, code, reason in (
        ([], 2, "the following arguments are required: DIR"),
        ([tmp_path / "none"], 3, "is not a run's directory"),
        ([a, "-o", tmp_path], 2, f"--out={tmp_path} cannot be written: it is a folder"),
        ([a, "-o", tmp_path / "no" / "where.html"], 2, "is not a folder that can be written to"),
    ):
        assert run(*arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line


def test_watching(tmp_path, monkeypatch, capsys):
    path = make_run(tmp_path / "a", steps=10)
    looks = []

    def sleep(seconds):
        assert seconds == 7
        looks.append(seconds)
        if len(looks) == 2:
            with open(path / "metrics.jsonl", "a") as file:
                file.write('{"step": 11, "epoch": 1.1}\n')
        if len(looks) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(reporting, "time", types.SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(command, "_end_at_once", sys.exit)
    with pytest.raises(SystemExit) as ended:
        run(path, "--watch", "--every", "7")
    assert ended.value.code == 75
    assert capsys.readouterr().out.count("Wrote") == 2, "only when there is more"
    text = (path / "report.html").read_text()
    assert '<meta http-equiv="refresh" content="7">' in text and "step 11" in text


@pytest.mark.parametrize("config", ["", "{}", "null", '{"model": {"name": 5}, "data": {}}'])
def test_a_run_whose_config_says_little(tmp_path, config):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train.loss": 2.0}\n')
    if config:
        (tmp_path / "config.json").write_text(config)
    name = "5" if "5" in config else "unknown network"
    assert f"<title>{tmp_path.name}: {name}</title>" in make_page([read_run(tmp_path)])
