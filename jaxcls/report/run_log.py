"""What a run left in its directory, read back: by a report, in the middle of the run or after it."""

import array
import contextlib
import errno
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcls.errors import DataError
from jaxcls.report import predictions

LINES_AT_ONCE = 1000
MOST_DRAWN = 1e100
MOST_BAD = 1000  # records that cannot be used which are kept; the rest are counted


class Curve(NamedTuple):
    """A metric over the steps that have it: `steps` int64 and `values` float64, `[N]`; NaN where it was not finite."""

    steps: np.ndarray
    values: np.ndarray


class RunLog(NamedTuple):
    """A run.

    Attributes:
      path: its directory.
      config: of `config.json`; empty if that is missing.
      summary: of `summary.json`; empty while the run goes on.
      data: of `data.json`, likewise.
      curves: of `metrics.jsonl`, by the metrics' names.
      bad: of `bad_records.jsonl`, at most `MOST_BAD`.
      bad_count: of all of them.
      predictions: of the newest evaluation; `None` if there was none.
      remarks: what could not be read.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    data: dict[str, Any]
    curves: dict[str, Curve]
    bad: list[dict[str, Any]]
    bad_count: int
    predictions: predictions.Predictions | None
    remarks: list[str]

    def last(self, name: str) -> float | None:
        """The newest finite value of a metric, or `None`."""
        values = self.curves[name].values if name in self.curves else np.zeros(0)
        finite = values[np.isfinite(values)]
        return float(finite[-1]) if finite.size else None


def read_run(path: Path) -> RunLog:
    """Reads a run's directory; what is missing is left empty, and what is damaged is remarked on and left out.

    Raises:
      DataError: the directory is no run's: it holds neither `config.json` nor `metrics.jsonl`.
    """
    try:
        is_run = (path / "config.json").exists() or (path / "metrics.jsonl").exists()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    if not is_run:
        raise DataError(f"{path} is not a run's directory: it holds neither config.json nor metrics.jsonl")
    remarks: list[str] = []
    config, summary, data = (
        _as_expected(name, _read_object(path / name, remarks), remarks)
        for name in ("config.json", "summary.json", "data.json")
    )
    curves = _read_curves(path / "metrics.jsonl", remarks)
    bad, count = [], 0
    for record in _read_lines(path / "bad_records.jsonl", remarks):
        count += 1
        if len(bad) < MOST_BAD:
            bad.append(record)
    try:
        found = predictions.load(path / "predictions.npz") if _is_file(path / "predictions.npz") else None
    except (OSError, ValueError) as error:
        found = None
        remarks.append(f"predictions.npz cannot be read ({error})")
    return RunLog(path, config, summary, data, curves, bad, count, found, remarks)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(each is None or _is_number(each) for each in value.values())


def _are_times(value: Any) -> bool:
    return _are_numbers(value) and all(each is None or each >= 0 for each in value.values())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


# What a page computes with, and what it must be; whatever else is there is shown as it is.
_EXPECTED = {
    "config.json": dict.fromkeys(("model", "data", "precision"), _is_object),
    "summary.json": {
        **dict.fromkeys(("best_top1", "final_top1", "top5", "loss", "images_per_second", "nonfinite_steps"), _is_number),
        "wall_seconds": _is_number,
        "seconds": _are_times,
        "ema": _are_numbers,
        "versions": _is_object,
    },
    "data.json": {},
}


def _as_expected(name: str, found: dict[str, Any], remarks: list[str]) -> dict[str, Any]:
    """Without what is something else than a run writes there; what is `null` is left out, too."""
    found = {key: value for key, value in found.items() if value is not None}
    wrong = [key for key, expected in _EXPECTED[name].items() if key in found and not expected(found[key])]
    remarks += [f"{key} in {name} is not what a run writes" for key in wrong]
    return {key: value for key, value in found.items() if key not in wrong}


def _is_file(path: Path) -> bool:
    """Whether it is there to be read. Raises OSError for what would be waited for, or has no end: a pipe, a device."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")
    return path.exists()


def _read_object(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        if not _is_file(path):
            return {}
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        remarks.append(f"{path.name} cannot be read ({error})")
        return {}
    if isinstance(value, dict):
        return value
    remarks.append(f"{path.name} is not a JSON object")
    return {}


def _read_lines(path: Path, remarks: list[str]) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines; the last line may be half-written, since the run may be going on."""
    try:
        if not _is_file(path):
            return
        with open(path, "rb") as file:
            numbers = itertools.count(1)
            while lines := list(itertools.islice(file, LINES_AT_ONCE)):
                for line, record, number in zip(lines, _parse(lines), numbers, strict=False):
                    if isinstance(record, dict):
                        yield record
                    elif line.endswith(b"\n"):
                        remarks.append(f"line {number} of {path.name} is not a JSON object")
    except OSError as error:
        remarks.append(f"{path.name} cannot be read ({error.strerror})")


def _parse(lines: list[bytes]) -> list[Any]:
    """What each line holds, `None` for one that is no JSON; all in one call, which is twice as fast, where all are."""
    with contextlib.suppress(ValueError, RecursionError):
        records = json.loads(b"[" + b",".join(lines) + b"]")
        if len(records) == len(lines):
            return records
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            records.append(None)
    return records


def _read_curves(path: Path, remarks: list[str]) -> dict[str, Curve]:
    columns: dict[str, tuple[array.array, array.array]] = {}
    for record in _read_lines(path, remarks):
        step = record.pop("step", None)
        if not _fits(step):
            continue
        for name, value in record.items():
            if value is None:  # inf and NaN are written as null
                value = math.nan
            elif type(value) is not float and not _fits(value):
                continue
            column = columns.get(name)
            if column is None:
                column = columns[name] = (array.array("q"), array.array("d"))
            column[0].append(step)
            column[1].append(value)
    return {name: Curve(np.array(steps), _drawable(np.array(values))) for name, (steps, values) in columns.items()}


def _drawable(values: np.ndarray) -> np.ndarray:
    """Without finite numbers that no axis could show: differences of the largest are infinite."""
    return np.where(np.isfinite(values) & (np.abs(values) > MOST_DRAWN), np.nan, values)


def _fits(value: Any) -> bool:
    """Whether it is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63
