"""`python -m jaxcls.recorded`: as `python -m jaxcls.main`, and notes in the run directory what proofs need.

For `jaxcls.proof`. Lines of

    records.jsonl   {"step": K, "records": [indices in the training source, in the batch's order]}
    states.jsonl    {"step": K, "saved": DIGESTS}, of the state that was handed over to be saved
    restored.json   {"step": K, "restored": DIGESTS}, of the state that the newest start began with, if it resumed

DIGESTS are SHA-256 of the arrays of each part of the state, such as `params`, as they are on the devices.
"""

import hashlib
import sys

import jax
import numpy as np

from jaxcls import main as command
from jaxcls.report.files import RecordsFile, write_json
from jaxcls.train import loop, run
from jaxcls.train.state import TrainState

RECORDS, STATES, RESTORED = "records.jsonl", "states.jsonl", "restored.json"


class Trainer(loop.Trainer):
    """Notes what a step consumed where the loop reads the metrics of that very step, and states where they pass."""

    _records: RecordsFile | None = None
    _states: RecordsFile | None = None

    def _restore(self) -> TrainState | None:
        state = super()._restore()
        if state is not None:
            write_json(self.workdir / RESTORED, {"step": self.progress.step, "restored": digests(state)})
        self._resumed_at = self.progress.step
        return state

    def _save(self) -> None:
        before = self._saved
        super()._save()
        if self._saved != before:
            self._states = self._states or RecordsFile(self.workdir / STATES, resume_step=self._resumed_at)
            self._states.write({"step": self.progress.step, "saved": digests(self._state)})

    def _read(self, step: int, metrics: dict, records: np.ndarray, timed: bool) -> dict:
        self._records = self._records or RecordsFile(self.workdir / RECORDS, resume_step=step - 1)
        self._records.write({"step": step, "records": records.tolist()})
        return super()._read(step, metrics, records, timed)


def digests(state: TrainState) -> dict[str, str]:
    """SHA-256, in hexadecimal, of each part of a state: of the paths, dtypes, shapes and bytes of its arrays."""
    parts = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        part, _, place = jax.tree_util.keystr(path, simple=True, separator="/").partition("/")
        array = np.ascontiguousarray(leaf)
        digest = parts.setdefault(part, hashlib.sha256())
        digest.update(f"{place} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return {part: digest.hexdigest() for part, digest in parts.items()}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    run.Trainer = Trainer
    return command.main(argv)


if __name__ == "__main__":
    sys.exit(main())
