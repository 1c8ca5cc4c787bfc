"""Pictures. They know only names and numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxcls.errors import RunError
from jaxcls.report.charts import MOST_POINTS, thin
from jaxcls.report.run_log import Curve

PICTURES = (".svg", ".png")
STYLES = (("-", "#000000"), ("-", "#c44e00"), ("--", "#3274b5"), (":", "#555555"))  # of curves; tell apart in grey, too


def error_by_depth(
    path: Path, names: Sequence[str], curves: Mapping[str, Sequence[float]], *, title: str, marked: str | None = None
) -> None:
    """Draws relative errors, on a logarithmic axis, of the layers of a network in order of depth.

    Args:
      path: its ending is in `PICTURES`.
      names: of the layers; a stage begins where the part before the first "/" changes.
      curves: errors by label, one for each layer; zero and infinity are drawn at the edges.
      marked: the name of a layer to point at.

    Raises:
      RunError: the file cannot be written.
    """
    figure, axes = new_figure()
    for (label, errors), (line, color) in zip(curves.items(), STYLES, strict=False):
        axes.plot([min(max(error, 1e-17), 1e2) for error in errors], line, color=color, label=label, linewidth=1.3)
    stages = [name.partition("/")[0] for name in names]
    starts = [index for index, stage in enumerate(stages) if index == 0 or stage != stages[index - 1]]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="#cccccc", linewidth=0.8, zorder=0)
    if marked is not None:
        place = list(names).index(marked)
        axes.axvline(place, color="#c40000", linewidth=1.2)
        axes.annotate(f"first divergence: {marked}", (place, 1), (4, -12), ("data", "axes fraction"), "offset points")
    labelled = [start for start in starts if stages[start].startswith("stage")]  # stem and logits would be in the way
    axes.set_xticks(labelled, [stages[start] for start in labelled], ha="left")
    axes.set(yscale="log", ylabel="largest error / largest value", xlabel="layer, from the image to the logits", title=title)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.legend(frameon=False)
    save(figure, path)


def losses_by_step(path: Path, curves: Mapping[str, Sequence[float]], *, title: str) -> None:
    """Draws the loss of each step of several runs, by label; the path's ending is in `PICTURES`.

    Raises:
      RunError: the file cannot be written.
    """
    figure, axes = new_figure()
    for (label, losses), (line, color) in zip(curves.items(), STYLES, strict=False):
        axes.plot(range(1, len(losses) + 1), losses, line, color=color, label=label, linewidth=1.0)
    axes.set(xlabel="step", ylabel="training loss", title=title)
    axes.legend(frameon=False)
    save(figure, path)


def learning_curves(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draws a run's loss, top-1, learning rate and, where it changed, the scale of its loss, over steps.

    Args:
      path: its ending is in `PICTURES`.
      curves: by the metrics' names.

    Raises:
      RunError: the file cannot be written.
    """
    panels = [
        ("loss", {"train.loss": "training", "val.loss": "evaluation", "val_ema.loss": "averaged weights"}),
        ("top-1, percent", {"val.top1": "evaluation", "val_ema.top1": "averaged weights"}),
        ("learning rate", {"train.lr": None}),
        ("scale of the loss", {"train.grad_scale": None}),
    ]
    scale = curves.get("train.grad_scale")
    if scale is None or len(np.unique(scale.values)) < 2:
        panels.pop()
    figure, all_axes = new_figure(len(panels))
    for axes, (unit, metrics) in zip(np.ravel(all_axes), panels, strict=True):
        for (name, label), (line, color) in zip(metrics.items(), STYLES, strict=False):
            if name in curves:
                steps, values = curves[name]
                if len(steps) > MOST_POINTS:
                    steps, values, _, _ = thin(steps, values)
                axes.plot(steps, values, line, color=color, label=label, linewidth=1.2)
        axes.set(xlabel="step", ylabel=unit)
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False)
    save(figure, path)


def labelled_pictures(path: Path, pictures: np.ndarray, captions: Sequence[str]) -> None:
    """Draws uint8 `[N, H, W, 3]`, four in a row, with lines of text above each.

    Raises:
      RunError: the file cannot be written.
    """
    rows = math.ceil(len(pictures) / 4)
    figure, all_axes = new_figure((rows, 4), size=(7, 2 * rows))
    for axes in all_axes.flat:
        axes.set_axis_off()
    for axes, picture, caption in zip(all_axes.flat, pictures, captions, strict=False):
        axes.imshow(picture)
        lines = (line if len(line) <= 24 else line[:23] + "\N{HORIZONTAL ELLIPSIS}" for line in caption.split("\n"))
        axes.set_title("\n".join(lines), fontsize=9, parse_math=False)
    save(figure, path)


def new_figure(grid: int | tuple[int, int] = 1, size: tuple[float, float] = (9, 4.5)):
    """An empty figure and its axes: `grid` of them beside each other, or rows and columns, in inches of `size`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    rows, columns = (1, grid) if isinstance(grid, int) else grid
    return figure, figure.subplots(rows, columns, squeeze=isinstance(grid, int))


def save(figure, path: Path) -> None:
    """Saves a figure; the path's ending is in `PICTURES`.

    Raises:
      RunError: the file cannot be written.
    """
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise RunError(f"picture {path} cannot be written ({error.strerror})") from error


def picture_grid(path: str | Path, pictures: np.ndarray) -> None:
    """Saves uint8 `[N, H, W, 3]` as one picture, row by row, about as many rows as columns, with white lines between.

    Raises:
      OSError: the file cannot be written.
    """
    count, height, width, _ = pictures.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + 2), place % columns * (width + 2)
        grid[top : top + height, left : left + width] = picture
    Image.fromarray(grid).save(path)
