import json

import numpy as np
import pytest
from PIL import Image

from jaxcls import benchmark
from jaxcls.report.timing import input_verdict


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


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
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
