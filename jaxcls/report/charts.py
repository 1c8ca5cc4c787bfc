"""Curves of runs as SVG that goes into a page: small, and in the page's own colours, light or dark."""

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcls.report.console import printable
from jaxcls.report.predictions import Calibration
from jaxcls.report.run_log import Curve

MOST_NUMBERED, MOST_NAMED = 15, 40  # classes of a confusion matrix whose cells have numbers; that all have names
MOST_POINTS = 600  # of a curve; of more, the mean, and the range behind it
# Placeholders, which the page's style sheet has under the names on the right.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0a0b{index:02x}" for index in range(8))
VARIABLES = {INK: "--ink", GRID: "--grid"} | {color: f"--series{index}" for index, color in enumerate(SERIES)}
DASHES = ("-", "--", ":", "-.")


class Line(NamedTuple):
    """A curve in a chart.

    Attributes:
      label: in the legend; `None` for none.
      curve: what is drawn.
      color: index of the run.
      dash: index into `DASHES`.
    """

    label: str | None
    curve: Curve
    color: int = 0
    dash: int = 0


def chart(lines: Sequence[Line], *, title: str, unit: str, log: bool = False, floor: float | None = None) -> str:
    """An `<svg>` element of curves over steps.

    Args:
      title: what is drawn.
      unit: of the values.
      log: whether their axis is logarithmic.
      floor: least value of the axis, where that is known.
    """

    def draw(axes) -> None:
        from matplotlib.ticker import MaxNLocator

        for line in lines:
            _draw(axes, line)
        axes.set(xlabel="step", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # Matplotlib's own is mathematics, which stays text here
        if floor is not None:
            axes.set_ylim(bottom=floor)
        axes.grid(color=GRID, linewidth=0.6)
        if any(line.label for line in lines):
            axes.legend(frameon=False)

    return _svg(draw, title, (6, 3.2))


def reliability(found: Calibration) -> str:
    """An `<svg>` element: accuracy over confidence, a dot for each part of it, its area the number of images there."""

    def draw(axes) -> None:
        axes.plot([0, 100], [0, 100], "--", color=INK, linewidth=0.8, label="as right as sure")
        share = found.count / max(found.count.max(), 1)
        axes.plot(100 * found.confidence, 100 * found.accuracy, color=SERIES[0], linewidth=0.8)
        axes.scatter(100 * found.confidence, 100 * found.accuracy, 8 + 120 * share, SERIES[0])
        axes.set(xlabel="probability of the likeliest class, percent", ylabel="top-1, percent")
        axes.set(xlim=(0, 103), ylim=(0, 103))
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(frameon=False, loc="upper left")

    return _svg(draw, f"As sure as right? Expected calibration error {100 * found.error:.1f} points", (6, 4))


def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> str:
    """An `<svg>` element: a cell for each class (row) and what its images were taken for (column), the darker the more.

    Args:
      counts: `[C, C]`.
    """
    size = len(classes)

    def draw(axes) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.colors import to_rgb

        rows, columns = np.nonzero(counts)
        share = counts[rows, columns] / counts.sum(1)[rows]
        corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
        cells = np.stack([columns, rows], -1)[:, None] + corners  # [cells, 4, 2]
        colors = [
            (*to_rgb(SERIES[int(row != column)]), 0.15 + 0.7 * part)
            for row, column, part in zip(rows, columns, share, strict=True)
        ]
        axes.add_collection(PolyCollection(cells, facecolors=colors, edgecolors="none"))
        if size <= MOST_NUMBERED:
            for row, column in zip(rows, columns, strict=True):
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=INK)
        axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xlabel="taken for", ylabel="is", aspect="equal")
        places = range(size) if size <= MOST_NAMED else range(0, size, size // 10)
        axes.set_xticks(places, [_short(classes[place]) for place in places], rotation=90)
        axes.set_yticks(places, [_short(classes[place]) for place in places])

    return _svg(draw, "What is taken for what (right: blue; wrong: orange)", (6, 6))


def _short(name: str, most: int = 16) -> str:
    """As much of a name as there is room for; its end, which tells runs and files apart."""
    name = printable(name)
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[1 - most :]


def _svg(draw: Callable[[Any], None], title: str, size: tuple[float, float]) -> str:
    """What `draw` puts into axes, in the page's colours."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": title,
            "text.parse_math": False,
            "font.size": 10.5,
            "font.family": "sans-serif",
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
        }
    ):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        image = io.StringIO()
        figure.savefig(image, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = image.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg


def _draw(axes, line: Line) -> None:
    steps, values = line.curve
    color = SERIES[line.color % len(SERIES)]
    if len(steps) > MOST_POINTS:
        steps, values, low, high = thin(steps, values)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    marker = "o" if len(steps) < 30 else None
    style = DASHES[line.dash % len(DASHES)]
    axes.plot(
        steps,
        values,
        style,
        color=color,
        label=line.label and _short(line.label, 30),
        linewidth=1.3,
        marker=marker,
        markersize=2.5,
    )


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`MOST_POINTS` pieces of a curve: of each its last step, and the mean, least and greatest of its finite values."""
    edges = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)
    pieces = [values[start:stop][np.isfinite(values[start:stop])] for start, stop in itertools.pairwise(edges)]
    # A piece without a finite value leaves a gap.
    mean, low, high = (
        np.array([reduce(piece) if piece.size else np.nan for piece in pieces]) for reduce in (np.mean, np.min, np.max)
    )
    return steps[edges[1:] - 1], mean, low, high
