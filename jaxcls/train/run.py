"""One run from start to end: set-up, training or evaluation, and the summary."""

import contextlib
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax

from jaxcls import hosts, runtime
from jaxcls.config import Config
from jaxcls.data.decode import DecodeError
from jaxcls.errors import CheckpointError, ConfigError, RunError
from jaxcls.loading import load_arrays
from jaxcls.report.console import Console
from jaxcls.report.files import write_json
from jaxcls.report.page import write_report
from jaxcls.report.run_log import read_run
from jaxcls.train import gallery
from jaxcls.train.loop import Trainer
from jaxcls.train.progress import Progress
from jaxcls.train.setup import Task, build
from jaxcls.train.signals import StopSignal
from jaxcls.train.steps import make_mesh
from jaxcls.train.transfer import transfer
from jaxcls.versions import installed
from jaxcls.workdir import check_data, claim


def train(config: Config, workdir: Path, *, started: float) -> None:
    """Trains in `workdir`, or goes on there, and leaves `summary.json`.

    Args:
      config: resolved.
      workdir: the run directory.
      started: `time.perf_counter()` when the command began.
    """
    console = Console(silent=not hosts.is_first())
    with StopSignal(console.say) as stop:
        _agree(config, workdir, "train")
        task = _prepare(config, console)
        with _claimed(workdir, task.config):
            if done := _finished_before(workdir, task):
                console.say(f"This run is finished: {_result(done)}. Nothing to do in {workdir}.")
                return
            hosts.together(lambda: check_data(workdir, task.train_source) if hosts.is_first() else None)
            trainer = Trainer(task, workdir, console, stop)
            try:
                trainer.train(functools.partial(_initialize, config=task.config, console=console))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                raise RunError(
                    f"out of memory with train.batch_size={config.train.batch_size}; a smaller one needs less"
                ) from error
            summary = _summarize(trainer, started)
            if hosts.is_first():
                write_json(workdir / "summary.json", summary)
                _write_report(workdir, trainer)
    see = f"; see {workdir}/report.html" if (workdir / "report.html").is_file() else ""
    console.say(f"Done: {_result(summary)}{see}.")


def _write_report(workdir: Path, trainer: Trainer) -> None:
    """The run is over and its results are safe; a picture or page that cannot be written is no failure of it."""
    log = read_run(workdir)
    try:
        gallery.draw(log, trainer.task)
    except (RunError, OSError, DecodeError) as error:
        trainer.console.say(f"Pictures are missing in {workdir}/plots: {error}.")
    try:
        write_report(workdir / "report.html", [log])
    except RunError as error:
        trainer.console.say(f"{error}; once it can be, `jaxcls report {workdir}` makes it.")


def evaluate(config: Config, workdir: Path, *, started: float) -> None:
    """Evaluates the newest checkpoint in `workdir`, or `checkpoint.init_from`; leaves `evaluation.json`."""
    console = Console(silent=not hosts.is_first())
    _agree(config, workdir, "evaluate")
    hosts.together(lambda: _check_there_is_something(config, workdir))
    with StopSignal(console.say) as stop:
        task = _prepare(config, console)
        with _claimed(workdir, task.config):
            trainer = Trainer(task, workdir, console, stop)
            result = trainer.evaluate(functools.partial(_initialize, config=task.config, console=console))
            if hosts.is_first():
                write_json(workdir / "evaluation.json", {"step": trainer.progress.step} | result)
    console.say(
        f"Step {trainer.progress.step}: top-1 {result['top1']:.2f}%, top-5 {result['top5']:.2f}%, "
        f"loss {result['loss']:.4f} over {result['count']} images; see {workdir}/evaluation.json."
    )


def _check_there_is_something(config: Config, workdir: Path) -> None:
    if config.checkpoint.init_from is None and not any((workdir / "checkpoints").glob("[0-9]*")):
        raise CheckpointError(f"{workdir} holds no checkpoint to evaluate; train first")


def _agree(config: Config, workdir: Path, mode: str) -> None:
    """Raises ConfigError if the processes do not mean the same run."""
    hosts.agree({"--mode": mode, **hosts.identity(config), "--workdir": str(workdir)})


def _prepare(config: Config, console: Console) -> Task:
    """What the run needs."""
    task = hosts.together(lambda: _build(config))
    sources = {"training": task.train_source, "evaluation": task.val_source}
    hosts.agree({f"the number of {split} images": len(source) for split, source in sources.items()})
    model, data = task.config.model, task.config.data
    console.say(
        f"{model.name}, {model.num_classes} classes, {data.image_size} px, {config.precision.policy}, on {_device(task)}; "
        f"{len(task.train_source):,} training and {len(task.val_source):,} evaluation images from {data.source}; "
        f"{task.stop_step:,} steps of {config.train.batch_size} images, {task.steps_per_epoch:,} an epoch."
    )
    return task


def _build(config: Config) -> Task:
    origin = config.checkpoint.init_from
    if origin is not None and not Path(origin).exists():  # now, not when the network has been compiled
        raise CheckpointError(
            f"checkpoint.init_from={origin} is not there; a run, jaxcls weights or a PyTorch file is expected"
        )
    runtime.configure(config.precision.policy)
    return build(config, make_mesh())


def _claimed(workdir: Path, config: Config) -> contextlib.AbstractContextManager:
    """The first process claims the run directory; the others must see it there."""
    claimed = hosts.together(lambda: claim(workdir, config) if hosts.is_first() else contextlib.nullcontext())
    hosts.together(lambda: _check_shared(workdir))
    return claimed


def _check_shared(workdir: Path) -> None:
    if not (workdir / "config.json").exists():
        raise ConfigError(f"workdir {workdir} is not shared: what process 0 wrote there is not seen here; take a shared one")


def _initialize(variables: dict, *, config: Config, console: Console) -> dict:
    """The variables that training starts from: those of `checkpoint.init_from`, if it is set."""
    origin = config.checkpoint.init_from
    if origin is None:
        return variables
    loaded, meta = load_arrays(origin, config.model.name)
    if warnings := meta["provenance"]["warnings"]:
        raise CheckpointError(f"checkpoint.init_from={origin} cannot be trained on: {' '.join(warnings)}")
    variables, lines = transfer(variables, loaded, f"{origin} ({meta['provenance']['found']})")
    for line in lines:
        console.say(line)
    return variables


def _finished_before(workdir: Path, task: Task) -> dict | None:
    """The summary of a run that has nothing left to do."""
    path = workdir / "summary.json"
    if not path.exists():
        return None
    try:
        summary = json.loads(path.read_text())
        _result(summary)
        return summary if summary["steps"] >= task.stop_step or summary["stopped_early"] else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # the run makes a new one


def _summarize(trainer: Trainer, started: float) -> dict[str, Any]:
    progress, task = trainer.progress, trainer.task
    evaluation = progress.evaluation
    seconds = progress.timed_seconds or None  # none, if every start was shorter than its warm-up
    return {
        "model": task.config.model.name,
        "best_top1": progress.best_top1,
        "best_step": progress.best_step,
        "final_top1": evaluation["top1"],
        "top5": evaluation["top5"],
        "loss": evaluation["loss"],
        "ema": progress.ema_evaluation and {name: progress.ema_evaluation[name] for name in ("top1", "top5", "loss")},
        "eval_count": evaluation["count"],
        "eval_digest": evaluation["digest"],
        "images_per_second": seconds and progress.timed_steps * task.config.train.batch_size / seconds,
        "data_wait_fraction": seconds and progress.waited_seconds / seconds,
        "steps": progress.step,
        "epochs": progress.step / task.steps_per_epoch,
        "stopped_early": progress.step < task.stop_step,
        "wall_seconds": progress.wall_seconds,  # of training, over all starts
        "seconds": _where_the_time_went(progress),
        "first_step_seconds": trainer.first_step_at and trainer.first_step_at - started,  # from the last start
        "nonfinite_steps": progress.nonfinite_steps,
        "lost_steps": progress.lost_steps,
        "bad_records": {"train": progress.bad_records, "val": evaluation["bad"]},
        "device": _device(task),
        "versions": installed(),
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _where_the_time_went(progress: Progress) -> dict[str, float]:
    """Parts of `wall_seconds`; and `lost`, of steps that a killed start had taken and that were done again."""
    parts = {name: getattr(progress, f"{name}_seconds") for name in ("startup", "step", "data", "evaluation", "saving")}
    # The last save is not in `wall_seconds`, which it holds.
    return parts | {"other": max(progress.wall_seconds - sum(parts.values()), 0.0), "lost": progress.lost_seconds}


def _result(summary: dict) -> str:
    return (
        f"top-1 {summary['final_top1']:.2f}% (best {summary['best_top1']:.2f}%), top-5 {summary['top5']:.2f}% over "
        f"{summary['eval_count']} images after {summary['steps']} steps in {summary['wall_seconds']:.0f} s"
        + (f", {summary['images_per_second']:.1f} images/s" if summary["images_per_second"] else "")
    )


def _device(task: Task) -> str:
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{task.mesh.size} x {task.mesh.devices.flat[0].device_kind}{processes}"
