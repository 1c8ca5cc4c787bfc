"""The part of a report's page that shows what a network gets wrong."""

import base64
from pathlib import Path

import numpy as np

from jaxcls.report.charts import confusion_matrix, reliability
from jaxcls.report.html import percent, table, text
from jaxcls.report.predictions import Predictions, calibration, confusion, worst
from jaxcls.report.run_log import RunLog

MOST_CLASSES = 100  # of a confusion matrix
MOST_ROWS = 10  # of each table
PICTURES = {"worst.jpg": "Wrong, and most sure of it", "random.jpg": "Drawn at random"}  # in plots/


def mistakes(name: str, run: RunLog) -> str:
    """HTML of a run's last evaluation, image by image; empty if the run has none."""
    if run.predictions is None or not len(run.predictions.id):
        return ""
    found, images = run.predictions.finite(), len(run.predictions.id)
    unknown = images - len(found.id)
    said = f"{int(found.right.sum()):,} of {images:,} right" + (f"; {unknown:,} answers are not finite" if unknown else "")
    title = f"<h3>{text(name)}: {said}</h3>"
    if not len(found.id):
        return title
    counts = confusion(found)
    figures = [reliability(calibration(found))]
    if len(found.classes) <= MOST_CLASSES:
        figures.append(confusion_matrix(counts, [str(known) for known in found.classes]))
    pictures = "".join(_picture(run.path / "plots" / file, said) for file, said in PICTURES.items())
    return (
        f"{title}"
        f'<div class="charts">{"".join(f"<figure>{svg}</figure>" for svg in figures)}{pictures}</div>'
        f"{_classes(found, counts)}{_most_sure(found)}"
    )


def _picture(path: Path, said: str) -> str:
    try:
        if not path.is_file():
            return ""
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    source = f"data:image/jpeg;base64,{data}"
    return f'<figure><figcaption>{said}</figcaption><img alt="{said}" src="{source}"></figure>'


def _classes(found: Predictions, counts: np.ndarray) -> str:
    """The classes that are recognised least, each with what it is taken for most."""
    images, right = counts.sum(1), counts.diagonal()
    there = np.flatnonzero(images)
    order = there[np.argsort(right[there] / images[there], kind="stable")][:MOST_ROWS]
    wrong = counts - np.diag(right)
    rows = []
    for place in order:
        other = int(np.argmax(wrong[place]))
        often = f"{found.classes[other]} ({wrong[place, other]:,})" if wrong[place, other] else "-"
        rows.append([found.classes[place], f"{images[place]:,}", percent(100 * right[place] / images[place]), often])
    return "<h4>Least recognised</h4>" + table(["class", "images", "top-1", "most often taken for"], rows)


def _most_sure(found: Predictions) -> str:
    rows = [
        [found.id[place], found.classes[found.label[place]], found.classes[found.prediction[place]], _chance(found, place)]
        for place in worst(found, MOST_ROWS)
    ]
    return "<h4>Wrong, and most sure of it</h4>" + table(["image", "is", "taken for", "probability"], rows) if rows else ""


def _chance(found: Predictions, place: int) -> str:
    return percent(100 * float(found.confidence[place]))
