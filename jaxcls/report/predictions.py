"""What a network took evaluation images for, and what that says of it."""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcls.report.files import whole

BINS = 15  # of the confidence, as in Guo et al. 2017


class Predictions(NamedTuple):
    """N evaluation images, in the order of their source, and the C classes.

    Attributes:
      index: int32 `[N]`, the image's index in its source.
      id: text `[N]`.
      label: int32 `[N]`, the right class.
      prediction: int32 `[N]`, the likeliest class.
      confidence: float32 `[N]`, its probability.
      classes: text `[C]`, their names.
    """

    index: np.ndarray
    id: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray
    classes: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Bool `[N]`."""
        return self.prediction == self.label

    def finite(self) -> "Predictions":
        """Those whose probability is a number: a network that overflows answers NaN, and has predicted nothing."""
        return self.at(np.isfinite(self.confidence))

    def at(self, places: np.ndarray) -> "Predictions":
        """Those at some places, or of a mask."""
        return Predictions(*(column[places] for column in self[:-1]), self.classes)


class Calibration(NamedTuple):
    """By `BINS` equal parts of the confidence from 0 to 1.

    Attributes:
      count: int64 `[BINS]`, the images in each.
      confidence, accuracy: float64 `[BINS]`, their means there, from 0 to 1; NaN where there is no image.
      error: the expected calibration error: the mean over all images of the difference of the two in the image's part.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def save(path: Path, predictions: Predictions) -> None:
    """Writes them, whole or not at all.

    Raises:
      RunError: the file cannot be written.
    """
    with whole(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **predictions._asdict())


def load(path: Path) -> Predictions | None:
    """Reads what `save` wrote; `None` if there is nothing.

    Raises:
      ValueError: it is damaged.
      OSError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Predictions(**{name: file[name] for name in Predictions._fields})
        count = len(found.id)
        fits = all(array.shape == (count,) for array in found[:-1]) and found.confidence.dtype == np.float32
        fits = fits and found.label.dtype == found.prediction.dtype == np.int32
        classes = np.concatenate([found.label, found.prediction])
        if not fits or (count and not 0 <= classes.min() <= classes.max() < len(found.classes)):
            raise ValueError("its arrays do not go together")
    except (KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return found


def confusion(predictions: Predictions) -> np.ndarray:
    """Int64 `[C, C]`: how many images of each class (row) were taken for each (column)."""
    size = len(predictions.classes)
    pairs = predictions.label.astype(np.int64) * size + predictions.prediction
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def calibration(predictions: Predictions) -> Calibration:
    """How far the probabilities can be believed (Guo et al. 2017, "On calibration of modern neural networks")."""
    place = np.clip(np.ceil(predictions.confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = (
            np.bincount(place, weights=values.astype(np.float64), minlength=BINS) / count
            for values in (predictions.confidence, predictions.right)
        )
    error = np.nansum(count * np.abs(confidence - accuracy)) / max(count.sum(), 1)
    return Calibration(count, confidence, accuracy, float(error))


def worst(predictions: Predictions, most: int) -> np.ndarray:
    """Places of up to `most` images that were taken for something else, the most confident first; all must be finite."""
    wrong = np.flatnonzero(~predictions.right)
    return wrong[np.argsort(-predictions.confidence[wrong], kind="stable")][:most]
