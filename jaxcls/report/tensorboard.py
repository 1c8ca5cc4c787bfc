"""TensorBoard's event files. The only user of tensorboardX, which is an extra."""

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SECONDS_UNSEEN = 30  # at most, from a step to its being on the disk


def is_installed() -> bool:
    """Whether event files can be written."""
    return importlib.util.find_spec("tensorboardX") is not None


class EventsFile:
    """A run's metrics as TensorBoard reads them, one event a step; each start of the run makes a file of its own.

    What cannot be written is told once, and is no failure of the run: `metrics.jsonl` has all of it.
    """

    def __init__(self, directory: Path, *, resume_step: int, warn: Callable[[str], None]):
        """Opens a new file in `directory`; TensorBoard will not show what other files there say of later steps.

        Args:
          warn: told when the file cannot be written.
        """
        with _torch_hidden():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        self._directory, self._warn = directory, warn
        self._file, self._seen_at = None, time.monotonic()
        with self._told():
            directory.mkdir(exist_ok=True)
            self._file = EventsWriter(str(directory / "events"), f".{os.getpid()}.{resume_step}")
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def write(self, record: dict[str, Any]) -> None:
        """Appends the numbers of a record, which has a `step`, under their names."""
        if self._file is None:
            return
        names = (name for name in record if name != "step" and isinstance(record[name], int | float))
        values = [self._summary.Value(tag=name, simple_value=record[name]) for name in names]
        with self._told():
            self._file.write_event(
                self._event(wall_time=time.time(), step=record["step"], summary=self._summary(value=values))
            )
            if time.monotonic() - self._seen_at > SECONDS_UNSEEN:
                self._file.flush()
                self._seen_at = time.monotonic()

    def close(self) -> None:
        if self._file is not None:
            with self._told():
                self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._file = None
            self._warn(f"{self._directory} cannot be written ({error.strerror}); TensorBoard will not show what comes now")


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """tensorboardX imports torch where it finds it, for what is not used here: seconds, and hundreds of MB."""
    held = sys.modules.get("torch")
    sys.modules["torch"] = None  # as if it were not installed
    try:
        yield
    finally:
        if held is None:
            del sys.modules["torch"]
        else:
            sys.modules["torch"] = held
