"""The console script `jaxcls`: one subcommand a module, each with `main(argv) -> exit code`, argv[0] being a name."""

import importlib
import sys

from jaxcls.errors import Interrupted
from jaxcls.huge_pages import use_huge_pages
from jaxcls.main import exit_on_signals

COMMANDS = {
    "train": "jaxcls.main",
    "classify": "jaxcls.classify",
    "convert": "jaxcls.convert",
    "compare": "jaxcls.compare",
    "report": "jaxcls.reporting",
    "summary": "jaxcls.summary",
    "benchmark": "jaxcls.benchmark",
    "replay": "jaxcls.replay",
    "verify-resume": "jaxcls.verify_resume",
    "doctor": "jaxcls.doctor",
}


def script() -> int:
    """`main`, as a program of its own: it may start that program again."""
    if sys.argv[1:2] == ["train"]:
        exit_on_signals()
    use_huge_pages()
    return main()


def main() -> int:
    """Runs the subcommand that the command line names."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in COMMANDS:
        try:
            return importlib.import_module(COMMANDS[command]).main([f"jaxcls {command}", *sys.argv[2:]])
        except KeyboardInterrupt:  # while it was being imported; later, the command sees to it
            print("jaxcls: interrupted", file=sys.stderr)
            return Interrupted.exit_code
    print(f"usage: jaxcls {{{','.join(COMMANDS)}}} ...; each has its own --help", file=sys.stderr)
    return 0 if command in ("--help", "-h") else 2


if __name__ == "__main__":
    sys.exit(script())
