"""`jaxcls verify-resume`: the proof that a run which is killed and resumed is the run that nothing happened to."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from jaxcls import command, flags
from jaxcls.errors import ConfigError, RunError
from jaxcls.report.console import Console
from jaxcls.resolve import resolve
from jaxcls.trial import Trial, devices_environment, devices_found

# What the processes get where no file is named.
DEFAULT_FILE = "from jaxcls.config import default_config as get_config\n"

OTHER_DEVICES = {
    "local": "BN normalises each device's own share of a batch, which is another share on another number of devices",
    "group": "BN normalises over groups of devices, which share a batch otherwise on another number of devices",
    "global": "sums over another number of devices are rounded otherwise",
}


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: verify_resume(flags.parse_verify_resume(argv)))


def verify_resume(args) -> None:
    """Trains `args.steps` steps twice, kills and resumes one of the two, compares them and prints the proof.

    Raises:
      ConfigError, DataError, CheckpointError: the runs cannot begin.
      RunError: not proven; the runs are kept.
    """
    # Refuses a mistake before anything is started.
    if "train.max_steps" in args.overrides:
        raise ConfigError("train.max_steps is what --steps sets; leave it out")
    config, notes = resolve(args.config, args.overrides, imagenet_dir=os.environ.get("IMAGENET_DIR"))
    place = Path(tempfile.mkdtemp(prefix="jaxcls-verify-resume-"))
    try:
        for note in notes:
            print(note, flush=True)
        proven = _prove(args, config, place)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    if not proven:
        raise RunError(f"not proven: the runs differ where the table says NOT; both are kept, with their output, in {place}")
    shutil.rmtree(place)
    print("Proven.")


def _prove(args, config, place: Path) -> bool:
    from jaxcls import runtime
    from jaxcls.proof import compare_runs, table  # with JAX and orbax
    from jaxcls.train.setup import check_batch

    runtime.configure("fp64" if config.precision.policy == "fp64" else "fp32")
    platform, found = devices_found()
    before, after = args.devices or (None, None)
    for count in {before or found, after or found}:
        check_batch(config, count)
    first, second = (devices_environment(count, platform, found) for count in (before, after))
    devices = f"{before or found} x {platform}" + (f", then {after}" if after != before else "")
    print(f"{config.model.name}, {args.steps} steps of {config.train.batch_size} images on {devices}.", flush=True)
    console = Console()
    whole, killed = (Trial(_flags(args, place), place / name) for name in ("whole", "killed"))
    try:
        _run(whole, "the whole run", args.steps, console, first)
        _run(killed, "the run to be killed", args.steps, console, first, kill_after=args.steps // 2)
        reached, checkpoint = killed.steps_done(), killed.checkpoints()[-1]
        console.say(f"Killed by SIGKILL after step {reached}; its newest checkpoint is that of step {checkpoint}.")
        _run(killed, "the run that is resumed", args.steps, console, second)
    finally:
        whole.kill()
        killed.kill()
    resumed = killed.resumed_at()
    if not resumed:
        raise RunError("the killed run did not resume; see its output")
    checks = compare_runs(whole.workdir, killed.workdir, same_devices=before == after, resumed_at=resumed[-1])
    console.say(f"Resumed at step {resumed[-1]}. Against the run that nothing happened to:\n{table(checks)}")
    if before != after:
        console.say(
            f"On other devices weights do not stay the same to the bit: {OTHER_DEVICES[config.model.bn_sync]}. "
            "What must be equal is the state that was restored, all that came before it, and the records of every step."
        )
    return all(check.ok for check in checks)


def _flags(args, place: Path) -> list[str]:
    """Of both runs: they save a few times, and note every step."""
    file = args.config_file
    if file is None:
        file = place / "default.py"
        file.write_text(DEFAULT_FILE)
    ours = {"train.max_steps": args.steps, "log.every_steps": 1}
    if not any(key.startswith("checkpoint.every_") for key in args.overrides):
        ours["checkpoint.every_steps"] = max(1, args.steps // 4)
    return ["--config", str(file), *(f"--config.{key}={value}" for key, value in (args.overrides | ours).items())]


def _run(trial: Trial, what: str, steps: int, console: Console, environment: dict, kill_after: int | None = None) -> None:
    """Starts the run and waits for its end, or kills it when it has done so many steps and saved."""

    def show(step: int) -> None:
        console.update(step, {"newest checkpoint": str(max(trial.checkpoints(), default="-"))})

    def due() -> bool:
        return trial.steps_done() > kill_after and bool(trial.checkpoints())

    console.begin(what, trial.steps_done(), steps, "step")
    try:
        trial.start(environment)
        if kill_after is None:
            trial.finish(show)
        elif trial.watch(due, show):
            trial.kill()
        else:
            trial.finish()
            raise RunError("the run ended before it could be killed; give it more --steps, or let it save more often")
    finally:
        console.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
