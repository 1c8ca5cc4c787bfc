"""Where a user's caches are: `~/.cache/jaxcls`, or under `$XDG_CACHE_HOME` if that is set."""

import os
from pathlib import Path


def directory(name: str) -> Path:
    """The directory of one cache, which may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "jaxcls" / name
