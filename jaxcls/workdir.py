"""The run directory: whose it is, and who is in it."""

import fcntl
import json
from pathlib import Path
from typing import TextIO

from jaxcls.config import Config, first_difference, to_dict
from jaxcls.errors import ConfigError, RunError
from jaxcls.report.files import write_json


def claim(path: Path, config: Config) -> TextIO:
    """Claims `path` for a run of `config`, made if need be, and writes its `config.json`.

    Returns:
      an open file; the claim lasts until it is closed, or the process ends in whatever way.

    Raises:
      ConfigError: it holds a run of another config (that has saved or logged something), or it is in use.
      RunError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / ".lock", "w")  # noqa: SIM115 (stays open: it is the claim)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"workdir {path} is in use by another process; wait for it, or take another --workdir"
            ) from error
        begun = any((path / "checkpoints").glob("[0-9]*")) or (path / "metrics.jsonl").exists()
        if begun and (path / "config.json").exists():
            _check_same(path / "config.json", config)
    except OSError as error:
        raise RunError(f"workdir {path} cannot be used ({error.strerror})") from error
    write_json(path / "config.json", to_dict(config))
    return lock


def _check_same(saved: Path, config: Config) -> None:
    try:
        before = json.loads(saved.read_text())
    except ValueError as error:
        raise ConfigError(f"{saved} is not JSON ({error}); mend it, or take another --workdir") from error
    difference = first_difference(before, config)
    if difference:
        raise ConfigError(f"workdir {saved.parent} holds a run of another config ({difference}); take another --workdir")
