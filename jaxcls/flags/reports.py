"""Flags of `jaxcls report`."""

import argparse
from collections.abc import Sequence

from jaxcls.flags.parser import Parser, positive


def parse_report(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls report`; errors as `parse`."""
    parser = Parser(
        "jaxcls report",
        description="One page about one run, or several side by side: an HTML file that needs nothing else.",
        epilog="examples:\n  jaxcls report runs/mine\n  jaxcls report runs/a runs/b -o comparison.html",
    )
    parser.add_argument("runs", nargs="+", metavar="DIR", help="a run's --workdir; it may still be going on")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="where to write it (default: DIR/report.html, for several runs ./report.html)"
    )
    parser.add_argument("--watch", action="store_true", help="write it again whenever a run has logged more, until Ctrl-C")
    parser.add_argument(
        "--every", type=positive, default=10, metavar="S", help="with --watch, seconds between looks (default: 10)"
    )
    return parser.parse_args(argv[1:])
