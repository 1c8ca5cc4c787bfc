"""A run's evaluations: of its weights, and of their averages."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxcls import hosts
from jaxcls.data.pipeline import Batch, eval_batches
from jaxcls.report.predictions import Predictions
from jaxcls.train.agreement import Agreement
from jaxcls.train.evaluation import evaluate
from jaxcls.train.programs import Programs
from jaxcls.train.setup import Task
from jaxcls.train.state import TrainState


class Evaluator:
    """Evaluates states of a task, all processes together.

    Attributes:
      predictions: of the newest evaluation of the weights; `None` before the first.
    """

    def __init__(self, task: Task, programs: Programs, agreed: Agreement, put: Callable):
        """`put` takes a process's share of a batch to its devices."""
        self.predictions: Predictions | None = None
        self._task, self._programs, self._agreed, self._put = task, programs, agreed, put

    def evaluate(
        self, state: TrainState, note_bad: Callable[[str, str], None] | None = None
    ) -> dict[str, dict[str, Any]] | None:
        """Results by `TrainState.networks`, as of `evaluation.evaluate`; `None` if told to stop.

        Args:
          note_bad: called with the id of each image that cannot be used, and why.
        """
        results = {}
        for network, variables in state.networks.items():
            found = self._evaluate(variables, note_bad if network == "val" else None)
            if found is None:
                return None
            results[network], predictions = found
            if network == "val":
                self.predictions = predictions
        return results

    def _evaluate(self, variables: dict, note_bad: Callable | None) -> tuple[dict[str, Any], Predictions] | None:
        task = self._task
        batches = eval_batches(
            task.val_source,
            task.config.data,
            batch_size=task.config.train.batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        if note_bad is not None:
            batches = _noting_bad(batches, note_bad)

        def step(variables, *arrays):
            sums, outcomes = compiled(variables, *arrays, *self._agreed.ask())
            return self._agreed.hear(jax.device_get(sums)), {name: hosts.own_rows(rows) for name, rows in outcomes.items()}

        compiled = self._programs.eval_step
        return evaluate(step, variables, batches, task.val_source, self._put, lambda *_: not self._agreed.stopping)


def _noting_bad(batches: Iterator[Batch], note_bad: Callable[[str, str], None]) -> Iterator[Batch]:
    for batch in batches:
        for record, reason in batch.bad:
            note_bad(record, reason)
        yield batch
