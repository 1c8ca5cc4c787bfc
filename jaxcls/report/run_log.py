"""What a run left in its directory, read back: by a report, in the middle of the run or after it."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcls.errors import DataError

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
      remarks: what could not be read.
    """

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    data: dict[str, Any]
    curves: dict[str, Curve]
    bad: list[dict[str, Any]]
    bad_count: int
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
    if not (path / "config.json").exists() and not (path / "metrics.jsonl").exists():
        raise DataError(f"{path} is not a run's directory: it holds neither config.json nor metrics.jsonl")
    remarks: list[str] = []
    config, summary, data = (_read_object(path / name, remarks) for name in ("config.json", "summary.json", "data.json"))
    curves = _read_curves(path / "metrics.jsonl", remarks)
    bad, count = [], 0
    for record in _read_lines(path / "bad_records.jsonl", remarks):
        count += 1
        if len(bad) < MOST_BAD:
            bad.append(record)
    return RunLog(path, config, summary, data, curves, bad, count, remarks)


def _read_object(path: Path, remarks: list[str]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        remarks.append(f"{path.name} cannot be read ({error})")
        return {}
    if isinstance(value, dict):
        return value
    remarks.append(f"{path.name} is not a JSON object")
    return {}


def _read_lines(path: Path, remarks: list[str]):
    """The objects of a file of lines; the last line may be half-written, since the run may be going on."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                if isinstance(record, dict):
                    yield record
                elif line.endswith(b"\n"):
                    remarks.append(f"line {number} of {path.name} is not a JSON object")
    except FileNotFoundError:
        return
    except OSError as error:
        remarks.append(f"{path.name} cannot be read ({error.strerror})")


def _read_curves(path: Path, remarks: list[str]) -> dict[str, Curve]:
    columns: dict[str, tuple[list[int], list[float]]] = {}
    for record in _read_lines(path, remarks):
        step = record.get("step")
        if not isinstance(step, int):
            continue
        for name, value in record.items():
            number = math.nan if value is None else value  # inf and NaN are written as null
            if isinstance(number, int | float) and name != "step":
                steps, values = columns.setdefault(name, ([], []))
                steps.append(step)
                values.append(number)
    return {
        name: Curve(np.array(steps, np.int64), np.array(values, np.float64)) for name, (steps, values) in columns.items()
    }
