"""Curves of runs as SVG that goes into a page: small, and in the page's own colours, light or dark."""

import io
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcls.report.run_log import Curve

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
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(6, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for line in lines:
            _draw(axes, line)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xlabel="step", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        if log:
            axes.set_yscale("log")
        if floor is not None:
            axes.set_ylim(bottom=floor)
        axes.grid(color=GRID, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if any(line.label for line in lines):
            axes.legend(frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
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
    axes.plot(steps, values, style, color=color, label=line.label, linewidth=1.3, marker=marker, markersize=2.5)


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """`MOST_POINTS` pieces of a curve: of each its last step, and the mean, least and greatest of its finite values."""
    edges = np.linspace(0, len(steps), MOST_POINTS + 1).astype(int)
    pieces = [values[start:stop][np.isfinite(values[start:stop])] for start, stop in itertools.pairwise(edges)]
    # A piece without a finite value leaves a gap.
    mean, low, high = (
        np.array([reduce(piece) if piece.size else np.nan for piece in pieces]) for reduce in (np.mean, np.min, np.max)
    )
    return steps[edges[1:] - 1], mean, low, high
