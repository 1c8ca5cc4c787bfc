"""The report in Chromium, where that is installed: nothing on the console, every picture there, no wider than the window."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxcls.report import plots, predictions
from jaxcls.report.page import write_report
from jaxcls.report.run_log import read_run
from tests.report.test_page import HOSTILE, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
PROBE = """<script>const page = document.documentElement, images = [...document.images];
page.dataset.width = innerWidth; page.dataset.over = page.scrollWidth - innerWidth;
page.dataset.pictures = images.filter(image => image.complete && image.naturalWidth > 0).length + ' of ' + images.length;
page.dataset.charts = [...document.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().height > 99).length;
page.dataset.paper = getComputedStyle(document.body).backgroundColor;</script>"""

pytestmark = [pytest.mark.long, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two runs with all that a page can have; one has names that are long, and would be code if they were not text."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    for name, size in (("a", 12), ("b" * 80, 90)):
        path = make_run(root / name, policy="fp16")
        label = np.arange(400, dtype=np.int32) % size
        prediction = np.where(rng.random(400) < 0.2, rng.integers(size, size=400), label).astype(np.int32)
        classes = np.array([f"{HOSTILE} {index} {'long name ' * 9}" for index in range(size)], str)
        ids = np.array([f"val/{HOSTILE}/{'x' * 90}{index}" for index in range(400)], str)
        found = predictions.Predictions(
            np.arange(400, dtype=np.int32), ids, label, prediction, rng.random(400, np.float32), classes
        )
        predictions.save(path / "predictions.npz", found)
        (path / "plots").mkdir()
        pictures = rng.integers(256, size=(16, 32, 32, 3), dtype=np.uint8)
        plots.labelled_pictures(path / "plots" / "worst.jpg", pictures, [HOSTILE] * 16)
        Image.fromarray(pictures[0]).save(path / "plots" / "random.jpg")
    path = root / "report.html"
    write_report(path, [read_run(root / "a"), read_run(root / ("b" * 80))])
    path.write_text(path.read_text().replace("</body>", PROBE + "</body>"))
    return path


@pytest.mark.parametrize("width", [500, 1300])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_shown_whole(report, tmp_path, width, dark):
    command = [CHROMIUM, *OPTIONS, f"--user-data-dir={tmp_path}", f"--window-size={width},900", "--enable-logging=stderr"]
    command += ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    shown = subprocess.run([*command, "--dump-dom", report.as_uri()], capture_output=True, text=True, timeout=120)
    seen = dict(
        re.findall(r'data-(\w+)="([^"]*)"', shown.stdout.partition(">")[2].partition("<head")[0] + shown.stdout[:600])
    )
    assert "CONSOLE" not in shown.stderr, shown.stderr
    assert seen["pictures"] == "4 of 4" and int(seen["charts"]) == 10
    assert int(seen["width"]) == width and int(seen["over"]) <= 0, seen
    assert (seen["paper"] == "rgb(21, 24, 29)") == dark
