"""PyTorch state dicts to jaxcls variables and back: names and layouts, no arithmetic. Needs no torch.

A weight is a *leaf* of a *module*. A `Naming` says what a family of checkpoints calls the modules, `LEAVES` what both
sides call the leaves of each kind of module. `_pairs` makes of them the one table that both directions read.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxcls.errors import CheckpointError


class Naming(NamedTuple):
    """What a family of PyTorch checkpoints calls those modules that not all families call the same."""

    stage: str  # what stands before a stage's number
    first_stage: int  # the number of the first stage
    squeeze: str  # in a block: the dense layers of the squeeze-and-excitation gate
    expand: str


REFERENCE = Naming(stage="layers.", first_stage=0, squeeze="squeeze.squeeze", expand="squeeze.expand")

# PyTorch's name of each leaf: jaxcls's collection and name.
LEAVES = {
    "conv": {"weight": ("params", "kernel")},
    "dense": {"weight": ("params", "kernel"), "bias": ("params", "bias")},
    "bn": {
        "weight": ("params", "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    },
}
COUNTER = "num_batches_tracked"  # a leaf of PyTorch's BN alone, where it matters only without a momentum

Path = tuple[str, ...]  # in the variables: ("params", "stage1", "block0", "shortcut", "bn", "scale")


def from_torch(state: Mapping[str, np.ndarray], naming: Naming = REFERENCE) -> dict[str, Any]:
    """Variables of a jaxcls network from a PyTorch state dict, whatever the network's depth and widths.

    Args:
      state: arrays by PyTorch's names; all names may carry the prefix `module.`, and gates may be 1x1 convolutions.
      naming: the family that the names belong to.

    Returns:
      `{"params", "batch_stats"}`, nested dicts of arrays, kernels as HWIO and (in, out); dtypes are kept. The arrays are
      views of those given.

    Raises:
      CheckpointError: unexpected or missing names, or wrong shapes; every one of them is listed.
    """
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    modules = _block_modules(naming)
    blocks: dict[tuple[int, int], set[str]] = {}
    for key in state:
        match = re.fullmatch(rf"{re.escape(naming.stage)}([0-9]+)\.([0-9]+)\.(.+)\.[^.]+", key)
        if match and match[3] in modules:
            stage, block = int(match[1]) - naming.first_stage + 1, int(match[2])
            blocks.setdefault((stage, block), set()).add(modules[match[3]][0])
    pairs = _pairs(blocks, naming)
    counters = {key for key in state if _is_counter(key, pairs)}
    faults = _name_faults(state.keys() - counters, pairs)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for key, path in pairs.items():
        if key in state:
            array = np.asarray(state[key])
            if path[-2] in ("squeeze", "expand") and array.shape[2:] == (1, 1):
                array = array[:, :, 0, 0]  # a 1x1 convolution: (out, in, 1, 1) -> (out, in)
            if fault := _shape_fault(array, path):
                faults.append(f"{key} {fault}")
            else:
                _insert(variables, path, _from_torch_layout(array))
    if faults:
        raise CheckpointError(f"not a PyTorch checkpoint of a network known here: {'; '.join(faults)}")
    return variables


def to_torch(variables: Mapping[str, Any], naming: Naming = REFERENCE) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: a state dict, in network order, that PyTorch loads with `strict=True`.

    Gates become dense layers. BN's `num_batches_tracked`, which jaxcls does not keep, is 0.

    Args:
      variables: `{"params", "batch_stats"}`, nested dicts of arrays (NumPy's or JAX's).
      naming: the family whose names to use.

    Raises:
      CheckpointError: unexpected or missing variables, or wrong shapes; every one of them is listed.
    """
    arrays = dict(_leaves(variables))
    blocks: dict[tuple[int, int], set[str]] = {}
    for path in arrays:
        match = re.fullmatch(r"stage([0-9]+)/block([0-9]+)/([^/]+)/.+", "/".join(path[1:]))
        if match:
            blocks.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    pairs = _pairs(blocks, naming)
    faults = _name_faults(map("/".join, arrays), map("/".join, pairs.values()))
    state = {}
    for key, path in pairs.items():
        if path in arrays:
            array = np.asarray(arrays[path])
            if fault := _shape_fault(array, path):
                faults.append(f"{'/'.join(path)} {fault}")
            else:
                state[key] = np.ascontiguousarray(_to_torch_layout(array))
        if path[-1] == "var":
            state[f"{key.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    if faults:
        raise CheckpointError(f"not the variables of a network that PyTorch has names for: {'; '.join(faults)}")
    return state


def _pairs(blocks: Mapping[tuple[int, int], Iterable[str]], naming: Naming) -> dict[str, Path]:
    """PyTorch's name and jaxcls's path of every weight of a network, in network order.

    Args:
      blocks: for each (stage from 1, block from 0) the parts that it has, `se` and `shortcut` among them or not.
    """
    modules: dict[str, Path] = {"conv1": ("stem", "conv"), "bn1": ("stem", "bn")}
    for (stage, block), parts in sorted(blocks.items()):
        for name, path in _block_modules(naming).items():
            if path[0] not in ("se", "shortcut") or path[0] in parts:
                torch_name = f"{naming.stage}{stage + naming.first_stage - 1}.{block}.{name}"
                modules[torch_name] = (f"stage{stage}", f"block{block}", *path)
    modules["fc"] = ("head",)
    return {
        f"{module}.{leaf}": (collection, *path, name)
        for module, path in modules.items()
        for leaf, (collection, name) in LEAVES[_kind(path[-1])].items()
    }


def _block_modules(naming: Naming) -> dict[str, Path]:
    """The modules of a block by PyTorch's names; those of gates and shortcuts not every block has."""
    return {f"{kind}{index}": (f"{kind}{index}",) for index in (1, 2, 3) for kind in ("conv", "bn")} | {
        naming.squeeze: ("se", "squeeze"),
        naming.expand: ("se", "expand"),
        "downsample.0": ("shortcut", "conv"),
        "downsample.1": ("shortcut", "bn"),
    }


def _kind(module: str) -> str:
    """The key in `LEAVES` of a module of that name."""
    kind = module.rstrip("123")
    return kind if kind in LEAVES else "dense"


def _is_counter(key: str, pairs: Mapping[str, Path]) -> bool:
    module, _, leaf = key.rpartition(".")
    return leaf == COUNTER and f"{module}.running_var" in pairs


def _name_faults(given: Iterable[str], wanted: Iterable[str]) -> list[str]:
    given, wanted = set(given), set(wanted)
    return [f"unexpected {name}" for name in sorted(given - wanted)] + [f"missing {name}" for name in sorted(wanted - given)]


def _shape_fault(array: np.ndarray, path: Path) -> str | None:
    """What is wrong with the shape of the weight at `path`; both sides' layouts have the same number of dimensions."""
    rank = {"conv": 4, "dense": 2}[_kind(path[-2])] if path[-1] == "kernel" else 1
    return None if array.ndim == rank else f"has shape {array.shape} in place of {rank} dimension{'s' * (rank > 1)}"


def _from_torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T  # OIHW -> HWIO, (out, in) -> (in, out)


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # HWIO -> OIHW, (in, out) -> (out, in)


def _insert(tree: dict[str, Any], path: Path, array: np.ndarray) -> None:
    *parents, name = path
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = array


def _leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value
