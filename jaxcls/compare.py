"""`jaxcls compare`: is it the same network? The same weights and inputs through JAX and PyTorch, layer by layer."""

import importlib
import io
import math
import os
import sys
from pathlib import Path
from typing import Any

from jaxcls import command, flags
from jaxcls.errors import CheckpointError, ConfigError, DataError
from jaxcls.report.plots import PICTURES, error_by_depth

SMALLEST = 32  # pixels: every stage halves, five times in all


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: compare(flags.parse_compare(argv)))


def compare(args) -> dict[str, Any]:
    """Compares, prints tables as it goes, and writes the files that were asked for; see `flags.parse_compare`.

    Returns:
      what `--json` writes.

    Raises:
      ConfigError: no PyTorch, or a module that cannot be made.
      CheckpointError: weights that are not the network's.
      DataError: images that cannot be used.
    """
    _check(args)
    try:
        import torch
    except ImportError as error:
        raise ConfigError("comparing needs PyTorch: pip install 'jaxcls[torch]'") from error
    import numpy as np

    from jaxcls import loading, runtime
    from jaxcls.interop import comparison, torch_side, torch_weights
    from jaxcls.models.registry import create_model
    from jaxcls.report import comparison_table as table
    from jaxcls.report.files import write_json

    runtime.configure("fp32")
    create_model(args.model, num_classes=1)  # refuses an unknown name
    images, found, pairs = _images(args)
    net, origin = _network(args, torch_side.normalized(images[: args.count]))
    state = torch_side.arrays(net.state_dict())
    variables, options, names = loading.from_state(torch_weights.strip_prefixes(state), args.model)
    naming, model = torch_weights.NAMINGS[names], create_model(**options)
    labels = np.random.default_rng(args.seed).integers(model.num_classes, size=len(images), dtype=np.int32)
    first = torch_side.normalized(images[: args.count])

    table.say(
        f"{args.model} of jaxcls and of PyTorch {torch.__version__}: {origin}, {found}, {args.image_size} px, {names} names."
    )
    report = comparison.compare_forward(model, variables, net, naming, first)
    table.show_forward(report)
    report["gradients"] = comparison.compare_gradients(model, variables, net, naming, first, labels[: args.count])
    table.show_gradients(report["gradients"])
    report["steps"] = []
    if args.train_steps > 0:
        report["known_differences"] = _known_differences(args)
        table.show_training(not args.free_running, report["known_differences"])
        if args.free_running and not (args.torch or args.torch_module):
            for block in (module for module in net.modules() if hasattr(module, "bn3")):
                torch.nn.init.zeros_(block.bn3.weight)
            variables, *_ = loading.from_state(torch_side.arrays(net.state_dict()), args.model)
        rows = comparison.compare_training(
            model,
            variables,
            net,
            naming,
            images,
            labels,
            steps=args.train_steps,
            reseat=not args.free_running,
            decay_bn=args.decay_bn,
            every=args.every,
            seed=args.seed,
        )
        for row in rows:
            report["steps"].append(row)
            table.show_step(len(report["steps"]), row)
    report["input"] = None
    if pairs:
        report["input"] = comparison.compare_input(pairs, _how(args))
        table.say(
            f"\nInput: the evaluation transform of {len(pairs)} photographs is off torchvision's arithmetic by "
            f"{report['input']['mean_abs']:.3f} of 255 on average and {report['input']['max_abs']:.0f} at most."
        )
    if args.json:
        write_json(Path(args.json), _jsonable(report))
        table.say(f"Wrote {args.json}.")
    if args.picture:
        rows = report["activations"]
        curves = {
            "jaxcls, float64": [row["max_rel"] for row in rows],
            "PyTorch, float32": [row["float32"]["torch"] for row in rows],
            "jaxcls, float32": [row["float32"]["jax"] for row in rows],
        }
        title = f"{args.model}: error by depth, against PyTorch in float64"
        layers = [row["name"] for row in rows]
        error_by_depth(Path(args.picture), layers, curves, title=title, marked=report["first_divergence"])
        table.say(f"Wrote {args.picture}.")
    return report


def _check(args) -> None:
    """Refuses now what would else fail after minutes."""
    if args.train_steps < 0:
        raise ConfigError(f"--train-steps={args.train_steps} must be at least 0")
    if args.image_size < SMALLEST:
        raise ConfigError(f"--image-size={args.image_size} must be at least {SMALLEST}")
    if args.count * math.ceil(args.image_size / SMALLEST) ** 2 < 2:  # pixels of the last stage in a batch
        raise ConfigError(f"--count=1 leaves batch normalisation a single value at --image-size={args.image_size}; take 2")
    if args.picture and Path(args.picture).suffix not in PICTURES:
        raise ConfigError(f"--picture={args.picture}: a picture is {' or '.join(PICTURES)}")
    command.check_writable(args.json, "--json")
    command.check_writable(args.picture, "--picture")


def _images(args):
    """uint8 `[2 * count, S, S, 3]`, what they are, and `(decoded, transformed)` of photographs."""
    import numpy as np
    from PIL import Image

    from jaxcls import loading
    from jaxcls.data.decode import DecodeError
    from jaxcls.data.sources.image_folder import find_images

    count, size = 2 * args.count, args.image_size
    if not args.images:
        rng = np.random.default_rng(args.seed)
        return rng.integers(256, size=(count, size, size, 3), dtype=np.uint8), f"{args.count} images of noise", []
    paths = find_images(Path(args.images))[:count]
    pairs = []
    for path in paths:
        try:
            encoded = path.read_bytes()
            prepared = loading.prepare(encoded, _how(args))
            pairs.append((Image.open(io.BytesIO(encoded)).convert("RGB"), prepared))
        except (OSError, DecodeError) as error:
            raise DataError(f"image {path} cannot be used: {error}") from error
    if len(pairs) < count:
        raise DataError(f"{args.images} holds {len(pairs)} images; {count} are needed for --count={args.count}")
    return np.stack([picture for _, picture in pairs]), f"{args.count} photographs of {args.images}", pairs


def _how(args) -> dict[str, Any]:
    from jaxcls import loading
    from jaxcls.config import DataConfig

    return loading.preprocessing(DataConfig(image_size=args.image_size))


def _network(args, images):
    """The PyTorch network with its weights, and what it is."""
    import torch

    from jaxcls import loading
    from jaxcls.interop import torch_files, torch_resnet, torch_side, torch_weights

    file = torch_files.read(Path(args.torch), ema=args.ema) if args.torch else None
    arrays = file and torch_weights.strip_prefixes(file.arrays)
    if args.torch_module:
        net = _make_module(args.torch_module, args.image_size)
        if arrays:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            try:
                net.load_state_dict(tensors, strict=True)
            except RuntimeError as error:
                raise ConfigError(
                    f"{args.torch} does not fit {args.torch_module}: {' '.join(str(error).split())[:300]}"
                ) from error
        return net, args.torch_module + (f" with {args.torch}" if arrays else "")
    if arrays:
        try:
            _, options, names = loading.from_state(arrays, args.model)
        except CheckpointError as error:
            raise CheckpointError(f"{args.torch}: {error}") from error
        net = torch_resnet.build(options["name"], options["num_classes"], options["se_width"])
        torch_resnet.load_state(net, arrays)
        return net, f"{args.torch} ({names} names)"
    torch.manual_seed(args.seed)
    net = torch_resnet.build(args.model)
    torch_resnet.randomize(net, args.seed)
    torch_side.calibrate(net, images)
    return net, f"random weights (seed {args.seed}), BN calibrated"


def _make_module(text: str, image_size: int):
    import torch

    place, _, factory = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        net = getattr(importlib.import_module(place), factory or "model")()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--torch-module={text} cannot be made ({type(error).__name__}: {error})") from error
    if not isinstance(net, torch.nn.Module):
        raise ConfigError(f"--torch-module={text} made a {type(net).__name__}, not a torch.nn.Module")
    while isinstance(net, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        net = net.module
    try:
        with torch.no_grad():
            parameter = next(net.parameters())
            logits = net.eval()(torch.zeros(1, 3, image_size, image_size, dtype=parameter.dtype))
    except Exception as error:
        raise ConfigError(f"--torch-module={text} fails on an image ({type(error).__name__}: {error})") from error
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        raise ConfigError(f"--torch-module={text} must return logits [N, classes], not a {type(logits).__name__}")
    return net


def _known_differences(args) -> list[str]:
    """Where the two sides are set to differ, which the reference's own figures will show."""
    found = []
    if args.decay_bn != "reference":
        found.append(f"decay_bn={args.decay_bn}: the reference decays the shortcuts' BN and no other (--decay-bn=reference)")
    if args.every != "epoch":
        found.append(f"every={args.every}: the reference's learning rate is constant within an epoch (--every=epoch)")
    return found


def _jsonable(value: Any) -> Any:
    """JSON has no infinity: where shapes differ or values are NaN, an error is null."""
    if isinstance(value, dict):
        return {name: _jsonable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv))
