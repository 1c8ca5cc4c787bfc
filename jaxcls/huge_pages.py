"""Large pages of memory for programs on a CPU; imports nothing heavy."""

import os
import platform
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"  # glibc's own; set it, to anything, to keep jaxcls from it
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> None:
    """Starts this program again, in the same process, with glibc asking the kernel for large pages, if that does anything.

    XLA takes a step's working memory from malloc anew each time. In pages of 4 KiB, giving out and clearing them costs a
    quarter of the time of a training step on two cores (docs/performance.md). Where the kernel gives larger ones only to
    who asks (`madvise`, the default of most distributions), glibc asks if a variable says so when the program starts.
    """
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc":
        return
    try:
        asked = "[madvise]" in _KERNEL.read_text()
    except OSError:
        return
    if asked:
        os.environ[VARIABLE] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
