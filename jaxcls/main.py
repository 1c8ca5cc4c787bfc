"""`python -m jaxcls.main`: train or evaluate a network; `jaxcls.flags` says with which flags."""

import os
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the slow imports: what a user waits for

from jaxcls import command, flags  # noqa: E402
from jaxcls.config import digest  # noqa: E402
from jaxcls.resolve import resolve  # noqa: E402

# Where launchers say how many processes they started: SLURM's srun, Open MPI.
PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (see `jaxcls.errors`)."""
    # Later interrupts are for the loop, which saves.
    return command.run(
        lambda: run(flags.parse(sys.argv if argv is None else argv)), interrupted="interrupted before the run began"
    )


def run(args: flags.Args) -> None:
    """Parses, builds, and calls the loop."""
    config, notes = resolve(
        args.config,
        args.overridden,
        imagenet_dir=os.environ.get("IMAGENET_DIR"),
        process_count=max(int(os.environ.get(name, 1)) for name in PROCESS_COUNTS),
    )
    for note in notes:
        print(note, flush=True)
    workdir = Path(args.workdir or f"runs/{args.config_name}-{digest(config)}")

    from jaxcls.train.run import evaluate, train  # with JAX, grain and orbax: not needed to refuse a wrong flag

    (train if args.mode == "train" else evaluate)(config, workdir, started=STARTED)


if __name__ == "__main__":
    sys.exit(main())
