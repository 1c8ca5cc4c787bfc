"""`bad_records.jsonl`: the records that could not be used, of all processes in one file."""

import json
from collections import Counter
from pathlib import Path

import jax

from jaxcls import hosts
from jaxcls.report.files import RecordsFile


class BadRecords:
    """Notes records; a process that is alone writes each at once, several bring theirs together in `flush`.

    `flush` comes before each checkpoint, so that what is noted up to there is in the file; what a run that fails noted
    after it, the run that resumes meets again.
    """

    def __init__(self, path: Path, *, resume_step: int):
        """Opens the file for going on after `resume_step`. Raises RunError if it cannot be written."""
        self._file = RecordsFile(path, resume_step=resume_step) if hosts.is_first() else None
        self._alone = jax.process_count() == 1
        self._noted: list[dict] = []  # since the last flush

    def note(self, step: int, split: str, record: str, reason: str) -> None:
        self._noted.append({"step": step, "split": split, "id": record, "reason": reason})
        if self._alone:
            self._file.write(self._noted[-1])

    def flush(self) -> Counter[str]:
        """Writes what all processes noted, which all must call at the same point; how many since the last time, by split."""
        everything = [line for told in hosts.gather(json.dumps(self._noted)) for line in json.loads(told)]
        self._noted = []
        if self._file is not None and not self._alone:
            for line in sorted(everything, key=lambda line: line["step"]):
                self._file.write(line)
        return Counter(line["split"] for line in everything)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
