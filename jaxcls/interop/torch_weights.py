"""PyTorch state dicts to jaxcls variables and back: names and layouts, no arithmetic. Needs no torch.

A weight is a *leaf* of a *module*. A `Naming` says what a family of checkpoints calls the modules, `LEAVES` what both
sides call the leaves of each kind of module. `_pairs` makes of them the one table that both directions read.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcls.errors import CheckpointError


class Naming(NamedTuple):
    """What a family of PyTorch checkpoints calls those modules that not all families call the same."""

    stage: str  # what stands before a stage's number
    first_stage: int  # the number of the first stage
    squeeze: str  # in a block: the two layers of the squeeze-and-excitation gate
    expand: str
    convolutional_gate: bool = False  # its layers are written as 1x1 convolutions; both kinds are read


NAMINGS = {
    "reference": Naming("layers.", 0, "squeeze.squeeze", "squeeze.expand"),
    # NVIDIA's published 20.06 weights, too; torchvision's own networks have no gates.
    "torchvision": Naming("layer", 1, "squeeze.squeeze", "squeeze.expand"),
    "timm": Naming("layer", 1, "se.fc1", "se.fc2", convolutional_gate=True),
}
REFERENCE = NAMINGS["reference"]

# What wrappers of a network (DistributedDataParallel, torch.compile) put before every name.
PREFIXES = ("module.", "_orig_mod.")

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


def strip_prefixes(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict without what wrappers put before every name."""
    state = dict(state)
    while found := [prefix for prefix in PREFIXES if state and all(key.startswith(prefix) for key in state)]:
        state = {key.removeprefix(found[0]): value for key, value in state.items()}
    return state


def detect_naming(names: Iterable[str]) -> str:
    """The key in `NAMINGS` of the family that names (without prefixes) belong to.

    Raises:
      CheckpointError: none that is known here.
    """
    names = list(names)
    for naming, mark in (("reference", "layers.0.0."), ("timm", "layer1.0.se.fc1."), ("torchvision", "layer1.0.")):
        if any(name.startswith(mark) for name in names):
            return naming
    raise CheckpointError(
        "these are not the names of a residual network known here: layers.0.0.conv1.weight (NVIDIA) or "
        f"layer1.0.conv1.weight (torchvision, timm) is expected, not {', '.join(names[:3]) or 'nothing'}"
    )


class Outline(NamedTuple):
    """What the shapes of a state dict say of the network that they belong to; as `jaxcls.models.resnet.Spec`."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: int
    groups: int
    squeeze_excite: bool
    num_classes: int
    se_width: int  # 0: a sixteenth of each block's channels


def outline(state: Mapping[str, np.ndarray], naming: Naming) -> Outline | None:
    """Reads a network's outline off a state dict (without prefixes); `None` where too much of it is missing."""
    blocks = sorted(_blocks_of_state(state, naming))
    stages = sorted({stage for stage, _ in blocks})

    def shape(stage: int, module: str, block: int = 0) -> tuple[int, ...]:
        return state[f"{naming.stage}{stage + naming.first_stage - 1}.{block}.{module}.weight"].shape

    try:
        widths = tuple(shape(stage, "conv1")[0] for stage in stages)
        gated = any(f".{naming.squeeze}." in name for name in state)
        gates = [(shape(stage, naming.squeeze, b)[0], shape(stage, "conv3", b)[0]) for stage, b in blocks if gated]
        sixteenth = gated and all(16 * width == channels for width, channels in gates)
        return Outline(
            depths=tuple(sum(stage == s for s, _ in blocks) for stage in stages),
            widths=widths,
            expansion=shape(1, "conv3")[0] // widths[0],
            groups=shape(1, "conv2")[0] // shape(1, "conv2")[1],
            squeeze_excite=gated,
            num_classes=state["fc.weight"].shape[0],
            se_width=0 if sixteenth else gates[0][0] if gated else 16,
        )
    except (KeyError, IndexError, ZeroDivisionError):
        return None


def from_torch(
    state: Mapping[str, np.ndarray], naming: Naming = REFERENCE, shapes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Variables of a jaxcls network from a PyTorch state dict.

    Args:
      state: arrays by PyTorch's names; wrappers' prefixes are dropped, and gates may be 1x1 convolutions.
      naming: the family that the names belong to.
      shapes: the variables of the network that is wanted, nested dicts of things with a `shape`; without them, whatever
        depth and widths are there.

    Returns:
      `{"params", "batch_stats"}`, nested dicts of arrays, kernels as HWIO and (in, out); dtypes are kept. The arrays are
      views of those given.

    Raises:
      CheckpointError: unexpected or missing names, or wrong shapes; every one of them is listed.
    """
    state = strip_prefixes(state)
    wanted = None if shapes is None else flatten_dict(dict(shapes))
    pairs = _pairs(_blocks_of_state(state, naming) if wanted is None else _blocks_of_paths(wanted), naming)
    counters = {key for key in state if _is_counter(key, pairs)}
    faults = _name_faults(state.keys() - counters, pairs)
    arrays = {}
    for key, path in pairs.items():
        if key in state:
            array = np.asarray(state[key])
            if path[-2] in ("squeeze", "expand") and array.shape[2:] == (1, 1):
                array = array[:, :, 0, 0]  # a 1x1 convolution: (out, in, 1, 1) -> (out, in)
            if fault := _shape_fault(array, path, wanted and wanted[path]):
                faults.append(f"{key} {fault}")
            else:
                arrays[path] = _from_torch_layout(array)
    if faults:
        network = "a network known here" if shapes is None else "this network"
        raise CheckpointError(f"not a PyTorch checkpoint of {network}: {'; '.join(faults)}")
    return unflatten_dict(arrays)


def to_torch(variables: Mapping[str, Any], naming: Naming = REFERENCE, batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: a state dict, in network order, that PyTorch loads with `strict=True`.

    BN's `num_batches_tracked`, which jaxcls does not keep, comes as an argument.

    Args:
      variables: `{"params", "batch_stats"}`, nested dicts of arrays (NumPy's or JAX's).
      naming: the family whose names to use.
      batches_tracked: how many batches the BN statistics have seen: one number, or one for each layer, as
        `batches_tracked` gives them.

    Raises:
      CheckpointError: unexpected or missing variables, or wrong shapes; every one of them is listed.
    """
    arrays = flatten_dict(dict(variables))
    pairs = _pairs(_blocks_of_paths(arrays), naming)
    faults = _name_faults(map("/".join, arrays), map("/".join, pairs.values()))
    state = {}
    for key, path in pairs.items():
        if path in arrays:
            array = np.asarray(arrays[path])
            if fault := _shape_fault(array, path):
                faults.append(f"{'/'.join(path)} {fault}")
            else:
                array = _to_torch_layout(array)
                if path[-2:] in (("squeeze", "kernel"), ("expand", "kernel")) and naming.convolutional_gate:
                    array = array[:, :, None, None]  # (out, in) -> (out, in, 1, 1)
                state[key] = np.ascontiguousarray(array)
        if path[-1] == "var":
            count = batches_tracked if isinstance(batches_tracked, int) else batches_tracked["/".join(path[1:-1])]
            state[f"{key.rpartition('.')[0]}.{COUNTER}"] = np.array(count, np.int64)
    if faults:
        raise CheckpointError(f"not the variables of a network that PyTorch has names for: {'; '.join(faults)}")
    return state


def batches_tracked(state: Mapping[str, np.ndarray], naming: Naming) -> int | dict[str, int]:
    """How many batches each BN layer's statistics have seen: one number if it is the same for all; 0 where it is not said.

    Args:
      state: of PyTorch, without prefixes.

    Returns:
      the number, or `{"stem/bn": number, ...}`.

    Raises:
      CheckpointError: one is not a whole number.
    """
    pairs = _pairs(_blocks_of_state(state, naming), naming)
    counts = {
        "/".join(path[1:-1]): _count(state, f"{key.rpartition('.')[0]}.{COUNTER}")
        for key, path in pairs.items()
        if path[-1] == "var"
    }
    return counts if len(set(counts.values())) > 1 else next(iter(counts.values()))


def _count(state: Mapping[str, np.ndarray], name: str) -> int:
    count = np.asarray(state.get(name, 0))
    # A file in half precision holds its counters as floats too.
    if count.size != 1 or not np.isrealobj(count) or not np.isfinite(value := float(count.item())) or value != int(value):
        raise CheckpointError(f"{name} must be one whole number, not {count.dtype} of shape {count.shape}")
    return int(value)


def _blocks_of_state(state: Iterable[str], naming: Naming) -> dict[tuple[int, int], set[str]]:
    """For each (stage from 1, block from 0) in PyTorch's names the parts that it has, by jaxcls's names."""
    modules = _block_modules(naming)
    blocks: dict[tuple[int, int], set[str]] = {}
    for key in state:
        match = re.fullmatch(rf"{re.escape(naming.stage)}([0-9]+)\.([0-9]+)\.(.+)\.[^.]+", key)
        if match and match[3] in modules:
            stage, block = int(match[1]) - naming.first_stage + 1, int(match[2])
            blocks.setdefault((stage, block), set()).add(modules[match[3]][0])
    return blocks


def _blocks_of_paths(paths: Iterable[Path]) -> dict[tuple[int, int], set[str]]:
    """As `_blocks_of_state`, of variables."""
    blocks: dict[tuple[int, int], set[str]] = {}
    for path in paths:
        match = re.fullmatch(r"stage([0-9]+)/block([0-9]+)/([^/]+)/.+", "/".join(path[1:]))
        if match:
            blocks.setdefault((int(match[1]), int(match[2])), set()).add(match[3])
    return blocks


def module_names(state: Iterable[str], naming: Naming) -> dict[str, str]:
    """jaxcls's name of every module of a PyTorch network: layers, blocks and stages; `{"layers.0.0": "stage1/block0"}`.

    Args:
      state: names of its state dict, without prefixes.
    """
    blocks = _blocks_of_state(state, naming)
    names = {module: "/".join(path) for module, path in _modules(blocks, naming).items()}
    for stage, block in blocks:
        name = f"{naming.stage}{stage + naming.first_stage - 1}"
        names |= {name: f"stage{stage}", f"{name}.{block}": f"stage{stage}/block{block}"}
    return names


def parameter_names(state: Iterable[str], naming: Naming) -> dict[str, str]:
    """jaxcls's name of every weight by PyTorch's: `{"conv1.weight": "stem/conv/kernel"}`."""
    pairs = _pairs(_blocks_of_state(state, naming), naming)
    return {key: "/".join(path[1:]) for key, path in pairs.items()}


def _pairs(blocks: Mapping[tuple[int, int], Iterable[str]], naming: Naming) -> dict[str, Path]:
    """PyTorch's name and jaxcls's path of every weight of a network, in network order; `blocks` as of `_modules`."""
    return {
        f"{module}.{leaf}": (collection, *path, name)
        for module, path in _modules(blocks, naming).items()
        for leaf, (collection, name) in LEAVES[_kind(path[-1])].items()
    }


def _modules(blocks: Mapping[tuple[int, int], Iterable[str]], naming: Naming) -> dict[str, Path]:
    """PyTorch's name and jaxcls's path of every module that has weights, in network order.

    Args:
      blocks: for each (stage from 1, block from 0) the parts that it has, `se` and `shortcut` among them or not.
    """
    modules: dict[str, Path] = {"conv1": ("stem", "conv"), "bn1": ("stem", "bn")}
    for (stage, block), parts in sorted(blocks.items()):
        for name, path in _block_modules(naming).items():
            if path[0] not in ("se", "shortcut") or path[0] in parts:
                torch_name = f"{naming.stage}{stage + naming.first_stage - 1}.{block}.{name}"
                modules[torch_name] = (f"stage{stage}", f"block{block}", *path)
    return modules | {"fc": ("head",)}


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


def _shape_fault(array: np.ndarray, path: Path, wanted: Any = None) -> str | None:
    """What is wrong with the shape of the weight at `path`; without `wanted`, which has a shape, its rank is checked.

    Both sides' layouts have the same number of dimensions.
    """
    if wanted is not None:
        needed = _to_torch_layout(np.broadcast_to(0, wanted.shape)).shape
        return None if array.shape == needed else f"has shape {array.shape}, the network needs {needed}"
    rank = {"conv": 4, "dense": 2}[_kind(path[-2])] if path[-1] == "kernel" else 1
    return None if array.ndim == rank else f"has shape {array.shape} in place of {rank} dimension{'s' * (rank > 1)}"


def _from_torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T  # OIHW -> HWIO, (out, in) -> (in, out)


def _to_torch_layout(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T  # HWIO -> OIHW, (in, out) -> (out, in)
