"""Flags that say which of several processes this one is, where no launcher does."""

import argparse
from typing import Any

from jaxcls.errors import ConfigError
from jaxcls.flags.parser import Parser, natural, positive
from jaxcls.launch import JOIN_TIMEOUT


def add_hosts(parser: Parser) -> None:
    """Adds the flags to a parser."""
    several = parser.add_argument_group("several processes, where SLURM, Open MPI or a TPU pod does not say so itself")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs, and a free port there")
    several.add_argument("--processes", type=positive, metavar="N", help="number of processes, over all hosts")
    several.add_argument("--process", type=natural, metavar="I", help="number of this one, from 0")
    several.add_argument(
        "--join-timeout",
        type=positive,
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"to wait for the others at the start (default: {JOIN_TIMEOUT})",
    )


def hosts_of(known: argparse.Namespace) -> dict[str, Any]:
    """The flags as arguments of `jaxcls.launch.launched`. Raises ConfigError unless all are given or none, and they fit."""
    given = {"--coordinator": known.coordinator, "--processes": known.processes, "--process": known.process}
    missing = [flag for flag, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(f"{', '.join(given)} belong together; {' and '.join(missing)} must be given, too")
    if not missing:
        host, colon, port = known.coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"--coordinator={known.coordinator} must be HOST:PORT, such as 10.0.0.1:8476")
        if known.process >= known.processes:
            raise ConfigError(f"--process={known.process} must be less than --processes={known.processes}; it counts from 0")
    return {
        "coordinator": known.coordinator,
        "processes": known.processes,
        "process": known.process,
        "timeout": known.join_timeout,
    }
