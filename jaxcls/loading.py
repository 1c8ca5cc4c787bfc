"""Weights from wherever they are: a run directory, jaxcls's own format, or a PyTorch file."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcls import __version__
from jaxcls.config import DataConfig
from jaxcls.data import transforms
from jaxcls.data.constants import MEAN, STD
from jaxcls.data.decode import DecodeError, open_image
from jaxcls.errors import CheckpointError, DataError
from jaxcls.interop import torch_files, torch_weights, weights
from jaxcls.models.initial import variable_shapes
from jaxcls.models.registry import MODELS, create_model
from jaxcls.models.resnet import ResNet
from jaxcls.train.checkpoints import Checkpoints


def load(path: str | Path, model: str | None = None, *, ema: bool = False) -> tuple[ResNet, dict[str, Any], dict[str, Any]]:
    """A network with its weights.

    Args:
      path: a run directory (its best checkpoint by top-1), a directory of `jaxcls convert`, or a PyTorch file: `.pth`,
        `.pth.tar` or `.safetensors`, with the names of the reference, NVIDIA's published weights, torchvision or timm.
      model: the network's name; a PyTorch file does not hold it, but if it is left out, its shapes tell.
      ema: take the averaged weights of a run with `train.ema_decay`, or of a PyTorch training checkpoint.

    Returns:
      the module, `{"params", "batch_stats"}` of JAX arrays, and metadata: `model` (arguments of `create_model`),
      `preprocessing` (of `preprocess`), `classes` (names, or `None`) and `provenance` (`found` and `warnings` are
      sentences for people).

    Raises:
      CheckpointError: there are no such weights, or they are not that network's; every fault is listed.
      ConfigError: an unknown name.
    """
    variables, meta = load_arrays(path, model, ema=ema)
    return create_model(**meta["model"]), jax.device_put(variables), meta


def load_arrays(path: str | Path, model: str | None = None, *, ema: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """As `load`, without the module: variables of NumPy arrays in host memory, float32 or, where they are that, float64."""
    if model is not None:
        create_model(model, num_classes=1)  # refuses an unknown name
    path = Path(path)
    if path.is_dir():
        if weights.is_weights(path):
            if ema:
                raise CheckpointError(f"{path} holds no averaged weights besides its own; leave --ema out")
            variables, meta = _read_weights(path)
        else:
            variables, meta = _read_run(path, ema)
        if model not in (None, meta["model"]["name"]):
            raise CheckpointError(f"{path} holds the weights of {meta['model']['name']}, not of {model}; name that network")
    else:
        variables, meta = _read_torch(path, model, ema)
    meta["provenance"]["warnings"] = _warnings(variables)
    return variables, meta


def preprocess(paths: Iterable[str | Path], meta: dict[str, Any]) -> np.ndarray:
    """The evaluation transform: shorter side resized, centre cropped, normalised.

    Args:
      paths: of images, N of them.
      meta: as `load` gives it; its `preprocessing` says how.

    Returns:
      `[N, S, S, 3]` float32.

    Raises:
      DataError: an image that is not there, or that cannot be decoded.
    """
    how, images = meta["preprocessing"], []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            images.append(prepare(Path(path).read_bytes(), how))
        except (OSError, DecodeError) as error:
            raise DataError(f"image {path} cannot be used: {getattr(error, 'strerror', None) or error}") from error
    pixels = np.stack(images).astype(np.float32) / 255
    return (pixels - np.array(how["mean"], np.float32)) / np.array(how["std"], np.float32)


def prepare(encoded: bytes, how: dict[str, Any]) -> np.ndarray:
    """One image before it is normalised, uint8 `[S, S, 3]`; `how` is a metadata's `preprocessing`.

    Raises:
      DecodeError: it cannot be decoded.
    """
    picture = open_image(encoded)
    return transforms.eval_transform(picture, how["image_size"], how["eval_resize"], how["interpolation"])


def say_found(path: str, meta: dict[str, Any]) -> None:
    """Tells on standard error what was loaded from `path`, and what is odd about it."""
    origin = meta["provenance"]
    source = "" if origin["source"] == str(path) else f"of {origin['source']}, "
    for line in (f"{path}: {source}{origin['found']}.", *(f"Warning: {text}" for text in origin["warnings"])):
        print(line, file=sys.stderr, flush=True)


def preprocessing(data: DataConfig) -> dict[str, Any]:
    """The metadata of an evaluation transform."""
    return {
        "image_size": data.image_size,
        "eval_resize": data.eval_resize or data.image_size + 32,
        "interpolation": data.interpolation,
        "mean": list(MEAN),
        "std": list(STD),
    }


def _read_weights(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    variables, meta = weights.load(path)
    shapes = variable_shapes(create_model(**meta["model"]))
    wanted, given = (jax.tree.map(np.shape, tree) for tree in (shapes, variables))
    if wanted != given:
        raise CheckpointError(f"{path} holds other arrays than its metadata says ({meta['model']}); convert it again")
    return variables, meta


def _read_run(path: Path, ema: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} is neither a run (with checkpoints/) nor weights (with {weights.METADATA})")
    variables, saved, step = Checkpoints(path / "checkpoints", keep=1, read_only=True).restore_weights(ema=ema)
    model, data = saved["config"]["model"], DataConfig(**saved["config"]["data"])
    top1 = (saved["progress"]["ema_evaluation" if ema else "evaluation"] or {}).get("top1")
    found = f"{'averaged weights of ' if ema else ''}a run of {model['name']}, step {step}" + (
        "" if top1 is None else f", top-1 {top1:.2f}%"
    )
    return variables, {
        "model": {name: model[name] for name in ("name", "num_classes", "se_width", "bn_epsilon")},
        "preprocessing": preprocessing(data),
        "classes": saved["classes"],
        "provenance": {
            "source": str(path),
            "found": found,
            "warnings": [],
            "step": step,
            "top1": top1,
            "epoch": step / saved["steps_per_epoch"],
            "batches_tracked": step,
            "jaxcls": saved.get("version", __version__),
        },
    }


def _read_torch(path: Path, model: str | None, ema: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    file = torch_files.read(path, ema=ema)
    arrays = torch_weights.strip_prefixes(file.arrays)
    try:
        variables, options, names = from_state(arrays, model)
        tracked = torch_weights.batches_tracked(arrays, torch_weights.NAMINGS[names])
        _check_numbers(variables, options)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(variables)})
    variables = jax.tree.map(_at_least_float32, variables)
    found = f"{'a training checkpoint' if file.entry else 'weights'} with {names} names, {options['name']}, "
    found += f"{options['num_classes']} classes, {' and '.join(dtypes)}"
    found += f"; took {file.entry}" if file.entry else ""
    found += f", not {', '.join(file.others)}" if file.others else ""
    found += "".join(f"; {name} {value:.5g}" for name, value in file.facts.items())
    return variables, {
        "model": options,
        "preprocessing": preprocessing(DataConfig()),
        "classes": None,
        "provenance": {
            "source": str(path),
            "found": found,
            "warnings": [],
            "names": names,
            "entry": file.entry,
            "dtypes": dtypes,
            "batches_tracked": tracked,
            **file.facts,
            "jaxcls": __version__,
        },
    }


def from_state(arrays: dict[str, np.ndarray], model: str | None) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Variables from a PyTorch state dict.

    Args:
      arrays: by PyTorch's names, without wrappers' prefixes.
      model: the network's name, or `None` to tell it by its shapes.

    Returns:
      the variables as views of the arrays, arguments of `create_model`, and the naming's key in `torch_weights.NAMINGS`.

    Raises:
      CheckpointError: it is not that network's, or of none that jaxcls has.
    """
    names = torch_weights.detect_naming(arrays)
    naming = torch_weights.NAMINGS[names]
    outline = torch_weights.outline(arrays, naming)
    options = _identify(outline, model) if outline else model and {"name": model, **_sizes(arrays, naming)}
    if options is None:
        torch_weights.from_torch(arrays, naming)  # lists what is missing, if anything is
        raise CheckpointError(f"a network that jaxcls has not ({_describe(outline)}); it has {', '.join(MODELS)}")
    return torch_weights.from_torch(arrays, naming, variable_shapes(create_model(**options))), options, names


def _identify(outline: torch_weights.Outline, model: str | None) -> dict[str, Any] | None:
    """Arguments of `create_model` for the network that a state dict is of; `None` if none is.

    Raises:
      CheckpointError: it is another one than `model`.
    """
    sizes = {"num_classes": outline.num_classes, "se_width": outline.se_width}
    fitting = [name for name, spec in MODELS.items() if all(getattr(outline, f) == getattr(spec, f) for f in _COMPARED)]
    if model is None:  # resnet50 and resnet50-v1 have the same weights: the first is the one in use
        return {"name": fitting[0], **sizes} if fitting else None
    if fitting and model not in fitting:
        raise CheckpointError(f"these are the weights of {' or '.join(fitting)}, not of {model}; name that network")
    return {"name": model, **sizes}


def _sizes(arrays: dict[str, np.ndarray], naming: torch_weights.Naming) -> dict[str, int]:
    """Arguments of `create_model` where too much is missing for an outline, so that what is there is not at fault, too."""
    head = next((arrays[name] for name in ("fc.bias", "fc.weight") if name in arrays), np.empty(1000))
    gates = {array.size for name, array in arrays.items() if name.endswith(f".{naming.squeeze}.bias")}
    width = 16 if not gates else gates.pop() if len(gates) == 1 else 0
    return {"num_classes": len(np.atleast_1d(head)), "se_width": width}


_COMPARED = ("depths", "widths", "expansion", "groups", "squeeze_excite")


def _describe(outline: torch_weights.Outline) -> str:
    return ", ".join(f"{name} {getattr(outline, name)}" for name in _COMPARED)


def _check_numbers(variables: dict[str, Any], options: dict[str, Any]) -> None:
    """Raises CheckpointError for weights that are not floats, such as quantised ones without their scales, or no classes."""
    if options["num_classes"] < 1:
        raise CheckpointError("the classifier has no classes")
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    others = ["/".join(entry.key for entry in path) for path, leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise CheckpointError(f"{', '.join(others[:3])}{more} do not hold floating-point numbers; save them as float32")


def _at_least_float32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _warnings(variables: dict[str, Any]) -> list[str]:
    """What makes a network answer with NaN."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    named = [("/".join(entry.key for entry in path), leaf) for path, leaf in leaves]
    with np.errstate(over="ignore"):
        infinite = [name for name, leaf in named if not np.isfinite(np.asarray(leaf, np.float32)).all()]
    negative = [name for name, leaf in named if name.endswith("/var") and (np.asarray(leaf) < 0).any()]
    found = {"NaN or infinity": infinite, "negative variances": negative}
    return [f"{len(names)} arrays hold {what}: {', '.join(names)}." for what, names in found.items() if names]
