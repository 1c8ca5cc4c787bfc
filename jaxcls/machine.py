"""What machine this is, as a figure's reader would know it."""

import os
import platform
from pathlib import Path


def cores() -> int:
    """Of the processor that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(kind: str, count: int) -> str:
    """Such as `2 cores of an AMD EPYC 7763`, or `8 x NVIDIA H200`.

    Args:
      kind: JAX's name for a device, which is `cpu` for any processor.
      count: devices; those of a processor are parts of one.
    """
    if kind != "cpu":
        return kind if count == 1 else f"{count} x {kind}"
    name = _processor()
    return f"{cores()} core{'s' * (cores() > 1)} of {'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "CPU"
