"""PyTorch weights on disk: `.safetensors`, read and written without torch, and `.pth` and `.pth.tar`, with it.

A `.pth` file is a pickle, and a pickle can run code. Only torch's restricted unpickler (`weights_only=True`) reads it here;
the reference's checkpoints also hold NumPy scalars, so the three names that build those are allowed, and no others.
"""

import contextlib
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxcls.errors import CheckpointError, ConfigError, RunError

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pth.tar", ".pt")
SUFFIXES = (*PICKLES, SAFETENSORS)

# The entries of a training checkpoint that hold weights: the reference's, and what others call them.
RAW, EMA = ("state_dict", "model"), ("state_dict_ema", "model_ema")


class TorchState(NamedTuple):
    """The weights in a file.

    Attributes:
      arrays: by PyTorch's names, as they are in the file; bfloat16 as ml_dtypes'.
      entry: key of the training checkpoint that they come from, or `None` if they are all that the file holds.
      others: keys of further sets of weights in it.
      facts: what else a training checkpoint says: `epoch`, `best_prec1`.
    """

    arrays: dict[str, np.ndarray]
    entry: str | None
    others: tuple[str, ...]
    facts: dict[str, Any]


def is_torch_file(path: Path) -> bool:
    """Whether the name is one of a file of PyTorch weights."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path, *, ema: bool = False) -> TorchState:
    """Reads a file of PyTorch weights. No code in it is run.

    Args:
      path: `.pth`, `.pth.tar`, `.pt` (whatever the name, a zip or a pickle) or `.safetensors`.
      ema: take the averaged weights of a training checkpoint.

    Raises:
      CheckpointError: not such a file, a truncated one, one that would have to run code, or one without weights.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    content = _read_safetensors(path) if path.name.lower().endswith(SAFETENSORS) else _read_pickle(path)
    entry, others = _choose_entry(path, content, ema)
    weights = content if entry is None else content[entry]
    arrays = {str(name): _as_array(path, name, value) for name, value in weights.items()}
    facts = {name: _plain(content[name]) for name in ("epoch", "best_prec1") if entry and name in content}
    return TorchState(arrays, entry, others, {name: value for name, value in facts.items() if value is not None})


def write(path: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Writes PyTorch weights, whole or not at all.

    Args:
      path: `.safetensors` and `.pth` hold the bare state dict; `.pth.tar` one under `state_dict`, beside the facts, as
        the reference's training does.
      facts: `epoch` and the like; only numbers and text.

    Raises:
      RunError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.lower().endswith(SAFETENSORS):
            save_safetensors(part, arrays)
        else:
            torch = _torch()
            # Tensors must not share the arrays' memory, which may be read-only.
            state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            torch.save({**facts, "state_dict": state} if path.name.lower().endswith(".tar") else state, part)
        part.replace(path)
    except (OSError, SafetensorError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise RunError(f"{path} cannot be written ({_brief(error)})") from error


def save_safetensors(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name. Raises OSError or SafetensorError."""
    save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path)  # it writes raw memory
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # as any other file: safetensors lets nobody else read it


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} holds numbers of a kind that cannot be read ({_brief(error)})") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file, or is truncated ({_brief(error)})") from error


def _read_pickle(path: Path) -> dict[str, Any]:
    torch = _torch()
    try:
        # A zip is mapped into memory: what is not asked for, such as the optimizer's state, is not read.
        with torch.serialization.safe_globals(list(_numpy_scalars())), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle's newer protocols: what cannot be read is an error
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file may surface as anything
        if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} was refused: reading it would run code of its own ({refused[1]}); save its state dict alone"
            ) from error
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or is truncated ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    return dict(content)


def _numpy_scalars() -> Iterator[Any]:
    """What a pickled NumPy float is made of, under the module names of NumPy 2 and, where they differ, of NumPy 1."""
    scalar = np._core.multiarray.scalar
    yield from ((scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"))
    yield from (np.dtype, np.dtypes.Float64DType)


def _choose_entry(path: Path, content: Mapping[str, Any], ema: bool) -> tuple[str | None, tuple[str, ...]]:
    """The entry that holds the weights wanted (`None`: the content is the weights), and the other ones there."""
    found = [name for name in (*RAW, *EMA) if isinstance(content.get(name), Mapping)]
    wanted = [name for name in found if name in (EMA if ema else RAW)]
    if ema and not wanted:
        raise CheckpointError(f"{path} holds no averaged weights (none of {', '.join(EMA)}); leave --ema out")
    if found and not wanted:
        raise CheckpointError(f"{path} holds only averaged weights ({found[0]}); say --ema to take them")
    if not found and not any(hasattr(value, "shape") for value in content.values()):
        raise CheckpointError(f"{path} holds no weights; its entries are: {', '.join(map(str, content)) or 'none'}")
    return (wanted[0], tuple(name for name in found if name != wanted[0])) if found else (None, ())


def _as_array(path: Path, name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if not hasattr(value, "detach"):
        raise CheckpointError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    tensor = value.detach()
    try:
        if tensor.dtype == _torch().bfloat16:  # NumPy has no such dtype
            import ml_dtypes

            return tensor.view(_torch().uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, of 8-bit floats, on no device
        kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device}".replace("torch.", "")
        raise CheckpointError(f"{path}: {name} cannot be read ({kind}); save it as a plain tensor of float32") from error


def _plain(value: Any) -> int | float | None:
    """A number as Python's own, whatever library it came from."""
    with contextlib.suppress(AttributeError, ValueError, RuntimeError):  # the last: a tensor of several numbers
        value = value.item()
    return value if isinstance(value, int | float) and abs(value) < 2**63 else None


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ConfigError("reading and writing .pth files needs PyTorch: pip install 'jaxcls[torch]'") from error
    return torch


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
