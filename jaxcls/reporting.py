"""`jaxcls report`: a page about runs, while they go or afterwards."""

import contextlib
import sys
import time
from pathlib import Path

from jaxcls import command, flags


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: report(flags.parse_report(argv)))


def report(args) -> None:
    """Writes the page; see `flags.parse_report`.

    Raises:
      ConfigError: the place of the page is no good.
      DataError: a directory is not a run's.
      RunError: the page cannot be written.
    """
    from jaxcls.report.page import write_report
    from jaxcls.report.run_log import read_run

    paths = [Path(run) for run in args.runs]
    out = Path(args.out) if args.out else (paths[0] if len(paths) == 1 else Path()) / "report.html"
    seen, logs = _stamps(paths), [read_run(path) for path in paths]
    command.check_writable(str(out), "--out" if args.out else None)
    while True:
        write_report(out, logs, refresh=args.every if args.watch else None)
        print(f"Wrote {out}.", flush=True)
        if not args.watch:
            return
        while (now := _stamps(paths)) == seen:
            time.sleep(args.every)
        seen, logs = now, [read_run(path) for path in paths]


def _stamps(paths: list[Path]) -> list[tuple[int, int]]:
    """Changes when one of the runs has logged more, or has ended."""
    found = []
    for file in (path / name for path in paths for name in ("metrics.jsonl", "summary.json")):
        with contextlib.suppress(OSError):  # which reading it tells
            status = file.stat()
            found.append((status.st_size, status.st_mtime_ns))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv))
