"""What a process needs before JAX starts: the compilation cache, 64-bit mode, quiet libraries."""

import logging
import os
from pathlib import Path

import jax

CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; set it to put the cache elsewhere, or to "" for none


def configure(policy: str) -> None:
    """Sets JAX up for a precision policy, with the persistent compilation cache on.

    Compiled programs are kept in `$JAX_COMPILATION_CACHE_DIR`, by default `~/.cache/jaxcls/xla` (under
    `$XDG_CACHE_HOME` if that is set), so that the second start of a run compiles nothing.
    """
    if CACHE_VARIABLE not in os.environ:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jaxcls" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_enable_x64", policy == "fp64")
    for name in ("absl", "orbax", "jax._src.compilation_cache"):
        logging.getLogger(name).setLevel(logging.ERROR)
