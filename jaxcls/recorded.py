"""`python -m jaxcls.recorded`: as `python -m jaxcls.main`, and `records.jsonl` says of which records each step was made.

For proofs, see `jaxcls.proof`. A line is `{"step": K, "records": [indices in the training source, in the batch's order]}`.
"""

import sys

import numpy as np

from jaxcls import main as command
from jaxcls.report.files import RecordsFile
from jaxcls.train import loop, run

NAME = "records.jsonl"


class Trainer(loop.Trainer):
    """Notes what a step consumed where the loop reads the metrics of that very step."""

    _records: RecordsFile | None = None

    def _read(self, step: int, metrics: dict, records: np.ndarray, timed: bool) -> dict:
        self._records = self._records or RecordsFile(self.workdir / NAME, resume_step=step - 1)
        self._records.write({"step": step, "records": records.tolist()})
        return super()._read(step, metrics, records, timed)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    run.Trainer = Trainer
    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())
