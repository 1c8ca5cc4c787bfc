import json
import os
import re
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcls import benchmark, flags, loading, pictures
from jaxcls.benchmark import layers
from jaxcls.config import DataConfig
from jaxcls.data.measure import Files
from jaxcls.errors import RunError
from jaxcls.machine import cores
from jaxcls.models.flops import count_layers, total
from jaxcls.models.measure import Shape, distinct_convolutions, xla_convolution
from jaxcls.models.registry import create_model
from jaxcls.report.published import PUBLISHED, Published
from jaxcls.report.timing import input_verdict, spread, step_milliseconds
from jaxcls.train import measure, serving
from jaxcls.train.augment import normalize_images


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
    os.mkfifo(images / "pipe.jpg")
    assert run("data", "--path", images, "--threads", 2, "--image-size", 32, "--seconds", 1, "--json", out) == 0
    report = json.loads(out.read_text())
    assert list(report["stages"]) == ["read", "crop", "decode", "resize", "augment", "batch", "copy"]
    assert all(0 < seconds < 0.1 for seconds in report["stages"].values())
    assert report["one_thread_images_per_second"] == pytest.approx(1 / sum(report["stages"].values()))
    assert report["images"] == 3 and report["threads"] == 2
    bad, pipe = report["bad"]
    assert bad["path"] == str(images / "deep" / "broken.jpg") and "truncated" in bad["reason"].lower()
    assert pipe == {"path": str(images / "pipe.jpg"), "reason": "it is no file"}
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
        assert row["spread"] == pytest.approx(latency["p90"] / latency["p50"] - 1)
        assert row["flops_per_image"] == work * total(count_layers(create_model("tiny", num_classes=1000), 32))["flops"]
        assert row["flops_per_second"] == pytest.approx(row["flops_per_image"] * row["images_per_second"])
        assert 0 < row["compile_seconds"] < row["first_step_seconds"]
        weights = 4 * total(count_layers(create_model("tiny", num_classes=1000), 32))["parameters"]
        assert row["peak_memory_bytes"] > weights
        *_, head, cells, _ = capsys.readouterr().out.splitlines()
        assert cells.startswith("tiny") and len(head) == len(cells)
        assert cells[: head.index("spread") + len("spread")].endswith(f" {row['spread']:.0%}")
    assert run("train", "--model", "tiny", "--batch", 4, "--image-size", 32, "--steps", 1, "--remat", "--json", out) == 0
    assert json.loads(out.read_text())[0]["remat"] is True


def test_spread():
    assert spread(step_milliseconds([0.01] * 8 + [0.015, 0.03, 0.015])) == pytest.approx(
        0.5
    )  # the 90th of 11 is the second longest
    assert spread(step_milliseconds([0.01] * 3)) == 0


def test_layouts(tmp_path, capsys):
    out = tmp_path / "layout.json"
    assert run("layout", "--model", "tiny", "--batch", 2, "--image-size", 32, "--json", out) == 0
    report = json.loads(out.read_text())
    shapes = distinct_convolutions(["tiny"], 32)
    assert len(report["layers"]) == len(shapes) and sum(layer["networks"]["tiny"] for layer in report["layers"]) == sum(
        counts["tiny"] for counts in shapes.values()
    )
    for layout in ("nhwc", "nchw"):
        seconds = sum(layer["networks"]["tiny"] * sum(layer[layout].values()) for layer in report["layers"])
        assert report["step_seconds"]["tiny"][layout] == pytest.approx(seconds) and seconds > 0
    *_, printed, _ = capsys.readouterr().out.splitlines()
    last, first = (1e3 * report["step_seconds"]["tiny"][layout] for layout in ("nhwc", "nchw"))
    assert f"{last:,.0f} ms NHWC, {first:,.0f} ms NCHW, {first / last:.2f} times" in printed


def test_what_layouts_cost_by_window(capsys):
    rows = [
        {"window": window, "networks": {"net": count}, "nhwc": dict(zip(layers.PARTS, last, strict=True))}
        | {"nchw": dict(zip(layers.PARTS, first, strict=True)), "transpose": 0.25}
        for window, count, last, first in (
            (1, 2, (1, 1, 2), (3, 2, 2)),
            (1, 1, (2, 1, 2), (2, 2, 2)),
            (3, 1, (1, 1, 1), (1, 1, 4)),
        )
    ]
    rows.append({"window": 7, "networks": {"other": 1}, "nhwc": {}, "nchw": {}, "transpose": 9})
    layers._print_layouts("net", rows)
    head, one, three, total = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[-3:] == list(layers.PARTS)
    assert one.split() == ["3", "of", "1x1", "2.00", "2.00", "1.00"] and three.split()[-3:] == ["1.00", "1.00", "4.00"]
    assert "16,000 ms NHWC, 26,000 ms NCHW, 1.62 times" in total and "add 20% to the forward passes" in total


@pytest.mark.parametrize("shape", [Shape(9, 4, 6, 3, 2, 1), Shape(8, 6, 6, 3, 1, 3), Shape(5, 4, 8, 1, 1, 1)])
def test_both_layouts_are_the_same_convolution(shape):
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(form) for form in ((2, shape.side, shape.side, shape.channels), shape.kernel))
    last = xla_convolution(shape, "NHWC")(x, kernel)
    first = xla_convolution(shape, "NCHW")(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1))
    assert last.shape[-1] == shape.out and last[0, ..., 0].size == shape.area
    np.testing.assert_allclose(first, last.transpose(0, 3, 1, 2), atol=1e-4)


INFER = ("infer", "--model", "tiny", "--image-size", 32, "--steps", 3, "--warmup", 1)


def test_pictures_of_inference(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "tiny", Published({90: 12.34, 250: 23.45}, {}))
    out = tmp_path / "deep" / "pictures"
    assert run(*INFER, "--batch", 1, 2, "--pictures", out, "--json", tmp_path / "a.json") == 0
    assert f"Wrote {out / 'latency-throughput.svg'}." in capsys.readouterr().out
    rows = json.loads((tmp_path / "a.json").read_text())
    points = pictures.speeds(rows)[("tiny", "fp32")]
    assert [point.batch for point in points] == [1, 2]
    assert points[1][1:] == (rows[1]["step_ms"]["avg"], rows[1]["step_ms"]["p99"], rows[1]["images_per_second"])
    # Matplotlib notes each text that it draws as outlines.
    speed, accuracy = ((out / name).read_text() for name in ("latency-throughput.svg", "accuracy-flops.svg"))
    assert f"<!-- Inference on {rows[0]['machine']}, 32 px, fp32 -->" in speed and "<!-- tiny -->" in speed
    assert "<!-- tiny, 250 epochs: 23.45% -->" in accuracy
    assert "<!-- NVIDIA, published, not run by jaxcls (A100, AMP) -->" in accuracy and "<!-- jaxcls -->" not in accuracy


def test_inference_from_files_and_under_load(images, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert run(*INFER, "--batch", 2, "--path", images, "--load", 0.2, 0.9, "--json", out) == 0
    (row,) = json.loads(out.read_text())
    found = row["with_data"]
    assert found["images_per_second"] > 0 and 0 <= found["wait_fraction"] <= 1
    assert found["batches"] == max(3, 4 * cores())
    for share, answered in zip((0.2, 0.9), row["load"], strict=True):
        assert answered["share"] == share and answered["requests"] == 2 * 3
        assert answered["asked_per_second"] == pytest.approx(share * row["images_per_second"])
        assert 1 <= answered["images_per_batch"] <= 2 and answered["latency_ms"]["p50"] > 0
    printed = capsys.readouterr()
    assert str(images / "deep" / "broken.jpg") in printed.err
    assert f"with data: {found['images_per_second']:,.1f} images/s" in printed.out and "20% of that asked for" in printed.out


def test_each_batch_from_files_is_another_and_as_evaluation_shows_it(images):
    seen, row = [], {"image_size": 32, "batch": 2}
    paths = sorted(images.rglob("[abc].*"))

    def call(batch):
        seen.append(np.asarray(batch))

    found = serving.rate_with_data(call, Files(paths, sys.maxsize), row, count=5, warmup=1)
    wanted = loading.preprocess(paths, {"preprocessing": loading.preprocessing(DataConfig(image_size=32))})
    assert len(seen) == found["batches"] + 1
    for number, batch in enumerate(seen):
        expected = [wanted[(2 * number + slot) % 3] for slot in range(2)]
        np.testing.assert_allclose(normalize_images(batch, np.float32), expected, atol=1e-5)


def test_waiting_for_images_is_counted(monkeypatch):
    def slow_batches(source, config, *, batch_size):
        for _ in range(100):
            time.sleep(0.03)
            yield SimpleNamespace(image=np.zeros((batch_size, 32, 32, 3), np.uint8))

    monkeypatch.setattr(serving, "eval_batches", slow_batches)
    row = {"image_size": 32, "batch": 4}
    found = serving.rate_with_data(lambda images: time.sleep(0.01), None, row, count=8, warmup=1)
    assert found["images_per_second"] == pytest.approx(4 / 0.04, rel=0.3)
    assert found["wait_fraction"] == pytest.approx(0.75, abs=0.15)


def test_latency_under_load_is_that_of_a_queue():
    row = {"images_per_second": 4 / 0.02, "batch": 4}
    calm, busy = (serving.answer_requests(lambda: time.sleep(0.02), row, share, 20) for share in (0.05, 0.95))
    # Alone, a request waits for its own batch, and at most for one before it; then batches fill up.
    assert calm["images_per_batch"] < 1.6 and 20 <= calm["latency_ms"]["p50"] < 40
    assert busy["images_per_batch"] > 2 and busy["latency_ms"]["avg"] > 1.3 * calm["latency_ms"]["avg"]


def test_what_nobody_published_is_not_drawn(tmp_path, capsys):
    assert run(*INFER, "--batch", 1, "--pictures", tmp_path) == 0
    assert "accuracy-flops is not drawn: no accuracy of these networks is published." in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latency-throughput.png", "latency-throughput.svg"]


def test_published_accuracies_stand_at_the_work_of_224_px():
    dots = pictures.accuracies(["resnet50-v1", "resnet50"])
    assert [dot[:2] for dot in dots] == [("resnet50", "90 epochs"), ("resnet50", "250 epochs")]
    assert [dot.top1 for dot in dots] == [77.12, 78.43] and all(dot.cited for dot in dots)
    assert dots[0].gflops == pytest.approx(2 * 4.09, rel=0.01) and dots[0].parameters == 25_557_032


def test_rows_without_figures_are_drawn_as_such(tmp_path):
    row = {"model": "tiny", "precision": "fp32", "image_size": 32, "machine": "cpu", "batch": 4, "images_per_second": 0.0}
    pictures.draw([row | {"step_ms": {"avg": float("nan"), "p99": float("nan")}}], tmp_path)
    assert "<!-- tiny (no figure: batch 4) -->" in (tmp_path / "latency-throughput.svg").read_text()


def test_a_folder_for_pictures_that_cannot_be_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "latency-throughput.svg").mkdir(parents=True)
    for folder, reason in (("file", "File exists"), ("file/below", "Not a directory"), ("taken", "it is a folder")):
        assert run(*INFER, "--pictures", tmp_path / folder) == 2
        printed = capsys.readouterr()
        (line,) = printed.err.splitlines()
        assert str(tmp_path / folder) in line and reason in line and printed.out == ""


def test_a_batch_that_does_not_fit_is_refused_with_one_that_would(monkeypatch, capsys):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1_000_000)
    assert run("infer", "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
    pattern = r"--batch 64 of tiny needs about \S+ GiB, 0.0 GiB are free beside the weights; about [1-9]\d* would fit"
    assert re.search(pattern, capsys.readouterr().err)


def test_a_batch_whose_noise_does_not_fit_is_refused_before_it_is_made(monkeypatch, capsys):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 10_000)
    assert run("train", "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
    pattern = r"--batch 64 of 32 px needs 0.0 GiB for the images alone, 0.0 GiB are free; not even 4 would fit"
    assert re.search(pattern, capsys.readouterr().err)
    monkeypatch.setattr(measure, "free_bytes", lambda device: 100_000)
    assert run("train", "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
    assert "free; about 16 would fit" in capsys.readouterr().err
    monkeypatch.setattr(layers, "free_bytes", lambda device: 1_000_000)
    for kind in ("layers", "layout"):
        assert run(kind, "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
        assert re.search(r"--batch 64 needs about \S+ GiB, 0.0 GiB are free; about \d would fit", capsys.readouterr().err)


def test_devices_of_a_cpu_share_its_memory(monkeypatch, capsys):
    assert run("train", "--model", "tiny", "--batch", 6, "--image-size", 32) == 2
    assert "--batch 6 cannot be split over 4 devices; 4 could" in capsys.readouterr().err
    monkeypatch.setattr(measure, "program_bytes", lambda compiled: {"fixed": 2**20, "working": 2**20})
    monkeypatch.setattr(measure, "free_bytes", lambda device: 3 * 2**20)  # of which four devices need a MiB each
    assert run("train", "--model", "tiny", "--batch", 64, "--image-size", 32) == 2
    assert "needs about 0.0 GiB, 0.0 GiB are free beside the weights; about 48 would fit" in capsys.readouterr().err


def test_a_reader_that_goes_away_does_not_lose_files_in_silence(tmp_path, monkeypatch):
    def gone(args, names):
        raise BrokenPipeError

    monkeypatch.setattr("jaxcls.benchmark.steps.benchmark_steps", gone)
    monkeypatch.setattr("jaxcls.command._drop_output", lambda: None)
    out = tmp_path / "a.json"
    command = ["jaxcls benchmark", *map(str, INFER)]
    with pytest.raises(RunError, match=f"the reader of the output has gone; {out} was not written"):
        benchmark.benchmark(flags.parse_benchmark([*command, "--json", str(out)]))
    with pytest.raises(BrokenPipeError):  # which passes for success
        benchmark.benchmark(flags.parse_benchmark(command))


def test_layers(tmp_path, capsys):
    out = tmp_path / "report.json"
    assert run("layers", "--model", "tiny", "--image-size", 32, "--batch", 2, "--json", out) == 0
    rows = json.loads(out.read_text())
    stem = rows[0]
    assert (stem["side"], stem["channels"], stem["window"], stem["stride"], stem["groups"]) == (32, 3, 7, 2, 1)
    assert stem["gflops"] == pytest.approx(2 * 2 * 16 * 16 * 7 * 7 * 3 * stem["out"] / 1e9)
    for row in rows:
        planned = [part for lowering in row["lowerings"] for part in lowering["planned"]]
        assert sorted(planned) == ["dw", "dx", "forward", "inference"]
        assert all(lowering[part] > 0 for lowering in row["lowerings"] for part in planned)
    assert "matrix product" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--model", "resnet5"], 2, "did you mean 'resnet50'"),
        (["train", "--batch", "0"], 2, "at least 1"),
        (["infer", "--batch", "8", "9" * 30], 2, "must be at most 16777216"),
        (["layers", "--batch", "99999999"], 2, "--batch=99999999 must be at most 16777216"),
        (["infer", "--json", "a" * 300], 2, "cannot be written (File name too long)"),
        (["infer", "--json", "nodir/"], 2, "nodir/ cannot be written: it is a folder"),
        (["infer", "--precision", "fp64"], 2, "invalid choice: 'fp64'"),
        (["layers", "--image-size", "7"], 2, "--image-size=7 must be between"),
        (["data"], 2, "--path"),
        (["date", "--path", "x"], 2, "invalid choice: 'date'"),
        (["data", "--path", "no/such/place"], 3, "there is no folder no/such/place"),
        (["data", "--path", ".", "--threads", "0"], 2, "at least 1"),
        (["infer", "--path", "no/such/place"], 3, "there is no folder no/such/place"),
        (["infer", "--load", "1"], 2, "argument --load: 1 must be above 0 and below 1"),
        (["infer", "--load", "half"], 2, "argument --load: half must be above 0 and below 1"),
        (["train", "--path", "."], 2, "--path"),
        (["train", "--pictures", "x"], 2, "--pictures"),
        (["infer", "--pictures"], 2, "--pictures"),
        (["data", "--path", ".", "--threads", "20000"], 2, "--threads=20000 must be at most 1024"),
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
