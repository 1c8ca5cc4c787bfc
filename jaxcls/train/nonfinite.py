"""Steps whose loss or gradients were not finite: the compiled step leaves them out, and here they are counted."""

from pathlib import Path

import numpy as np

from jaxcls.errors import RunError
from jaxcls.precision import LEAST_SCALE, DynamicLossScale, StaticLossScale
from jaxcls.train.progress import Progress
from jaxcls.train.setup import Task


def count_nonfinite(
    progress: Progress, task: Task, step: int, values: dict[str, float], records: np.ndarray, workdir: Path
) -> str | None:
    """Counts a step that was left out; ends the run after too many in a row, of which a smaller scale is no cure.

    Args:
      values: the step's metrics.
      records: indices of the records of its batch (of this process's share).

    Returns:
      what is to be said of the step, if anything.

    Raises:
      RunError: it was the last one of `train.most_nonfinite` in a row.
    """
    most = task.config.train.most_nonfinite
    if values["finite"]:
        progress.nonfinite_in_a_row = 0
        return None
    progress.nonfinite_steps += 1
    if isinstance(task.loss_scale, DynamicLossScale) and values["grad_scale"] > LEAST_SCALE:
        return None
    progress.nonfinite_in_a_row += 1
    what = f"step {step}: the loss ({values['loss']:g}) or its gradients are not finite"
    if task.config.precision.policy == "fp16":
        what += f", at a loss scale of {values['grad_scale']:g}"
    if progress.nonfinite_in_a_row < most:
        return f"{what[0].upper()}{what[1:]}; it is left out."
    ids = [task.train_source.id(int(index)) for index in records]
    named = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    error = RunError(
        f"{what}, for {most} steps in a row; its records: {named}. Look at them with `jaxcls replay {workdir} "
        f"--step {step}`; {_remedy(task)} may help"
    )
    error.shared = True  # the metrics are those of all processes
    raise error


def _remedy(task: Task) -> str:
    if isinstance(task.loss_scale, StaticLossScale):
        return "a smaller precision.loss_scale, or the dynamic one (0),"
    return "a smaller optim.base_lr or a longer warm-up"
