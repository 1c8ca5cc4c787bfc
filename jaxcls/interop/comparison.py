"""The same weights and inputs on both sides, JAX's and PyTorch's: how far apart is what they compute, and from where on?

Everything is in float64, where rounding is near 1e-15 and a real difference stands out; float32 is measured beside it,
against PyTorch in float64. Errors are the largest difference over the largest value that PyTorch has.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image
from torch import nn

from jaxcls.config import OptimConfig, ScheduleConfig
from jaxcls.interop import jax_side, torch_side
from jaxcls.interop.torch_weights import Naming, from_torch, parameter_names, to_torch
from jaxcls.models.resnet import ResNet
from jaxcls.train.augment import Augment
from jaxcls.train.mixup import block_size, draw

ROUNDING = 1e-10  # in float64 an activation that is further off than this differs by more than rounding
SMOOTHING, MIXUP_ALPHA = 0.1, 0.2
PEAK_LR, MOMENTUM, DECAY = 0.05, 0.875, 1 / 16384


def compare_forward(
    model: ResNet, variables: Mapping[str, Any], net: nn.Module, naming: Naming, images: np.ndarray
) -> dict[str, Any]:
    """Evaluation of normalised `[N, H, W, 3]` on both sides.

    Returns:
      `logits` (`max_abs`, `max_rel`, `top1_agreement` in percent; in float32 the errors of both sides, and their ratio),
      `activations` in order of depth (`name`, `max_rel`, `note`, and the errors in float32), and `first_divergence`: the
      first of them that is further off than rounding, or `None`.
    """
    truth = torch_side.forward(net, naming, images, "float64")
    ours = jax_side.forward(model, variables, images, "float64")
    theirs32, ours32 = (
        torch_side.forward(net, naming, images, "float32"),
        jax_side.forward(model, variables, images, "float32"),
    )
    activations = []
    for name in ours:
        if name not in truth:
            continue
        right, note = _aligned(truth[name], ours[name])
        row = {"name": name, "max_rel": relative_error(ours[name], right), "note": note}
        row["float32"] = {
            "torch": relative_error(_aligned(theirs32[name], truth[name])[0], truth[name]),
            "jax": relative_error(ours32[name], right),
        }
        activations.append(row)
    apart = [row["name"] for row in activations if not row["max_rel"] <= ROUNDING]
    right, logits = truth["logits"], ours["logits"]
    return {
        "logits": {
            "max_abs": float(np.abs(logits - right).max()) if logits.shape == right.shape else math.inf,
            "max_rel": relative_error(logits, right),
            "top1_agreement": 100 * float(np.mean(logits.argmax(-1) == right.argmax(-1))),
            "float32": activations[-1]["float32"]
            | {"ratio": activations[-1]["float32"]["jax"] / max(activations[-1]["float32"]["torch"], 1e-300)},
        },
        "activations": activations,
        "first_divergence": apart[0] if apart else None,
    }


def compare_gradients(
    model: ResNet, variables: Mapping[str, Any], net: nn.Module, naming: Naming, images: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Loss and gradients of a training forward pass in float64, with label smoothing.

    Args:
      images: `[N, H, W, 3]`, normalised.
      labels: `[N]` int.

    Returns:
      `loss_torch`, `loss_jax`, `max_rel` and `worst` (the parameter's name), and `parameters`: every one's error.
    """
    targets = np.eye(model.num_classes)[labels]
    loss, right = torch_side.gradients(net, images, targets, SMOOTHING)
    own_loss, gradient = jax_side.gradients(model, variables, images, targets, SMOOTHING)
    ours = to_torch({"params": gradient, "batch_stats": variables["batch_stats"]}, naming)
    names = parameter_names(net.state_dict(), naming)
    errors = {names[key]: relative_error(ours[key], right[key]) for key in right}
    worst = max(errors, key=errors.__getitem__)
    return {"loss_torch": loss, "loss_jax": own_loss, "max_rel": errors[worst], "worst": worst, "parameters": errors}


def compare_training(
    model: ResNet,
    variables: Mapping[str, Any],
    net: nn.Module,
    naming: Naming,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    steps: int,
    reseat: bool,
    decay_bn: str = "reference",
    every: str = "epoch",
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Steps of SGD side by side in float64, with mixup, label smoothing, warm-up and cosine; two steps an epoch.

    Args:
      images: uint8 `[N, H, W, 3]`, N even; half of them is a batch. Mixup's draws are those of the JAX side.
      labels: `[N]` int.
      reseat: before each step the JAX side takes over PyTorch's state: training by itself is chaotic unless the last BN
        scale of each block is 0, so that rounding grows to the size of the weights in some twenty steps.
      decay_bn, every: of the JAX side's `optim` and `schedule`; the reference's are `reference` and `epoch`.

    Yields:
      for each step `loss_torch`, `loss_jax`, `lr_torch`, `lr_jax`, and the largest errors of `parameters`, of
      `updates` (of how far a parameter moved; where it is reseated) and of the BN `statistics`, with the `worst` parameter.
    """
    per_epoch, batch = 2, len(images) // 2
    epochs = math.ceil(steps / per_epoch)
    warmup = max(epochs // 5, 1)
    block = block_size(batch)
    theirs = torch_side.Trainer(net, momentum=MOMENTUM, decay=DECAY)
    ours = jax_side.Trainer(
        model,
        variables,
        OptimConfig(momentum=MOMENTUM, weight_decay=DECAY, decay_bn=decay_bn),
        ScheduleConfig(name="cosine", warmup_epochs=float(warmup), every=every),
        peak_lr=PEAK_LR,
        epochs=epochs,
        steps_per_epoch=per_epoch,
        label_smoothing=SMOOTHING,
        augment=Augment(mixup_alpha=MIXUP_ALPHA, block=block),
    )
    rates = torch_side.learning_rates(epochs, PEAK_LR, warmup)
    names = parameter_names(net.state_dict(), naming)
    key = jax.random.key(seed)
    for step in range(steps):
        if reseat and step > 0:
            momentum = theirs.momentum()
            state = theirs.state()
            ours.reset(step, from_torch(state, naming), from_torch(state | momentum, naming)["params"])
        before = theirs.state()
        chosen = slice(batch * (step % per_epoch), batch * (step % per_epoch + 1))
        pixels, targets = torch_side.normalized(images[chosen]), np.eye(model.num_classes)[labels[chosen]]
        with jax.enable_x64(True):
            weight, partner = draw(jax.random.fold_in(key, step), batch, alpha=MIXUP_ALPHA, block=block)
        lr = rates[step // per_epoch]
        mixed = {"weight": float(weight), "partner": np.asarray(partner)}
        loss = theirs.step(pixels, targets, lr=lr, smoothing=SMOOTHING, **mixed)
        own_loss, own_lr = ours.step(images[chosen], labels[chosen], key)
        right, found = theirs.state(), to_torch(ours.variables(), naming)
        weights = [name for name in names if "running" not in name]
        errors = {names[name]: relative_error(found[name], right[name]) for name in weights}
        moved = (relative_error(found[name] - before[name], right[name] - before[name]) for name in weights)
        statistics = (relative_error(found[name], right[name]) for name in names if "running" in name)
        worst = max(errors, key=errors.__getitem__)
        row = {"loss_torch": loss, "loss_jax": own_loss, "lr_torch": lr, "lr_jax": own_lr, "parameters": errors[worst]}
        yield row | {"worst": worst, "updates": max(moved) if reseat else None, "statistics": max(statistics)}


def compare_input(pairs: Sequence[tuple[Image.Image, np.ndarray]], how: Mapping[str, Any]) -> dict[str, float]:
    """The evaluation transform against the arithmetic that torchvision documents, carried out in float64.

    Args:
      pairs: images as Pillow decodes them, and what the evaluation transform made of them, uint8 `[S, S, 3]`.
      how: a metadata's `preprocessing`.

    Returns:
      `mean_abs` and `max_abs` difference of pixels, of 255.
    """
    differences = [np.abs(_evaluation_picture(image, how) - found) for image, found in pairs]
    return {
        "mean_abs": float(np.mean([difference.mean() for difference in differences])),
        "max_abs": float(max(difference.max() for difference in differences)),
    }


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the largest value expected; infinite where shapes differ or values are NaN."""
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return math.inf
    error, scale = np.abs(actual - expected).max(), np.abs(expected).max()
    return float(error / scale) if scale > 0 else (0.0 if error == 0 else math.inf)


def _aligned(theirs: np.ndarray, ours: np.ndarray) -> tuple[np.ndarray, str]:
    """PyTorch's array in our shape where a 1x1 image is all that differs, and a note if shapes differ otherwise."""
    if theirs.ndim == 4 and theirs.shape[1:3] == (1, 1) and ours.ndim == 2:
        theirs = theirs[:, 0, 0]  # a gate written as a 1x1 convolution: [N,1,1,C] -> [N,C]
    return theirs, "" if theirs.shape == ours.shape else f"shape {list(ours.shape)} in place of {list(theirs.shape)}"


def _evaluation_picture(image: Image.Image, how: Mapping[str, Any]) -> np.ndarray:
    """Shorter side to `eval_resize`, centre crop: float64 `[S, S, 3]`, rounded to whole pixel values."""
    size, short = how["image_size"], min(image.size)
    pixels = np.asarray(image.convert("RGB"), np.float64)
    height, width = (int(how["eval_resize"] * side / short) for side in pixels.shape[:2])
    rows, columns = (
        _filter(*sides, how["interpolation"]) for sides in ((pixels.shape[0], height), (pixels.shape[1], width))
    )
    pixels = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels, optimize=True).clip(0, 255).round()
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pixels[top : top + size, left : left + size]


def _filter(before: int, after: int, interpolation: str) -> np.ndarray:
    """`[after, before]` weights of an antialiased resize, whose kernel is stretched by the factor of the shrinking."""
    stretch = max(before / after, 1.0)
    centers = (np.arange(after)[:, None] + 0.5) * before / after
    x = np.abs((np.arange(before) + 0.5 - centers) / stretch)
    if interpolation == "bilinear":
        weights = (1 - x).clip(0)
    else:  # bicubic with a = -1/2, as Pillow's and torchvision's antialiased one
        weights = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    return weights / weights.sum(1, keepdims=True)
