"""Large pages of memory for programs on a CPU; imports nothing heavy."""

import contextlib
import itertools
import os
import platform
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"  # glibc's own; set it, to anything, to keep jaxcls from it
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages(*, ours: bool | None = None) -> None:
    """Starts this program again, in the same process, with glibc asking the kernel for large pages, if that does anything.

    XLA takes a step's working memory from malloc anew each time. In pages of 4 KiB, giving out and clearing them costs a
    quarter of the time of a training step on two cores (docs/performance.md). Where the kernel gives larger ones only to
    who asks (`madvise`, the default of most distributions), glibc asks if a variable says so when the program starts.

    Args:
      ours: whether nothing else runs in this process, so that it may start again; unless given, the command line tells.
    """
    ours = _is_ours(sys.orig_argv) if ours is None else ours
    if VARIABLE in os.environ or platform.libc_ver()[0] != "glibc" or not (sys.executable and ours):
        return
    try:
        asked = "[madvise]" in _KERNEL.read_text()
    except OSError:
        return
    if asked:
        environment = os.environ | {VARIABLE: "glibc.malloc.hugetlb=1"}
        with contextlib.suppress(OSError):  # then it goes on as it is
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _is_ours(command: list[str]) -> bool:
    """Whether nothing but jaxcls runs in this process: the script `jaxcls`, `python -m jaxcls`, `.main` or `.benchmark`."""
    words = itertools.takewhile(lambda word: not word.startswith("--"), command[1:])
    script = Path(sys.argv[0]).name
    modules = [module for flag, module in itertools.pairwise(words) if flag == "-m"]
    return script == "jaxcls" or modules[:1] in (["jaxcls"], ["jaxcls.main"], ["jaxcls.benchmark"])
