"""Who started the processes of a run, and how many: read from flags and the environment, without JAX.

The one place that knows it. JAX finds out the rest (`jaxcls.hosts`): SLURM's and Open MPI's coordinator, and all about a
TPU pod or a Kubernetes job, whose size stands in no environment variable.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcls.errors import ConfigError

JOIN_TIMEOUT = 120  # seconds to wait for the other processes at the start
COORDINATOR_VARIABLE = "JAX_COORDINATOR_ADDRESS"  # JAX's own; for launchers whose coordinator JAX cannot tell


class Launch(NamedTuple):
    """How this process was started.

    Attributes:
      by: who started it, for messages.
      processes: of the run; None where only JAX can tell.
      process: which of them this is, from 0.
      coordinator: HOST:PORT of process 0; None where JAX finds it.
      timeout: seconds to wait for the others at the start.
    """

    by: str
    processes: int | None
    process: int | None
    coordinator: str | None
    timeout: int


# (who, its number of processes, its number of this process) of launchers that say so in the environment.
LAUNCHERS = (
    ("SLURM", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)


def launched(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: int = JOIN_TIMEOUT,
    *,
    environment: Mapping[str, str],
) -> Launch:
    """How this process was started: by the flags if they are given, else by the environment; else it is alone.

    Raises:
      ConfigError: a launcher's variable is not a number, or they contradict each other.
    """
    if coordinator is not None:
        return Launch("the flags", processes, process, coordinator, timeout)
    for by, count_name, index_name in LAUNCHERS:
        count = _number(environment, count_name, 1)
        if count > 1:
            index = _number(environment, index_name, 0)
            if index >= count:
                raise ConfigError(f"{index_name}={index} must be less than {count_name}={count}; start the run again")
            return Launch(by, count, index, environment.get(COORDINATOR_VARIABLE), timeout)
    if _on_tpu(environment):
        return Launch("the TPU", None, None, None, timeout)
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment and _installed("kubernetes"):
        return Launch("Kubernetes", None, None, None, timeout)
    return Launch("nobody", 1, 0, None, timeout)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(f"the environment's {name}={text} must be a whole number; it comes from the launcher")
    return int(text)


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """A machine with TPUs that are to be used; whether it is one of several, its metadata knows."""
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")] if os.path.isdir("/dev") else []
    return environment.get("JAX_PLATFORMS", "tpu").startswith("tpu") and bool(chips) and _installed("libtpu")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
