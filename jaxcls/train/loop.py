"""The training loop: draws batches, dispatches steps, and between them evaluates, logs, saves and stops."""

import collections
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcls import __version__, hosts
from jaxcls.config import to_dict
from jaxcls.data.pipeline import Batch, train_batches
from jaxcls.errors import CheckpointError, DataError, Interrupted, RunError
from jaxcls.machine import cores
from jaxcls.report import predictions, tensorboard
from jaxcls.report.console import Console
from jaxcls.report.files import MetricsFile
from jaxcls.report.tensorboard import EventsFile
from jaxcls.report.timing import input_verdict
from jaxcls.train import steps
from jaxcls.train.agreement import Agreement
from jaxcls.train.bad_records import BadRecords
from jaxcls.train.checkpoints import Checkpoints
from jaxcls.train.evaluator import Evaluator
from jaxcls.train.nonfinite import count_nonfinite
from jaxcls.train.programs import Programs
from jaxcls.train.progress import Progress
from jaxcls.train.setup import Task
from jaxcls.train.signals import StopSignal
from jaxcls.train.state import TrainState

WARMUP_STEPS = 2  # after each start, not counted in throughput
MOST_WAITING = 0.05  # for data, as a share of the time; more is worth a word


class Trainer:
    """One run in one directory. Make it, then call `train` or `evaluate`."""

    def __init__(self, task: Task, workdir: Path, console: Console, stop: StopSignal):
        self.task, self.console = task, console
        self.config = task.config
        self.workdir = workdir
        self.progress = Progress()
        self._bad: BadRecords | None = None  # while training
        self._saved: tuple[int, int] | None = None  # step and evaluated step of the newest checkpoint
        self.first_step_at: float | None = None  # time.perf_counter() when the first step's metrics were there
        self._split = steps.batch_sharding(task.mesh)
        self._agreed = Agreement(stop, self._split)
        self._replicated = jax.sharding.NamedSharding(task.mesh, steps.REPLICATED)
        self._programs = Programs(task, self._agreed.template())
        self._evaluator = Evaluator(task, self._programs, self._agreed, self._put)
        self._checkpoints = Checkpoints(workdir / "checkpoints", keep=self.config.checkpoint.keep, warn=console.say)

    def train(self, initialize: Callable[[dict], dict] = lambda variables: variables) -> TrainState:
        """Trains from the newest checkpoint, or from the start, to the end, and leaves a checkpoint there.

        Args:
          initialize: changes the variables of a fresh network before the first step.

        Raises:
          Interrupted: told to stop; the state is saved.
          RunError: the disk is full, evaluation lost a record, or too many steps in a row were not finite.
          DataError: records cannot be read.
          CheckpointError: no checkpoint can be read, though there are some.
        """
        try:
            self._programs.begin_train()
            self._state = hosts.together(self._restore) or self._programs.fresh_state(initialize)
            self._started = time.perf_counter()
            self._began = self._started - self.progress.wall_seconds
            self._saved_at = time.monotonic()
            resume = {"resume_step": self.progress.step}
            self._metrics = MetricsFile(self.workdir / "metrics.jsonl", **resume) if hosts.is_first() else None
            self._events = self._open_events(**resume)
            self._bad = BadRecords(self.workdir / "bad_records.jsonl", **resume)
            self._count_lost()
            self._timed_mark = (self.progress.timed_steps, self.progress.timed_seconds, self.progress.waited_seconds)
            self.console.begin("training", self.progress.step, self.task.stop_step, "step")
            try:
                self._run()
            finally:
                self.console.end()
                for log in (self._metrics, self._events):
                    if log is not None:
                        log.close()
                self._bad.close()
            return self._state
        finally:
            self._close()

    def evaluate(self, initialize: Callable[[dict], dict]) -> dict[str, Any]:
        """Evaluates the newest checkpoint, or a fresh network's variables as `initialize` changes them.

        See `evaluation.evaluate` for what it returns; the averaged weights' are in there as `val_ema`. Nothing is written.

        Raises:
          Interrupted: told to stop.
          CheckpointError: there is neither a checkpoint nor `checkpoint.init_from`.
        """
        self._programs.begin_eval()
        try:
            state = hosts.together(self._restore)
            if state is None and self.config.checkpoint.init_from is None:
                raise CheckpointError(f"{self.workdir} holds no checkpoint to evaluate; train first")
            state = state or self._programs.fresh_state(initialize)
            results = self._evaluator.evaluate(state)
        finally:
            self._close()
        if results is None:
            raise Interrupted(f"{self._agreed.reason}: evaluation was given up")
        return results.pop("val") | results

    def _close(self) -> None:
        self._programs.close()
        failing = sys.exception()
        # A process that fails by itself would wait for the others in vain, and they for it.
        if jax.process_count() == 1 or failing is None or getattr(failing, "shared", False):
            self._checkpoints.close()

    # Start

    def _restore(self) -> TrainState | None:
        restored = self._checkpoints.restore(self._programs.template)
        if restored is None:
            return None
        state, metadata = restored
        self.progress = Progress(**metadata["progress"])
        self._saved = (self.progress.step, self.progress.evaluated_step)
        self.console.say(f"Resuming at step {self.progress.step} of {self.task.stop_step} in {self.workdir}.")
        return state

    def _count_lost(self) -> None:
        """Notes the steps that a killed start had done, and that are done again now."""
        if self._metrics is None:
            return
        if self._metrics.damaged:
            self.console.say(f"Dropped {self._metrics.damaged} lines of metrics.jsonl, which could not be read.")
        if lost := self._metrics.dropped:
            self.progress.lost_steps += lost[-1]["step"] - self.progress.step
            times = [record.get("train.data_time", 0) + record.get("train.compute_time", 0) for record in lost]
            self.progress.lost_seconds += sum(times)

    def _open_events(self, resume_step: int) -> EventsFile | None:
        wanted = tensorboard.is_installed() if self.config.log.tensorboard is None else self.config.log.tensorboard
        if not (wanted and hosts.is_first()):
            return None
        return EventsFile(self.workdir / "tensorboard", resume_step=resume_step, warn=self.console.say)

    # Steps

    def _run(self) -> None:
        progress = self.progress
        if self._evaluation_due():  # the run before was stopped in it
            self._between_steps({"step": progress.step, "epoch": self._epoch(progress.step)})
        key = jax.jit(jax.random.key, static_argnums=0, out_shardings=self._replicated)(self.config.seed + 1)
        batches = self._train_batches()
        train_step = self._programs.train_step
        timed_from = progress.step + WARMUP_STEPS
        pending = None  # the step before: its metrics are read after this one has been dispatched
        self._mark, self._waited = time.perf_counter(), 0.0
        while not self._finished() and not self._agreed.stopping:
            waiting = time.perf_counter()
            arrays, batch = next(batches)
            self._waited += time.perf_counter() - waiting
            self._state, metrics = train_step(self._state, *arrays, key, *self._agreed.ask())
            if pending is not None:
                self._log(self._read(*pending))
            progress.step += 1
            self._report_bad(batch.bad)
            pending = (progress.step, metrics, batch.index, progress.step > timed_from)
            if self._evaluation_due() or self._save_due() or self._agreed.stopping:
                self._between_steps(self._read(*pending))
                pending = None
        batches.close()
        if self._agreed.stopping:
            if pending is not None:  # the signal came after the look at it above
                self._log(self._read(*pending))
            self._interrupt()

    def _train_batches(self) -> Iterator[tuple[tuple[jax.Array, jax.Array], Batch]]:
        """Batches on the devices from the current step on, one ahead of the step that runs."""
        batches = train_batches(
            self.task.train_source,
            self.config.data,
            batch_size=self.config.train.batch_size,
            seed=self.config.seed,
            start_step=self.progress.step,
            stop_step=self.task.stop_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        ahead = collections.deque()
        for batch in batches:
            ahead.append((self._put(batch.image, batch.label), batch))
            if len(ahead) == 2:
                yield ahead.popleft()
        yield from ahead

    def _put(self, *arrays: np.ndarray) -> tuple[jax.Array, ...]:
        """This process's share of a batch, on the devices."""
        return tuple(jax.make_array_from_process_local_data(self._split, array) for array in arrays)

    def _read(self, step: int, metrics: dict, records: np.ndarray, timed: bool) -> dict[str, Any]:
        """Waits for a step to finish; the record of it, with the time since the one before was read.

        Args:
          records: indices of the records of its batch (of this process's share).
        """
        values = {name: float(value) for name, value in self._agreed.hear(jax.device_get(metrics)).items()}
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        waited, self._waited = self._waited, 0.0  # for data, in this time
        if self.first_step_at is None:
            self.first_step_at = now
            self._programs.begin_eval()  # not before: it would take the cores from the first step
            self.progress.startup_seconds += now - self._started
        else:
            self.progress.step_seconds += seconds - waited
            self.progress.data_seconds += waited
        if timed:
            self.progress.timed_steps += 1
            self.progress.timed_seconds += seconds
            self.progress.waited_seconds += waited
        if said := count_nonfinite(self.progress, self.task, step, values, records, self.workdir):
            self.console.say(said)
        batch = self.config.train.batch_size
        return {
            "step": step,
            "epoch": self._epoch(step),
            "train.loss": values["loss"],
            "train.lr": values["lr"],
            "train.grad_scale": values["grad_scale"],
            "train.nonfinite_steps": self.progress.nonfinite_steps,
            "train.compute_ips": batch / max(seconds - waited, 1e-9),
            "train.total_ips": batch / seconds,
            "train.data_time": waited,
            "train.compute_time": seconds - waited,
        }

    def _log(self, record: dict[str, Any]) -> None:
        """Writes a record if it is due, and shows it."""
        step = record["step"]
        at_boundary = step % self.task.steps_per_epoch == 0 or step == self.task.stop_step
        if (at_boundary or step % self.config.log.every_steps == 0) and self._metrics is not None:
            self._metrics.write(record)
            if self._events is not None:
                self._events.write(record)
        if "train.loss" in record:
            best = self.progress.best_top1
            facts = {"epoch": f"{record['epoch']:.2f}", "loss": f"{record['train.loss']:.3f}"}
            facts |= {"top-1": "-" if best is None else f"{self.progress.evaluation['top1']:.2f}%"}
            self.console.update(step, facts | {"images/s": f"{record['train.total_ips']:.1f}"})

    def _epoch(self, step: int) -> float:
        return round(step / self.task.steps_per_epoch, 6)

    def _report_bad(self, bad: tuple[tuple[str, str], ...]) -> None:
        for record, reason in bad:
            self._bad.note(self.progress.step, "train", record, reason)
            self.console.say(f"Replaced {record}, which cannot be used ({reason}), by the next record.")

    def _say_if_input_bound(self) -> None:
        """After an epoch: if waiting for data took more than a twentieth of it, by how much the pipeline is too slow."""
        progress = self.progress
        now = (progress.timed_steps, progress.timed_seconds, progress.waited_seconds)
        steps, seconds, waited = (after - before for after, before in zip(now, self._timed_mark, strict=True))
        self._timed_mark = now
        if steps and waited > MOST_WAITING * seconds:
            images = steps * self.config.train.batch_size
            self.console.say(
                f"Waiting for data took {100 * waited / seconds:.0f}% of the epoch: "
                f"{input_verdict(images / seconds, cores(), images / (seconds - waited))}."
            )

    # Between steps, nothing being in flight

    def _between_steps(self, record: dict[str, Any]) -> None:
        """Evaluates and saves if it is time, and writes the step's record."""
        if self._evaluation_due():
            self._say_if_input_bound()
            began = time.perf_counter()
            results = self._evaluate_or_save()
            self.progress.evaluation_seconds += time.perf_counter() - began
            if results is not None:
                self.progress.take_in(results)
                for network, result in results.items():
                    kept = {name: result[name] for name in result if name not in ("count", "digest", "bad")}
                    record |= {f"{network}.{name}": value for name, value in kept.items()}
                self._say_evaluation(record, results["val"], results.get("val_ema"))
                self._keep_predictions()
        self._log(record)
        if (self._save_due() or self._finished()) and not self._agreed.stopping:
            began = time.perf_counter()
            self._save()
            self.progress.saving_seconds += time.perf_counter() - began
        self._mark, self._waited = time.perf_counter(), 0.0

    def _evaluation_due(self) -> bool:
        step = self.progress.step
        at_boundary = step > 0 and (step % self.task.steps_per_epoch == 0 or step >= self.task.stop_step)
        return at_boundary and self.progress.evaluated_step != step

    def _say_evaluation(self, record: dict[str, Any], result: dict[str, Any], ema: dict[str, Any] | None) -> None:
        self.console.say(
            f"Epoch {record['epoch']:.4g}, step {record['step']}: top-1 {result['top1']:.2f}%, "
            f"top-5 {result['top5']:.2f}%, loss {result['loss']:.4f} over {result['count']} images; "
            f"best top-1 {self.progress.best_top1:.2f}%."
            + (f" Averaged weights: top-1 {ema['top1']:.2f}%, loss {ema['loss']:.4f}." if ema else "")
            + (f" Skipped {result['bad']} that cannot be used." if result["bad"] else "")
        )

    def _evaluate_or_save(self) -> dict[str, dict[str, Any]] | None:
        """An evaluation, `None` if told to stop; if evaluation images cannot be used, the epoch is not lost."""
        try:
            return self._evaluator.evaluate(self._state, self._note_bad)
        except DataError:
            if jax.process_count() == 1:  # others would not save with this one
                self._save()
                self._checkpoints.wait()
            raise

    def _note_bad(self, record: str, reason: str) -> None:
        if self._bad is not None:
            self._bad.note(self.progress.step, "val", record, reason)

    def _keep_predictions(self) -> None:
        """Writes what the images of the newest evaluation were taken for; nothing but the report needs it."""
        if hosts.is_first():
            try:
                predictions.save(self.workdir / "predictions.npz", self._evaluator.predictions)
            except RunError as error:
                self.console.say(f"{error}; the report will do without.")

    def _finished(self) -> bool:
        return self.progress.finished(self.task.stop_step, self.config.train.early_stop_epochs)

    def _save_due(self) -> bool:
        due, step = self.config.checkpoint, self.progress.step
        every = round(due.every_epochs * self.task.steps_per_epoch)
        return (
            (every > 0 and step % every == 0)
            or (due.every_steps > 0 and step % due.every_steps == 0)
            or self._agreed.saving(due.every_minutes > 0 and time.monotonic() - self._saved_at >= 60 * due.every_minutes)
        )

    def _save(self) -> None:
        progress = self.progress
        self._agreed.saved()
        progress.bad_records += self._bad.flush()["train"]
        if self._saved == (progress.step, progress.evaluated_step):
            return
        self._saved = (progress.step, progress.evaluated_step)
        progress.wall_seconds = time.perf_counter() - self._began
        self._saved_at = time.monotonic()
        metadata = {
            "progress": dataclasses.asdict(progress),
            "config": to_dict(self.config),
            "classes": list(self.task.train_source.classes),
            "steps_per_epoch": self.task.steps_per_epoch,
            "version": __version__,
        }
        top1 = progress.evaluation["top1"] if progress.evaluated_step == progress.step else None
        self._checkpoints.save(progress.step, self._state, metadata, top1)

    def _interrupt(self) -> None:
        self._save()
        self._checkpoints.wait()
        raise Interrupted(
            f"{self._agreed.reason}: saved at step {self.progress.step} of {self.task.stop_step}, "
            f"{self._agreed.seconds:.1f} s after that; run the same command to resume"
        )
