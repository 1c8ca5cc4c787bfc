"""What a process needs before JAX starts: the compilation cache, 64-bit mode, quiet libraries."""

import functools
import logging
import os
import sys
import threading
import traceback
import warnings

import jax

from jaxcls import cache

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; set it to put the cache elsewhere, or to "" for none


def configure(policy: str, *, cached: bool = True) -> None:
    """Sets JAX up for a precision policy, with the persistent compilation cache on, unless programs are not to be `cached`.

    Compiled programs are kept in `$JAX_COMPILATION_CACHE_DIR`, by default `~/.cache/jaxcls/xla` (under
    `$XDG_CACHE_HOME` if that is set), so that the second start of a run compiles nothing.
    """
    directory = os.environ.get(CACHE_VARIABLE, str(cache.directory("xla")))
    jax.config.update("jax_compilation_cache_dir", directory or None)
    jax.config.update("jax_enable_compilation_cache", cached and _is_usable(directory))
    # It is compiled anew, as if it were not there.
    warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_enable_x64", policy == "fp64")
    # What goes wrong in orbax's and grain's threads is raised again where the run waits for it, and told in one line.
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = _unless_raised_again
    sys.unraisablehook = _unless_in_a_closed_loop


@functools.cache
def _is_usable(directory: str) -> bool:
    """Whether a cache can be there; says why not, once."""
    if not directory or "://" in directory:
        return bool(directory)
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        said = f"compiled programs cannot be kept in {directory} ({error.strerror}), so that each start compiles all"
        print(f"jaxcls: {said}; {CACHE_VARIABLE} may name another folder", file=sys.stderr)
        return False
    return True


def _unless_raised_again(failure: threading.ExceptHookArgs) -> None:
    modules = {frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(failure.exc_traceback)}
    if not any(name.startswith("orbax.") for name in modules):
        threading.__excepthook__(failure)


def _unless_in_a_closed_loop(failure) -> None:
    """tensorstore reports an error for each write that it finishes after the first one failed."""
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)
