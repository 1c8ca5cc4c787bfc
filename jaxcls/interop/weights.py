"""jaxcls's own format for weights: a directory of `weights.safetensors` and `metadata.json`.

The arrays are named by their place in the variables, `params/stem/conv/kernel`. The metadata says what network they are
for, how images are prepared for it, what its classes are called, where the weights come from, and the checksum of the
other file; it is written last, so a directory with metadata is whole.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open

from jaxcls.errors import CheckpointError, RunError
from jaxcls.interop.torch_files import save_safetensors
from jaxcls.report.files import write_json

WEIGHTS, METADATA = "weights.safetensors", "metadata.json"
FORMAT, VERSION = "jaxcls weights", 1


def is_weights(path: Path) -> bool:
    """Whether `path` is a directory in this format."""
    return (path / METADATA).is_file()


def save(directory: Path, variables: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Writes a directory of weights, made if need be.

    Args:
      variables: `{"params", "batch_stats"}`, nested dicts of NumPy arrays.
      metadata: JSON: `model` (arguments of `create_model`), `preprocessing`, `classes`, `provenance`.

    Raises:
      RunError: it cannot be written, or `directory` holds something else.
    """
    part = directory / f"{WEIGHTS}.part"
    try:
        others = [path for path in directory.iterdir() if path != part] if directory.exists() else []
        if others and not is_weights(directory):
            raise RunError(f"{directory} is not empty and holds no weights of jaxcls; take another directory")
        directory.mkdir(parents=True, exist_ok=True)
        save_safetensors(part, flatten_dict(dict(variables), sep="/"))
        checksum = _checksum(part)
        (directory / METADATA).unlink(missing_ok=True)
        part.replace(directory / WEIGHTS)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError(f"{directory} cannot be written ({error})") from error
    write_json(directory / METADATA, {"format": FORMAT, "version": VERSION, **metadata, "checksums": {WEIGHTS: checksum}})


def load(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads what `save` wrote: variables of NumPy arrays, and the metadata.

    Raises:
      CheckpointError: a file is missing, damaged or of a newer format.
    """
    try:
        metadata = json.loads((directory / METADATA).read_text())
        if metadata["format"] != FORMAT or metadata["version"] > VERSION:
            raise CheckpointError(
                f"{directory / METADATA} is of format {metadata['format']!r} {metadata['version']}; "
                f"this jaxcls reads {FORMAT!r} up to {VERSION}"
            )
        if _checksum(directory / WEIGHTS) != metadata["checksums"][WEIGHTS]:
            raise CheckpointError(f"{directory / WEIGHTS} is not what was written (its checksum differs); convert it again")
        with safe_open(directory / WEIGHTS, "numpy") as file:
            variables = unflatten_dict({name: file.get_tensor(name) for name in file.keys()}, sep="/")  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{directory} holds no readable weights ({type(error).__name__}: {error})") from error
    return variables, metadata


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
