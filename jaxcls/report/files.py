"""The JSON files of a run directory."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

from jaxcls.errors import RunError


class RecordsFile:
    """JSON objects with a `step`, one a line, in order, each written through at once; inf and NaN become null.

    Attributes:
      dropped: the records after `resume_step` that were in the file.
    """

    def __init__(self, path: Path, *, resume_step: int):
        """Opens the file for appending after `resume_step`; later lines and a half-written last one are dropped.

        Raises:
          RunError: it cannot be written.
        """
        self._path = path
        self._last: dict[str, Any] = {}
        self.dropped: list[dict[str, Any]] = []
        try:
            self._file = open(path, "a+b")  # noqa: SIM115 (open for the life of the object)
            self._trim(resume_step)
        except OSError as error:
            raise self._failure(error) from error

    def _trim(self, resume_step: int) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record["step"] > resume_step:
                self.dropped.append(record)
            if self.dropped or not line.endswith(b"\n"):
                continue
            self._last, self._last_start, end = record, end, end + len(line)
        self._file.truncate(end)

    def write(self, record: dict[str, Any]) -> None:
        """Appends a record; it has a `step`.

        Raises:
          RunError: the disk is full, or the directory has gone.
        """
        try:
            self._append(record)
        except OSError as error:
            raise self._failure(error) from error

    def _append(self, record: dict[str, Any]) -> None:
        self._last, self._last_start = record, self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(_without_nan(record)).encode() + b"\n")
        self._file.flush()
        # Writing to a file that was deleted, or moved with its directory, is no error to the system.
        written = os.fstat(self._file.fileno())
        if not written.st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was deleted while the run went on")
        if not (self._path.exists() and os.path.samestat(written, self._path.stat())):
            raise FileNotFoundError(errno.ENOENT, "it was moved while the run went on")

    def close(self) -> None:
        self._file.close()

    def _failure(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path} cannot be written ({error.strerror}); make room or make it writable, then run the same "
            "command to resume from the last checkpoint"
        )


class MetricsFile(RecordsFile):
    """`metrics.jsonl`: one line a step. A record for the step of the last line is merged into that line."""

    def _append(self, record: dict[str, Any]) -> None:
        if record["step"] == self._last.get("step"):
            # An evaluation that was interrupted and done again by the run that resumed.
            record = self._last | record
            self._file.truncate(self._last_start)
        super()._append(record)


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all; inf and NaN, which JSON does not have, become null.

    Raises:
      RunError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(_without_nan(value), indent=2) + "\n")
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror})") from error


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
