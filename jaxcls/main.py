"""`python -m jaxcls.main`: train or evaluate a network; `jaxcls.flags` says with which flags."""

import os
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the slow imports: what a user waits for

from jaxcls import flags  # noqa: E402
from jaxcls.config import digest  # noqa: E402
from jaxcls.errors import Interrupted, JaxclsError  # noqa: E402
from jaxcls.resolve import resolve  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code (see `jaxcls.errors`)."""
    try:
        run(flags.parse(sys.argv if argv is None else argv))
    except JaxclsError as error:
        print(f"jaxcls: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # later ones are for the loop, which saves
        print("jaxcls: interrupted before the run began", file=sys.stderr)
        return Interrupted.exit_code
    return 0


def run(args: flags.Args) -> None:
    """Parses, builds, and calls the loop."""
    config, notes = resolve(args.config, args.overridden, imagenet_dir=os.environ.get("IMAGENET_DIR"))
    for note in notes:
        print(note, flush=True)
    workdir = Path(args.workdir or f"runs/{args.config_name}-{digest(config)}")

    from jaxcls.train.run import evaluate, train  # with JAX, grain and orbax: not needed to refuse a wrong flag

    (train if args.mode == "train" else evaluate)(config, workdir, started=STARTED)


if __name__ == "__main__":
    sys.exit(main())
