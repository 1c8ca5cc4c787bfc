"""How much memory a compiled program needs, and how much there is."""

import contextlib
import ctypes
import os
from pathlib import Path

import jax


def compile_tidily(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles, and gives back to the system what the compiler leaves in malloc's hands: half a gigabyte for a network of
    101 layers, which would lie beside the working memory of each step."""
    compiled = lowered.compile()
    with contextlib.suppress(AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    return compiled


def program_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that a program needs on each device: `fixed` for its arguments, and `working` beside them."""
    sizes = compiled.memory_analysis()
    # A donated argument's memory is that of the output which takes its place.
    working = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return {"fixed": sizes.argument_size_in_bytes, "working": working}


def machine_memory() -> int:
    """Bytes that this process may have: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total


def free_bytes(device: jax.Device) -> int:
    """Bytes of a device's memory that are not taken; of the machine's, where the device has none of its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return machine_memory()
    available = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return min(available, machine_memory())
