"""The pictures that a finished run leaves in `plots/`."""

from pathlib import Path

import numpy as np

from jaxcls.data.pipeline import evaluation_picture
from jaxcls.errors import RunError
from jaxcls.report import plots
from jaxcls.report.predictions import Predictions, worst
from jaxcls.report.run_log import RunLog
from jaxcls.train.setup import Task

PICTURES = 16  # of a grid, at most


def draw(log: RunLog, task: Task) -> None:
    """Draws the run's curves, and evaluation images as the network saw them: the worst mistakes, and some drawn at random.

    Raises:
      RunError: they cannot be written.
      OSError, decode.DecodeError: an image cannot be read any more.
    """
    folder = log.path / "plots"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder} cannot be made ({error.strerror})") from error
    plots.learning_curves([folder / f"curves{ending}" for ending in plots.PICTURES], log.curves)
    if log.predictions is None:
        return
    found = log.predictions.finite()
    count = len(found.id)
    drawn = np.random.default_rng(task.config.seed).choice(count, min(count, PICTURES), replace=False)
    for name, places in (("worst", worst(found, PICTURES)), ("random", np.sort(drawn))):
        path = folder / f"{name}.jpg"
        if len(places):
            _grid(path, task, found.at(places))
        else:
            path.unlink(missing_ok=True)  # of an evaluation before


def _grid(path: Path, task: Task, shown: Predictions) -> None:
    names = shown.classes
    pictures = [evaluation_picture(task.val_source, task.config.data, int(index)) for index in shown.index]
    captions = [
        f"{names[prediction]} ({confidence:.0%})" + ("" if prediction == label else f"\nis {names[label]}")
        for label, prediction, confidence in zip(shown.label, shown.prediction, shown.confidence, strict=True)
    ]
    plots.labelled_pictures(path, np.stack(pictures), captions)
