"""Pictures. They know only names and numbers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxcls.errors import RunError
from jaxcls.report.charts import MOST_POINTS, thin
from jaxcls.report.console import printable
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


def learning_curves(paths: Sequence[Path], curves: Mapping[str, Curve]) -> None:
    """Draws a run's loss, top-1, learning rate and, where it changed, the scale of its loss, over steps.

    Args:
      paths: files for the same picture; their endings are in `PICTURES`.
      curves: by the metrics' names.

    Raises:
      RunError: a file cannot be written.
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
    for path in paths:
        save(figure, path)


def labelled_pictures(path: Path, pictures: np.ndarray, captions: Sequence[str]) -> None:
    """Saves uint8 `[N, H, W, 3]`, four in a row, each with up to two lines of text above it.

    Raises:
      RunError: the file cannot be written.
    """
    import matplotlib

    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)
    side, gap, head = 160, 12, 36  # pixels
    rows = math.ceil(len(pictures) / 4)
    sheet = Image.new("RGB", (4 * (side + gap) + gap, rows * (side + head + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = gap + place % 4 * (side + gap), gap + place // 4 * (side + head + gap)
        lines = (
            line if len(line) <= 22 else line[:21] + "\N{HORIZONTAL ELLIPSIS}" for line in printable(caption).split("\n")
        )
        pen.text((left, top), "\n".join(lines), "black", font, spacing=2)
        sheet.paste(Image.fromarray(picture).resize((side, side)), (left, top + head))
    try:
        sheet.save(path)
    except OSError as error:
        raise RunError(f"picture {path} cannot be written ({error.strerror})") from error


def new_figure(columns: int = 1):
    """An empty figure and its axes, or an array of them, beside each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


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
