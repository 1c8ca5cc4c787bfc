"""The run directory: whose it is, and who is in it."""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, TextIO

from jaxcls.config import Config, first_difference, to_dict
from jaxcls.data.sources import Source
from jaxcls.errors import ConfigError, DataError, RunError
from jaxcls.report.files import write_json

SAMPLED = 1000  # ids in a fingerprint


def check_data(path: Path, source: Source) -> None:
    """Notes in `data.json` what a run trains on, or, if it has begun, compares: order and batches depend on it.

    Raises:
      DataError: it is not what the run began with.
      RunError: the file cannot be written.
    """
    file, now = path / "data.json", fingerprint(source)
    if begun(path) and file.exists():
        compare_data(file, now)
    else:
        write_json(file, now)


def compare_data(file: Path, now: dict[str, Any]) -> None:
    """Raises DataError if `now`, of `fingerprint`, is not what `file`, a run's `data.json`, holds."""
    try:
        before = _read_object(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); without it the run's training data cannot be checked") from error
    if before != now:
        counts = f"{before.get('records')} images then, {now['records']} now"
        raise DataError(
            f"the training data is not what the run in {file.parent} began with ({counts}); bring it back, or take another "
            "--workdir"
        )


def fingerprint(source: Source) -> dict[str, Any]:
    """The number of records, and a hash of the ids of up to 1,000 of them, evenly spread.

    With as many records, another name shows where it moves one of these; for up to 1,000 records, always.
    """
    records = len(source)
    spread = sorted({place * (records - 1) // max(SAMPLED - 1, 1) for place in range(SAMPLED)})
    ids = "\n".join(source.id(index) for index in spread)
    return {"records": records, "sampled_ids": hashlib.sha256(os.fsencode(ids)).hexdigest()}


def claim(path: Path, config: Config) -> TextIO:
    """Claims `path` for a run of `config`, made if need be, and writes its `config.json`.

    Returns:
      an open file; the claim lasts until it is closed, or the process ends in whatever way.

    Raises:
      ConfigError: it holds a run of another config (that has saved or logged something), is in use, or is a file.
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
        check_config(path, config)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"workdir {path} cannot be a folder: it, or what it is to lie in, is a file") from error
    except OSError as error:
        raise RunError(f"workdir {path} cannot be used ({error.strerror})") from error
    write_json(path / "config.json", to_dict(config))
    return lock


def _read_object(file: Path) -> dict[str, Any]:
    """Raises OSError, or ValueError if the file does not hold a JSON object."""
    value = json.loads(file.read_text())
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def begun(path: Path) -> bool:
    """Whether a run has saved or logged something there."""
    return any((path / "checkpoints").glob("[0-9]*")) or (path / "metrics.jsonl").exists()


def check_config(path: Path, config: Config) -> None:
    """Raises ConfigError if `path` holds a run, begun, of another config."""
    saved = path / "config.json"
    if not (begun(path) and saved.exists()):
        return
    try:
        before = _read_object(saved)
    except ValueError as error:
        raise ConfigError(f"{saved} is not JSON of a config ({error}); mend it, or take another --workdir") from error
    difference = first_difference(before, config)
    if difference:
        raise ConfigError(f"workdir {saved.parent} holds a run of another config ({difference}); take another --workdir")
