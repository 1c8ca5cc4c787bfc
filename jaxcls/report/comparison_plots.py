"""Pictures that compare networks. They know only names and numbers."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcls.report.plots import new_figure, save

STYLES = (("#000000", "o"), ("#c44e00", "s"), ("#3274b5", "D"), ("#555555", "^"))  # of networks; tell apart in grey, too
LINES = ("-", "--", "-.", ":")  # of precisions, or of networks if there is one precision
DOT_AREA = 3  # square points, for a million parameters
DOT_KEY = (25, 50)  # millions of parameters
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # where a label may stand
DISTANCES = (1, 4, 8, 14, 22)  # points between it and the dot


class Speed(NamedTuple):
    """How fast one batch size is."""

    batch: int
    average: float  # latency of a batch, in milliseconds
    p99: float  # its 99th percentile
    images_per_second: float


class Accuracy(NamedTuple):
    """How good one network is after one training."""

    network: str
    training: str  # such as "90 epochs"
    gflops: float  # of an image, forward; work, not speed
    top1: float  # percent
    parameters: float
    cited: bool  # someone else's


class Label(NamedTuple):
    """Text beside a place in the axes' data."""

    x: float
    y: float
    text: str
    color: str
    radius: float  # of the dot there, in points


def throughput_by_latency(path: Path, curves: Mapping[tuple[str, str], Sequence[Speed]], *, title: str) -> None:
    """Draws images/s over the latency of a batch, on logarithmic axes; every point has its batch size.

    Args:
      path: its ending is in `PICTURES`.
      curves: points by network and precision. Those that are not finite or not above 0 are left out, and the legend says so.

    Raises:
      RunError: the file cannot be written.
    """
    figure, axes = new_figure()
    axes.set(xscale="log", yscale="log", title=title, ylabel="images/s (of the median step)")
    axes.set_xlabel("latency of a batch, ms (marker: average; whisker: to the 99th percentile; number: images of a batch)")
    networks, precisions = (list(dict.fromkeys(names)) for names in zip(*curves, strict=True))
    labels, drawn = [], []
    for (network, precision), points in curves.items():
        color, marker = STYLES[networks.index(network) % len(STYLES)]
        index = precisions.index(precision) if len(precisions) > 1 else networks.index(network)
        good = sorted(point for point in points if _positive(point))
        bad = [str(point.batch) for point in points if not _positive(point)]
        name = f"{network}, {precision}" if len(precisions) > 1 else network
        name += f" (no figure: batch {', '.join(bad)})" if bad else ""
        x, y, end = ([getattr(point, key) for point in good] for key in ("average", "images_per_second", "p99"))
        axes.plot(x, y, LINES[index % len(LINES)], color=color, marker=marker, markersize=5, linewidth=1.3, label=name)
        axes.hlines(y, x, end, color=color, linewidth=0.8, alpha=0.6)
        axes.plot(end, y, "|", color=color, markersize=7, alpha=0.6)
        drawn += [list(zip(x, y, strict=True)), *([(a, c), (b, c)] for a, b, c in zip(x, end, y, strict=True))]
        labels += [Label(a, b, str(point.batch), color, 4) for a, b, point in zip(x, y, good, strict=True)]
    if labels:
        axes.autoscale(False)  # or Matplotlib warns of a single point
        places = np.array([place for line in drawn for place in line])
        _ticks(axes.xaxis, axes.set_xlim, places[:, 0])
        _ticks(axes.yaxis, axes.set_ylim, places[:, 1])
    figure.legend(loc="outside lower center", ncols=min(4, len(curves)), frameon=False, handlelength=3)
    _write(axes, labels, drawn)
    save(figure, path)


def accuracy_by_work(path: Path, dots: Sequence[Accuracy], *, networks: Sequence[str], title: str, citation: str) -> None:
    """Draws top-1 over FLOPs; a dot's area is the number of parameters, and it is filled unless it is cited.

    Args:
      path: its ending is in `PICTURES`.
      dots: those that are not finite or not above 0 are left out, and the legend says so.
      networks: in the order of their colours, as in `throughput_by_latency`.
      citation: whose the cited ones are.

    Raises:
      RunError: the file cannot be written.
    """
    figure, axes = new_figure()
    axes.set(title=title, ylabel="top-1, %", xlabel="work of an image, forward, GFLOPs (a multiply-add is 2 FLOPs)")
    good = [dot for dot in dots if _positive(dot)]
    labels = []
    for dot in good:
        color, _ = STYLES[networks.index(dot.network) % len(STYLES)]
        area = DOT_AREA * dot.parameters / 1e6
        face = "none" if dot.cited else color
        axes.scatter(dot.gflops, dot.top1, area, facecolors=face, edgecolors=color, linewidths=1.3)
        text = f"{dot.network}, {dot.training}: {dot.top1:.2f}%"
        labels.append(Label(dot.gflops, dot.top1, text, color, math.sqrt(area / math.pi)))
    for cited, name in ((True, citation), (False, "jaxcls")):
        if any(dot.cited == cited for dot in good):
            axes.scatter([], [], 60, facecolors="none" if cited else "#000000", edgecolors="#000000", label=name)
    for millions in DOT_KEY:
        axes.scatter(
            [], [], DOT_AREA * millions, facecolors="none", edgecolors="#999999", label=f"{millions} million parameters"
        )
    for dot in dots:
        if not _positive(dot):
            axes.plot([], [], " ", label=f"no figure: {dot.network}, {dot.training}")
    if good:
        axes.set_xlim(0, 1.4 * max(dot.gflops for dot in good))
        axes.margins(y=0.15)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _write(axes, labels, [])
    save(figure, path)


def _positive(values: tuple) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values if not isinstance(value, str | bool))


def _ticks(axis, set_limits: Callable, values: np.ndarray) -> None:
    """Limits around the values, at least a factor of 5 apart, and ticks at 1, 2, 5, 10 and so on, written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = values.min(), values.max()
    margin = max(1.3, math.sqrt(5 * low / high))
    set_limits(low / margin, high * margin)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())


def _write(axes, labels: Sequence[Label], lines: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Writes each label near its place, where it covers least of the lines, the dots and the labels before it."""
    figure = axes.figure
    figure.draw_without_rendering()  # from here on the layout is known
    scale = figure.dpi / 72  # pixels of a point
    around = np.linspace(0, 2 * np.pi, 16)
    circle = scale * np.stack([np.cos(around), np.sin(around)], 1)
    centers = [axes.transData.transform((label.x, label.y)) for label in labels]
    ink = [np.empty((0, 2))]
    ink += [center + label.radius * circle for label, center in zip(labels, centers, strict=True)]
    for line in lines:
        corners = axes.transData.transform(line)
        ink += [np.linspace(start, end, 100) for start, end in itertools.pairwise(corners)]
    ink, boxes = np.concatenate(ink), np.empty((0, 4))
    for label, center in zip(labels, centers, strict=True):
        style = {"color": label.color, "fontsize": 8, "ha": "center", "va": "center"}
        note = axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", **style)
        half = np.array(note.get_window_extent().size) / 2 + scale
        middles = [
            center + np.array(side) * (half + scale * (label.radius + distance)) for distance in DISTANCES for side in SIDES
        ]
        costs = [_cost(np.concatenate([middle - half, middle + half]), axes.bbox, ink, boxes) for middle in middles]
        middle = middles[np.argmin(costs)]
        note.xyann = tuple((middle - center) / scale)
        boxes = np.vstack([boxes, np.concatenate([middle - half, middle + half])])


def _cost(box: np.ndarray, frame, ink: np.ndarray, boxes: np.ndarray) -> int:
    """How bad a place for a label is: it must not leave the frame, nor cover another, and should cover no ink."""
    outside = box[0] < frame.x0 or box[1] < frame.y0 or box[2] > frame.x1 or box[3] > frame.y1
    covered = ((ink >= box[:2]) & (ink <= box[2:])).all(1).sum()
    met = ((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(1).sum()
    return covered + 1000 * met + 1000 * outside
