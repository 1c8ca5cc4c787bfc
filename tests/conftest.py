"""A network small enough for tests, and a compilation cache that all of them share."""

import os
import tempfile

# Before JAX is imported. Tests of several devices need them; all else uses the first one alone.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jaxcls-test-cache-"))

import pytest  # noqa: E402

from jaxcls.models.registry import MODELS  # noqa: E402
from jaxcls.models.resnet import Spec  # noqa: E402

TINY = Spec((1, 2), (8, 16), expansion=2, groups=4, squeeze_excite=True)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Registers the network `tiny`: every kind of layer, few of each."""
    monkeypatch.setitem(MODELS, "tiny", TINY)
