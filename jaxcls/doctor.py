"""`jaxcls doctor`: is all there that a run needs? One line a check: OK, WARN or FAIL, and what would be right."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxcls import command, flags, versions
from jaxcls.errors import JaxclsError, RunError, Warn
from jaxcls.launch import Launch, launched
from jaxcls.resolve import resolve

MEASURED_SECONDS = 2.0  # of the input pipeline


class Line(NamedTuple):
    """What a check found."""

    check: str
    status: str  # OK, WARN, FAIL
    message: str
    exit_code: int = 0  # of the failure's kind


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: doctor(flags.parse_doctor(argv)))


def doctor(args) -> None:
    """Looks at everything and prints a line for each; see `flags.parse_doctor`.

    Raises:
      JaxclsError: of the kind of the first check that failed.
    """
    command.check_writable(args.json, "--json")
    launch = launched(environment=os.environ)
    config, notes = resolve(
        args.config, args.overrides, imagenet_dir=os.environ.get("IMAGENET_DIR"), process_count=launch.processes or 1
    )
    for note in notes:
        print(note, flush=True)
    lines = _look(args, config, launch)
    if args.json:
        from jaxcls.report.files import write_json

        write_json(Path(args.json), [line._asdict() for line in lines])
    failed = [line for line in lines if line.status == "FAIL"]
    if failed:
        kinds = {kind.exit_code: kind for kind in JaxclsError.__subclasses__()}
        first = failed[0]
        raise kinds[first.exit_code](
            f"{len(failed)} of {len(lines)} checks failed; the first, {first.check}: {first.message}"
        )
    print(
        f"All {len(lines)} checks are fine." if all(line.status == "OK" for line in lines) else "Nothing stands in the way."
    )


def _look(args, config, launch: Launch) -> list[Line]:
    """Runs the checks; those whose needs could not be met are left out."""
    lines: list[Line] = []

    def check(name: str, function: Callable, *arguments) -> Any:
        line, result = _try(name, function, *arguments)
        lines.append(line)
        print(f"{line.status:5}{line.check:13}{line.message}", flush=True)
        return result

    if not (check("Python", versions.python_version) and check("packages", versions.package_versions)):
        return lines  # importing them could fail in any way

    from jaxcls import hosts

    with hosts.joined(launch, Path(args.workdir or "runs") / "logs") as processes:
        _look_with_jax(args, config, launch.processes or processes, check)
    return lines


def _look_with_jax(args, config, processes: int, check: Callable) -> None:
    """The checks that need the packages."""
    import jax
    from jax.experimental.multihost_utils import sync_global_devices

    from jaxcls import checkup, runtime
    from jaxcls.data.sources import make_source
    from jaxcls.train.setup import build
    from jaxcls.train.steps import abstract_state, make_mesh

    runtime.configure(config.precision.policy)
    check("devices", checkup.devices, args.devices, processes)
    check("cache", checkup.compilation_cache)
    check("weights", checkup.initial_weights, config.checkpoint.init_from)
    check("decoder", checkup.decoder)
    made: dict[str, Any] = {}

    def open_data() -> str:
        made["sources"] = {split: make_source(config.data, split, config.model.num_classes) for split in ("train", "val")}
        return checkup.data(made["sources"], config)

    def make_task() -> str:
        made["task"] = task = build(config, make_mesh())
        return checkup.split_of_batch(task)

    data_is_fine = check("data", open_data)
    if data_is_fine:
        check("input", checkup.input_rate, made["sources"]["train"], config, MEASURED_SECONDS)
        check("batch", make_task)
    task, workdir = made.get("task"), Path(args.workdir or "runs")
    check("workdir", checkup.own_workdir, workdir, task.config if task else config)
    if jax.process_count() > 1:
        check("sharing", checkup.shared_workdir, workdir, jax.process_index(), jax.process_count(), sync_global_devices)
    if task:
        state = abstract_state(
            task.model, task.optimizer, task.mesh, loss_scale=task.loss_scale, ema=config.train.ema_decay > 0
        )
        check("disk", checkup.disk, workdir, checkup.bytes_of(jax.tree.leaves(state)), config.checkpoint.keep)
        check("memory", checkup.step_memory, task)


def _try(name: str, function: Callable, *arguments) -> tuple[Line, bool]:
    """The check's line, and whether it is no failure."""
    try:
        return Line(name, "OK", function(*arguments)), True
    except Warn as found:
        return Line(name, "WARN", str(found)), True
    except JaxclsError as error:
        return Line(name, "FAIL", str(error), error.exit_code), False
    except Exception as error:  # noqa: BLE001 (a broken installation may surface as anything; the other checks go on)
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return Line(name, "FAIL", reason, RunError.exit_code), False


if __name__ == "__main__":
    sys.exit(main(sys.argv))
