#!/usr/bin/env python3
"""Kills one run again and again, by SIGKILL at random moments, and resumes it by the same command until it ends.

    scripts/chaos.py                                                    # 50 kills of ResNet-50 on the digits
    scripts/chaos.py --kills 10 --config configs/resnet50.py --config.data.path=DIR --config.train.max_steps=500

In the end the run must be the one that nothing happened to, which is trained first: the same weights, optimizer state and
losses to the bit, no step and no record lost or repeated. Exit code 1 if it is not. Two in five kills are held back until a
checkpoint is being written; one in five comes while the run is starting. --config.KEY=VALUE go to the run.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from jaxcls import runtime
from jaxcls.errors import JaxclsError
from jaxcls.proof import compare_runs, table
from jaxcls.trial import Trial, devices_environment, devices_found

# Enough for each start to get a little further than the one before.
STEPS_PER_KILL = 6
DEFAULTS = {"train.batch_size": 8, "checkpoint.every_steps": 3, "checkpoint.keep": 2, "log.every_steps": 1}
LONGEST_START = 15.0  # seconds; one kill in five comes within them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument(
        "--config", default=str(Path(__file__).parent.parent / "configs" / "digits.py"), metavar="FILE[:ARG]"
    )
    args, rest = parser.parse_known_args()
    runtime.configure("fp32")
    place = Path(tempfile.mkdtemp(prefix="jaxcls-chaos-"))
    settings = DEFAULTS | {"train.max_steps": STEPS_PER_KILL * args.kills}
    flags = ["--config", args.config, *(f"--config.{key}={value}" for key, value in settings.items()), *rest]
    whole, killed = (Trial(flags, place / name) for name in ("whole", "killed"))
    try:
        fine = torment(args.kills, random.Random(args.seed), whole, killed)
    except JaxclsError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        whole.kill()
        killed.kill()
    if not fine:
        print(f"Both runs are kept in {place}.")
        return 1
    shutil.rmtree(place)
    return 0


def torment(kills: int, rng: random.Random, whole: Trial, killed: Trial) -> bool:
    """Does it all; returns whether the killed run is the whole one."""
    environment = devices_environment(None, *devices_found())
    began = time.monotonic()
    whole.start(environment)
    whole.finish()
    last = whole.steps_done()
    print(f"A run that nothing happens to: {last} steps in {time.monotonic() - began:.0f} s.", flush=True)
    began, in_saves, in_starts, again, resumptions_behind = time.monotonic(), 0, 0, 0, 0
    moments = sorted(rng.uniform(0, last - STEPS_PER_KILL) for _ in range(kills))
    done = 0
    for done, moment in enumerate(moments, 1):
        newest, starts = max(killed.checkpoints(), default=0), len(killed.resumed_at())
        killed.start(environment)
        if not killed.watch(due(killed, moment, rng)):
            killed.finish()
            print(f"The run ended before kill {done}; a larger --config.train.max_steps makes room for all.")
            return False
        killed.kill()
        in_save, reached = killed.saving(), killed.steps_done()
        resumed = killed.resumed_at()[starts:]
        resumptions_behind += bool(resumed and resumed[-1] != newest)
        in_saves += in_save
        in_starts += not resumed and newest > 0
        behind = max(0, reached - max(killed.checkpoints(), default=0))
        again += behind
        print(
            f"kill {done:3}: at step {reached:4} of {last}, "
            f"{'inside a save' if in_save else 'while starting' if not resumed and newest else 'between saves'}; "
            f"{behind} steps to do again; {time.monotonic() - began:.0f} s",
            flush=True,
        )
    killed.start(environment)
    killed.finish()
    checks = compare_runs(whole.workdir, killed.workdir)
    print(
        f"\n{done} kills in {time.monotonic() - began:.0f} s, {in_saves} inside a save, {in_starts} while starting; "
        f"{len(killed.resumed_at())} resumptions, {resumptions_behind} of them behind the newest complete checkpoint; "
        f"{again} steps done again, by the same command each time.\n"
        f"Against the run that nothing happened to:\n{table(checks)}"
    )
    return all(check.ok for check in checks) and not resumptions_behind


def due(trial: Trial, moment: float, rng: random.Random):
    """A function that says when to kill: in a save, at a moment of a step, or while the run starts."""
    kind = rng.choices(("save", "step", "start"), (2, 2, 1))[0]
    began, delay, pause = time.monotonic(), rng.uniform(0, LONGEST_START), rng.uniform(0, 0.3)
    starts = len(trial.resumed_at()) + bool(trial.checkpoints())
    reached: list[float] = []

    def now() -> bool:
        if kind == "start":
            return time.monotonic() - began > delay
        # Until it has resumed, what is there of steps and of a save is what the kill before left behind.
        if len(trial.resumed_at()) < starts or trial.steps_done() <= moment:
            return False
        if kind == "save":
            return trial.saving()
        reached.append(time.monotonic())
        return reached[-1] - reached[0] > pause

    return now


if __name__ == "__main__":
    sys.exit(main())
