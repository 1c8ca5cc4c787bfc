"""`python -m jaxcls.main`: train or evaluate a network; `jaxcls.flags` says with which flags."""

import functools
import os
import signal
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the slow imports: what a user waits for

from jaxcls.errors import Interrupted, RunError  # noqa: E402
from jaxcls.huge_pages import use_huge_pages  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (see `jaxcls.errors`)."""
    # Later interrupts are for the loop, which saves.
    interrupted = "interrupted before the run began"
    try:
        from jaxcls import command, flags
    except KeyboardInterrupt:
        print(f"jaxcls: {interrupted}", file=sys.stderr)
        return Interrupted.exit_code
    return command.run(
        lambda: run(flags.parse(sys.argv if argv is None else argv)),
        interrupted=interrupted,
        unread="the reader of the output has gone; run the same command to resume from the last checkpoint",
        unread_code=RunError.exit_code,
    )


def run(args) -> None:
    """Settles the config, and calls the loop; `args` is a `flags.Args`."""
    from jaxcls.config import digest
    from jaxcls.launch import launched
    from jaxcls.resolve import resolve

    launch = launched(**args.hosts, environment=os.environ)
    settle = functools.partial(resolve, args.config, args.overridden, imagenet_dir=os.environ.get("IMAGENET_DIR"))
    config, notes = settle(process_count=launch.processes or 1)
    workdir = Path(args.workdir or f"runs/{args.config_name}-{digest(config)}")

    from jaxcls import hosts  # with JAX, grain and orbax: not needed to refuse a wrong flag
    from jaxcls.train.run import evaluate, train

    with hosts.joined(launch, workdir / "logs") as processes:
        config, notes = settle(process_count=processes)  # again, with what JAX found out
        for note in notes if hosts.is_first() else ():
            print(note, flush=True)
        (train if args.mode == "train" else evaluate)(config, workdir, started=STARTED)


def exit_on_signals() -> None:
    """Until the run takes over SIGTERM and SIGINT, and saves, either of them ends the process with 75, amid imports, too."""

    def leave(number, _frame):
        os.write(2, f"jaxcls: {signal.Signals(number).name} before the run began\n".encode())
        os._exit(Interrupted.exit_code)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


if __name__ == "__main__":
    exit_on_signals()
    use_huge_pages()
    sys.exit(main())
