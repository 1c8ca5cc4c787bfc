"""The JSON files of a run directory."""

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcls.errors import RunError


class RecordsFile:
    """JSON objects with a `step`, one a line, in order, each written through at once; inf and NaN become null.

    Attributes:
      dropped: the records after `resume_step` that were in the file.
      damaged: how many lines before the last one could not be read; they are gone.
    """

    def __init__(self, path: Path, *, resume_step: int):
        """Opens the file for appending after `resume_step`; later lines, and those that cannot be read, are dropped.

        Raises:
          RunError: it cannot be written.
        """
        self._path = path
        self._last: dict[str, Any] = {}
        self.dropped: list[dict[str, Any]] = []
        self.damaged = 0
        try:
            self._trim(resume_step)
            self._file = open(path, "ab")  # noqa: SIM115 (open for the life of the object)
        except OSError as error:
            raise self._failure(error) from error

    def _trim(self, resume_step: int) -> None:
        kept = []
        with open(self._path, "a+b") as file:
            file.seek(0)
            lines = file.readlines()
            for line in lines:
                record = _record(line)
                if record is None or not line.endswith(b"\n"):
                    self.damaged += line is not lines[-1]
                elif record["step"] > resume_step:
                    self.dropped.append(record)
                else:
                    self._last = record
                    kept.append(line)
        self._last_start = sum(map(len, kept[:-1]))
        if kept == lines[: len(kept)]:
            os.truncate(self._path, sum(map(len, kept)))
            return
        part = self._path.with_name(self._path.name + ".part")
        part.write_bytes(b"".join(kept))
        part.replace(self._path)

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
        with contextlib.suppress(OSError):  # of a record that could not be written, which was told then
            self._file.close()

    def _failure(self, error: OSError) -> RunError:
        gone = isinstance(error, FileNotFoundError)
        do = "put the directory back" if gone else "make room or make it writable"
        return RunError(
            f"{self._path} cannot be written ({error.strerror}); {do}, then run the same command to resume from the last "
            "checkpoint"
        )


def _record(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, or `None`."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


class MetricsFile(RecordsFile):
    """`metrics.jsonl`: one line a step. A record for the step of the last line is merged into that line."""

    def _append(self, record: dict[str, Any]) -> None:
        if record["step"] == self._last.get("step"):
            # An evaluation that was interrupted and done again by the run that resumed.
            record = self._last | record
            self._file.truncate(self._last_start)
        super()._append(record)


@contextlib.contextmanager
def whole(path: Path, what: str = "") -> Iterator[Path]:
    """Yields the path of a file to write; it takes the place of `path` when all of it is there.

    A link stays, and what it leads to is replaced; what is no file, such as `/dev/null` or a pipe, is written to as it is.

    Args:
      what: names the file in the error.

    Raises:
      RunError: it cannot be written.
    """
    try:
        path = path.resolve()
        if path.exists() and not (path.is_file() or path.is_dir()):
            yield path
            return
        part = path.with_name(path.name + ".part")
        yield part
        part.replace(path)
    except OSError as error:
        raise RunError(f"{what}{path} cannot be written ({error.strerror})") from error


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all; inf and NaN, which JSON does not have, become null.

    Raises:
      RunError: it cannot be written.
    """
    with whole(path) as part:
        part.write_text(json.dumps(_without_nan(value), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
