"""The PyTorch half of a comparison: what a network computes, as NumPy arrays in NHWC by jaxcls's names.

Everything is written from the reference's description, apart from the JAX half. Needs the `torch` extra.
"""

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from jaxcls.interop.torch_weights import Naming, module_names

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def normalized(images: np.ndarray) -> np.ndarray:
    """uint8 `[N, H, W, 3]` as float64, scaled to 0-1, ImageNet's mean subtracted, divided by its deviation."""
    return (images / 255.0 - MEAN) / STD


def calibrate(net: nn.Module, images: np.ndarray) -> None:
    """Sets the BN statistics to those of a training forward pass on normalised `[N, H, W, 3]`, in place."""
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # keep this batch's statistics only
    with torch.no_grad():
        net.train()(_tensor(images, next(net.parameters()).dtype))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


def forward(net: nn.Module, naming: Naming, images: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Evaluation: the output of each convolution, BN, dense layer, block and stage, and `logits`.

    Args:
      net: a network with `naming`'s names; it is not changed.
      images: `[N, H, W, 3]`, normalised.
      dtype: `float32` or `float64`, of the whole computation.

    Returns:
      `{"stem/conv": [N, H, W, C], ..., "logits": [N, classes]}`, as the network computes them.
    """
    net = copy.deepcopy(net).to(getattr(torch, dtype)).eval()
    found: dict[str, np.ndarray] = {}
    modules = dict(net.named_modules())
    for torch_name, name in module_names(net.state_dict(), naming).items():

        def keep(_module, _inputs, output, name=name):
            # A copy: the ReLU behind a BN may work in place.
            array = output.detach().numpy()
            found[name] = np.ascontiguousarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array).copy()

        modules[torch_name].register_forward_hook(keep)
    with torch.no_grad():
        logits = net(_tensor(images, getattr(torch, dtype)))
    return found | {"logits": logits.numpy()}


def gradients(
    net: nn.Module, images: np.ndarray, targets: np.ndarray, smoothing: float
) -> tuple[float, dict[str, np.ndarray]]:
    """The smoothed loss of a training forward pass in float64, and its gradient by each parameter, by PyTorch's names.

    Args:
      images: `[N, H, W, 3]`, normalised.
      targets: `[N, classes]`, rows that sum to one.
    """
    net = copy.deepcopy(net).double().train()
    loss = cross_entropy(net(_tensor(images, torch.float64)), torch.from_numpy(targets), label_smoothing=smoothing)
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in net.named_parameters()}


def learning_rates(epochs: int, peak: float, warmup: int) -> list[float]:
    """The reference's learning rate in each epoch: a linear warm-up, then a cosine to 0, constant within an epoch."""
    rates = []
    for epoch in range(epochs):
        after = epoch - warmup
        falling = 0.5 * (1 + math.cos(math.pi * after / (epochs - warmup))) if after >= 0 else None
        rates.append(peak * ((epoch + 1) / warmup if falling is None else falling))
    return rates


class Trainer:
    """Steps of the reference's optimizer in float64, on a copy of a network.

    Weight decay goes by name there, so the shortcuts' BN (`downsample.1`), whose name has no "bn", is decayed.
    """

    def __init__(self, net: nn.Module, *, momentum: float, decay: float):
        self.net = copy.deepcopy(net).double().train()
        named = dict(self.net.named_parameters())
        groups = [
            {"params": [named[name] for name in named if "bn" in name], "weight_decay": 0.0},
            {"params": [named[name] for name in named if "bn" not in name], "weight_decay": decay},
        ]
        self._optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum)

    def step(
        self, images: np.ndarray, targets: np.ndarray, *, lr: float, smoothing: float, weight: float, partner: np.ndarray
    ) -> float:
        """One step on mixed images and targets (`weight` of each record, the rest of its `partner`); returns the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        images, targets = (weight * x + (1 - weight) * x[partner] for x in (images, targets))
        self._optimizer.zero_grad()
        loss = cross_entropy(self.net(_tensor(images, torch.float64)), torch.from_numpy(targets), label_smoothing=smoothing)
        loss.backward()
        self._optimizer.step()
        return loss.item()

    def state(self) -> dict[str, np.ndarray]:
        """The state dict, copied."""
        return arrays(self.net.state_dict())

    def momentum(self) -> dict[str, np.ndarray]:
        """The momentum of each parameter, by its name, copied; before the first step there is none."""
        named = dict(self.net.named_parameters())
        return arrays({name: self._optimizer.state[parameter]["momentum_buffer"] for name, parameter in named.items()})


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors as NumPy arrays."""
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def _tensor(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(images).to(dtype).permute(0, 3, 1, 2)  # NHWC -> NCHW
