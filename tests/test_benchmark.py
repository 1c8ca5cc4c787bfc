import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcls import benchmark
from jaxcls.models.flops import count_layers, total
from jaxcls.models.registry import create_model
from jaxcls.report.timing import input_verdict
from jaxcls.train import measure


@pytest.fixture(autouse=True)
def _keep_programs():
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture
def images(tmp_path):
    """Photographs in a tree, one of them broken."""
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "deep/b.JPEG", "deep/er/c.png", "deep/broken.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(60, 80, 3), dtype=np.uint8)).save(path)
    path = tmp_path / "images" / "deep" / "broken.jpg"
    path.write_bytes(path.read_bytes()[:500])
    return tmp_path / "images"


def run(*arguments):
    return benchmark.main(["jaxcls benchmark", *map(str, arguments)])


def test_data(images, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert run("data", "--path", images, "--threads", 2, "--image-size", 32, "--seconds", 1, "--json", out) == 0
    report = json.loads(out.read_text())
    assert list(report["stages"]) == ["read", "crop", "decode", "resize", "augment", "batch", "copy"]
    assert all(0 < seconds < 0.1 for seconds in report["stages"].values())
    assert report["one_thread_images_per_second"] == pytest.approx(1 / sum(report["stages"].values()))
    assert report["images"] == 3 and report["threads"] == 2
    (bad,) = report["bad"]
    assert bad["path"] == str(images / "deep" / "broken.jpg") and "truncated" in bad["reason"].lower()
    assert report["images_per_second_per_core"] <= report["images_per_second"] <= 2 * report["images_per_second_per_core"]
    printed = capsys.readouterr()
    assert report["verdict"] in printed.out and "Left out" in printed.err


def test_verdicts():
    # 1,220 images/s from 2 cores are 610 a core: 5,500 need 9.02 of them.
    assert input_verdict(1220, 2, 5500) == "input-bound: needs 10 cores for 5,500 images/s; you have 2"
    assert input_verdict(1230, 2, 5500) == "input-bound: needs 9 cores for 5,500 images/s; you have 2"
    assert input_verdict(600, 1, 600) == "keeps up: 600 images/s of 600 wanted, on 1 core"


def test_training_and_inference(tmp_path, capsys):
    out = tmp_path / "report.json"
    for kind, work in (("train", 3), ("infer", 1)):
        arguments = (kind, "--model", "tiny", "--batch", 4, "--image-size", 32, "--steps", 5, "--json", out)
        assert run(*arguments) == 0
        (row,) = json.loads(out.read_text())
        assert (row["model"], row["batch"], row["precision"]) == ("tiny", 4, "fp32")
        latency = row["step_ms"]
        assert row["images_per_second"] == pytest.approx(1e3 * row["batch"] / latency["p50"])
        assert latency["p50"] <= latency["p90"] <= latency["p95"] <= latency["p99"]
        assert row["flops_per_image"] == work * total(count_layers(create_model("tiny", num_classes=1000), 32))["flops"]
        assert row["flops_per_second"] == pytest.approx(row["flops_per_image"] * row["images_per_second"])
        assert 0 < row["compile_seconds"] < row["first_step_seconds"]
        weights = 4 * total(count_layers(create_model("tiny", num_classes=1000), 32))["parameters"]
        assert row["peak_memory_bytes"] > weights
        assert "tiny" in capsys.readouterr().out
    assert run("train", "--model", "tiny", "--batch", 4, "--image-size", 32, "--steps", 1, "--remat", "--json", out) == 0
    assert json.loads(out.read_text())[0]["remat"] is True


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(monkeypatch, capsys):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1_000_000)
    assert run("infer", "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
    pattern = r"--batch 64 of tiny needs about \S+ GiB, 0.0 GiB are free beside the weights; about [1-9]\d* would fit"
    assert re.search(pattern, capsys.readouterr().err)


def test_layers(tmp_path, capsys):
    out = tmp_path / "report.json"
    assert run("layers", "--model", "tiny", "--image-size", 32, "--batch", 2, "--json", out) == 0
    rows = json.loads(out.read_text())
    stem = rows[0]
    assert (stem["side"], stem["channels"], stem["window"], stem["stride"], stem["groups"]) == (32, 3, 7, 2, 1)
    assert stem["gflops"] == pytest.approx(2 * 2 * 16 * 16 * 7 * 7 * 3 * stem["out"] / 1e9)
    for row in rows:
        planned = [part for lowering in row["lowerings"] for part in lowering["planned"]]
        assert sorted(planned) == ["dw", "dx", "forward"]
        assert all(lowering[part] > 0 for lowering in row["lowerings"] for part in planned)
    assert "matrix product" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--model", "resnet5"], 2, "did you mean 'resnet50'"),
        (["train", "--batch", "0"], 2, "at least 1"),
        (["infer", "--precision", "fp64"], 2, "invalid choice: 'fp64'"),
        (["layers", "--image-size", "7"], 2, "--image-size=7 must be between"),
        (["data"], 2, "--path"),
        (["date", "--path", "x"], 2, "invalid choice: 'date'"),
        (["data", "--path", "no/such/place"], 3, "there is no folder no/such/place"),
        (["data", "--path", ".", "--threads", "0"], 2, "at least 1"),
        (["data", "--path", ".", "--json", "no/such/place/out.json"], 2, "cannot be written"),
    ],
)
def test_mistakes(arguments, code, message, capsys):
    assert run(*arguments) == code
    assert message in capsys.readouterr().err


def test_a_folder_of_broken_images(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert run("data", "--path", tmp_path) == 3
    assert "none of 1 images can be decoded; the first" in capsys.readouterr().err
