import ast
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest

from jaxcls.errors import RunError
from jaxcls.report import comparison_plots
from jaxcls.report.comparison_plots import Accuracy, Speed, accuracy_by_work, throughput_by_latency
from jaxcls.report.published import PUBLISHED

ROOT = Path(__file__).parent.parent.parent
NETWORKS = ("a", "b", "c", "d")

pytestmark = pytest.mark.filterwarnings("error")  # Matplotlib's would be on a user's terminal


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = comparison_plots.save
    monkeypatch.setattr(comparison_plots, "save", lambda figure, path: (figures.append(figure), save(figure, path)))
    return figures


def curve(start, factor=1.0):
    """Batches 1 to 16 of a device that is best at large ones."""
    times = {batch: factor * (start + 0.1 * batch) for batch in (1, 2, 4, 8, 16)}
    return [Speed(batch, time, 1.2 * time, 1e3 * batch / time) for batch, time in times.items()]


def texts(figure):
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


def assert_labels_are_apart(figure):
    (axes,) = figure.axes
    figure.draw_without_rendering()
    boxes = [note.get_window_extent() for note in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for box in boxes:
        assert axes.bbox.x0 <= box.x0 <= box.x1 <= axes.bbox.x1 and axes.bbox.y0 <= box.y0 <= box.y1 <= axes.bbox.y1
    return boxes


def test_a_curve_shows_what_was_measured(tmp_path, drawn):
    points = [Speed(4, 20.0, 25.0, 210.0), Speed(1, 10.0, 13.0, 101.0)]
    throughput_by_latency(tmp_path / "a.svg", {("net", "fp32"): points}, title="Inference on toaster")
    (figure,) = drawn
    (axes,) = figure.axes
    curve, ends = axes.lines
    assert curve.get_xydata().tolist() == [[10, 101], [20, 210]]  # in order of batches
    assert ends.get_xydata().tolist() == [[13, 101], [25, 210]]
    whiskers = [segment.tolist() for segment in axes.collections[0].get_segments()]
    assert whiskers == [[[10, 101], [13, 101]], [[20, 210], [25, 210]]]
    assert [(note.get_text(), note.xy) for note in axes.texts] == [("1", (10, 101)), ("4", (20, 210))]
    assert axes.get_title() == "Inference on toaster" and texts(figure) == ["net"]
    assert "images/s" in axes.get_ylabel() and "latency of a batch, ms" in axes.get_xlabel()
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        assert sum(low <= tick <= high for tick in axis.get_majorticklocs()) >= 2
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_curves_differ_without_color(tmp_path, drawn):
    one = {(network, "fp32"): curve(1 + place) for place, network in enumerate(NETWORKS)}
    several = {(network, p): curve(1, 1 + place) for place, (network, p) in enumerate(itertools.product("abcd", "xyz"))}
    for curves in (one, several):
        throughput_by_latency(tmp_path / "a.png", curves, title="")
    for figure, count in zip(drawn, (4, 12), strict=True):
        lines = figure.axes[0].lines[::2]
        assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines) == count
    assert len({line.get_linestyle() for line in drawn[0].axes[0].lines[::2]}) == 4
    assert texts(drawn[0]) == ["a", "b", "c", "d"] and texts(drawn[1])[:2] == ["a, x", "a, y"]


def test_labels_of_close_curves_stay_apart(tmp_path, drawn):
    curves = {(network, "fp32"): curve(1, 1 + place / 50) for place, network in enumerate(NETWORKS)}
    throughput_by_latency(tmp_path / "a.svg", curves, title="")
    boxes = assert_labels_are_apart(drawn[0])
    assert len(boxes) == 20
    points = np.concatenate([line.get_xydata() for line in drawn[0].axes[0].lines[::2]])
    places = drawn[0].axes[0].transData.transform(points)
    assert not any(box.contains(*place) for box in boxes for place in places)


def test_long_labels_stay_inside(tmp_path, drawn):
    name = "a network with a name that goes on and on"
    dots = [Accuracy(name, "90 epochs", gflops, 77.0, 25e6, cited=True) for gflops in (1.0, 16.0)]
    accuracy_by_work(tmp_path / "a.svg", dots, networks=[name], title="", citation="")
    assert len(assert_labels_are_apart(drawn[0])) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("field", ["average", "p99", "images_per_second"])
def test_what_is_no_figure_is_left_out_and_said(bad, field, tmp_path, drawn):
    good = Speed(1, 10.0, 13.0, 100.0)
    curves = {("net", "fp32"): [good, good._replace(batch=8, **{field: bad})]}
    throughput_by_latency(tmp_path / "a.svg", curves, title="")
    (figure,) = drawn
    assert figure.axes[0].lines[0].get_xydata().tolist() == [[10, 100]]
    assert texts(figure) == ["net (no figure: batch 8)"]
    assert_labels_are_apart(figure)


def test_nothing_measured_is_said(tmp_path, drawn):
    throughput_by_latency(tmp_path / "a.svg", {("net", "fp32"): [Speed(2, math.nan, math.nan, 0.0)]}, title="")
    assert texts(drawn[0]) == ["net (no figure: batch 2)"] and "<svg" in (tmp_path / "a.svg").read_text()
    dots = [Accuracy("net", "90 epochs", 8.0, math.nan, 1e6, cited=True)]
    accuracy_by_work(tmp_path / "b.svg", dots, networks=["net"], title="", citation="NVIDIA")
    assert "no figure: net, 90 epochs" in texts(drawn[1]) and "NVIDIA" not in texts(drawn[1])


def test_cited_accuracies_are_hollow(tmp_path, drawn):
    dots = [
        Accuracy("small", "90 epochs", 8.0, 77.12, 25e6, cited=True),
        Accuracy("large", "90 epochs", 16.0, 80.19, 45e6, cited=True),
        Accuracy("large, too", "90 epochs", 16.0, 80.03, 45e6, cited=True),
    ]
    names = [dot.network for dot in dots]
    accuracy_by_work(tmp_path / "a.svg", dots, networks=names, title="", citation="NVIDIA, not run")
    ours = [*dots, Accuracy("small", "2 epochs", 8.0, 50.0, 25e6, cited=False)]
    accuracy_by_work(tmp_path / "b.png", ours, networks=names, title="", citation="NVIDIA, not run")
    theirs, both = drawn
    assert [len(each.get_facecolors()) for each in theirs.axes[0].collections[:3]] == [0, 0, 0]
    assert [len(each.get_facecolors()) for each in both.axes[0].collections[:4]] == [0, 0, 0, 1]
    assert [each.get_offsets().tolist() for each in theirs.axes[0].collections[:2]] == [[[8, 77.12]], [[16, 80.19]]]
    small, large = (each.get_sizes()[0] for each in theirs.axes[0].collections[:2])
    assert large / small == pytest.approx(45 / 25)  # areas
    key = dict(zip(texts(theirs), theirs.axes[0].collections[3:], strict=True))
    assert key["25 million parameters"].get_sizes()[0] == pytest.approx(small)
    assert list(key) == ["NVIDIA, not run", "25 million parameters", "50 million parameters"]
    assert texts(both)[:2] == ["NVIDIA, not run", "jaxcls"]
    assert theirs.axes[0].texts[0].get_text() == "small, 90 epochs: 77.12%"
    for figure in drawn:
        assert_labels_are_apart(figure)
        (axes,) = figure.axes
        assert "GFLOPs" in axes.get_xlabel() and "FLOPS" not in axes.get_xlabel() + axes.get_title()
        assert axes.get_ylabel() == "top-1, %"


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(RunError, match="gone/a.svg cannot be written"):
        throughput_by_latency(tmp_path / "gone" / "a.svg", {("net", "fp32"): curve(1)}, title="")


def test_the_config_files_agree_with_what_is_published():
    for name, published in PUBLISHED.items():
        text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name.replace('-', '_')}.py").read_text()))
        found = {int(epochs): float(top1) for top1, epochs in re.findall(r"([\d.]+)%\s+after\s+(\d+)", text)}
        assert found == published.top1
        assert len(found) == text.count("%")


def test_the_results_agree_with_what_is_published():
    rows = [
        line.strip("| ").split(" | ") for line in (ROOT / "docs" / "results.md").read_text().splitlines() if line[:1] == "|"
    ]
    top1 = {(row[0], int(row[1])): row[2] for row in rows if row[0] in PUBLISHED and len(row) == 6}
    assert top1 == {(name, epochs): f"{value:.2f}" for name in PUBLISHED for epochs, value in PUBLISHED[name].top1.items()}
    speed = {row[0]: row[1:3] for row in rows if row[0] in PUBLISHED and len(row) == 5}
    assert speed == {name: [f"{each.images_per_second[gpus]:,}" for gpus in (1, 8)] for name, each in PUBLISHED.items()}
