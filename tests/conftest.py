"""A network small enough for tests, and a compilation cache that the tests of a process, and processes they start, share."""

import os
import tempfile

# Before JAX is imported. Tests of several devices need them; tests of one take the first.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
# XLA splits long sums of a matrix product by its threads, so tests that compare processes bit for bit need equally many.
os.environ["NPROC"] = "4"
# Most of a small run is compiling. The quickstart, which CI runs too, has the optimizations.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
_cache = tempfile.TemporaryDirectory(prefix="jaxcls-test-cache-", ignore_cleanup_errors=True)  # until the process ends
os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name

import jax  # noqa: E402

from tests import tiny_main  # noqa: E402, F401 (registers the network `tiny`)

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """Files of whole runs first: a file is one worker's, and the longest must not be begun last."""
    items.sort(key=lambda item: "tests/train/" not in item.nodeid)
