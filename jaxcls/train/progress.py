"""What a run remembers besides its state."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Progress:
    """Where a run is and what it found; saved in each checkpoint's metadata. Accuracies are in percent."""

    step: int = 0
    evaluated_step: int = -1  # of the last finished evaluation
    evaluation: dict[str, Any] | None = None  # its result
    ema_evaluation: dict[str, Any] | None = None  # that of the averaged weights
    best_top1: float | None = None
    best_step: int = -1
    evaluations_since_best: int = 0
    bad_records: int = 0  # training records that were replaced
    nonfinite_steps: int = 0  # steps that were left out
    nonfinite_in_a_row: int = 0  # up to now; of fp16 with a dynamic loss scale, those at its least
    wall_seconds: float = 0.0
    timed_steps: int = 0  # the next two are sums over these steps
    timed_seconds: float = 0.0
    waited_seconds: float = 0.0  # for data
    # Where the time went, over all starts: parts of `wall_seconds`, but for the last.
    startup_seconds: float = 0.0  # up to the end of each start's first step: mostly the compiler
    step_seconds: float = 0.0  # of all later steps, without waiting for data
    data_seconds: float = 0.0  # their waiting for data
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0  # that the loop was held up by it
    lost_steps: int = 0  # that were done again, after a start that ended without saving them
    lost_seconds: float = 0.0  # that these had taken

    def take_in(self, results: dict[str, dict[str, Any]]) -> None:
        """Remembers an evaluation at the current step: results by `TrainState.networks`."""
        result = results["val"]
        self.evaluated_step, self.evaluation, self.ema_evaluation = self.step, result, results.get("val_ema")
        before = -1.0 if self.best_top1 is None else self.best_top1
        self.evaluations_since_best = 0 if result["top1"] > before else self.evaluations_since_best + 1
        if result["top1"] >= before:  # of equals the last, as the checkpoints that are kept
            self.best_top1, self.best_step = result["top1"], self.step

    def finished(self, stop_step: int, patience: int) -> bool:
        """Whether the run has evaluated `stop_step`, or `patience` evaluations in a row (0: any number) were no better."""
        if self.evaluated_step != self.step:
            return False
        return self.step >= stop_step or 0 < patience <= self.evaluations_since_best
