"""The four networks in PyTorch, built independently of `jaxcls.models`, to compare with.

Written from the published description of the networks: nothing here is shared with the JAX side, not even the table of
depths and widths, so that a mistake on one side shows as a difference. The modules are named as the reference names its
own, so the state dicts have the same keys. Needs the `torch` extra; only tests and comparisons import it.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Architecture(NamedTuple):
    """A row of the table of networks."""

    blocks: tuple[int, int, int, int]  # of each stage
    width: int  # channels of the 3x3 convolutions in the first stage; doubles from stage to stage
    expansion: int  # a block's output channels over its width
    groups: int = 1  # of the 3x3 convolutions
    gated: bool = False  # squeeze-and-excitation
    stride_in_3x3: bool = True  # v1.5; v1 has it in the first 1x1


ARCHITECTURES = {
    "resnet50": Architecture((3, 4, 6, 3), 64, 4),
    "resnet50-v1": Architecture((3, 4, 6, 3), 64, 4, stride_in_3x3=False),
    "resnext101-32x4d": Architecture((3, 4, 23, 3), 128, 2, groups=32),
    "se-resnext101-32x4d": Architecture((3, 4, 23, 3), 128, 2, groups=32, gated=True),
}


class Gate(nn.Module):
    """Squeeze-and-excitation: `[N, C, H, W]` times a number in (0, 1) for each image and channel."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, width)
        self.expand = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.squeeze(x.mean((2, 3)))  # [N,C,H,W] -> [N,width]
        gate = torch.sigmoid(self.expand(torch.relu(gate)))  # [N,width] -> [N,C]
        return x * gate[:, :, None, None]


class Block(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch normalisation, and a residual connection around them."""

    def __init__(self, inputs: int, width: int, stride: int, architecture: Architecture, se_width: int):
        super().__init__()
        outputs = width * architecture.expansion
        stride_1x1, stride_3x3 = (1, stride) if architecture.stride_in_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride_1x1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride_3x3, padding=1, groups=architecture.groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.squeeze = Gate(outputs, se_width or outputs // 16) if architecture.gated else None
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        if self.squeeze is not None:
            y = self.squeeze(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    """`[N, 3, H, W]`, normalised, to logits `[N, num_classes]`; make one with `build`."""

    def __init__(self, architecture: Architecture, num_classes: int, se_width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, stages = 64, []
        for index, count in enumerate(architecture.blocks):
            width, blocks = architecture.width * 2**index, []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(Block(channels, width, stride, architecture, se_width))
                channels = width * architecture.expansion
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.bn1(self.conv1(images))))  # [N,3,H,W] -> [N,64,H/4,W/4]
        x = self.layers(x).mean((2, 3))  # -> [N,C]
        return self.fc(x)


def build(name: str, num_classes: int = 1000, se_width: int = 16, zero_init_last_bn: bool = False) -> nn.Module:
    """The network called `name`, freshly initialised: He-normal (fan-in) convolutions, PyTorch's default elsewhere.

    Args:
      name: a key of `ARCHITECTURES`.
      num_classes: outputs of the classifier.
      se_width: units of a squeeze-and-excitation gate; 0 means a sixteenth of the block's channels.
      zero_init_last_bn: set the scale of each block's last BN to 0.

    Raises:
      ValueError: an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"no network is called {name!r}; known: {', '.join(ARCHITECTURES)}")
    model = TorchResNet(ARCHITECTURES[name], num_classes, se_width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if isinstance(module, Block) and zero_init_last_bn:
            nn.init.zeros_(module.bn3.weight)
    return model


def randomize(net: nn.Module, seed: int) -> None:
    """Random scales and biases of BN, in place, so that nothing is 0 or 1; the last of a block small, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
    for module in net.modules():
        if isinstance(module, Block):
            module.bn3.weight.data /= 4  # with 33 blocks of full weight gradients would grow by depth


# Other families' names, and those of the reference.
RENAMED = ((r"^(module\.|_orig_mod\.)+", ""), (r"\.se\.fc1\.", ".squeeze.squeeze."), (r"\.se\.fc2\.", ".squeeze.expand."))


def load_state(net: TorchResNet, state: Mapping[str, np.ndarray]) -> None:
    """Loads a state dict into a network of `build`, strictly, whichever family its names are of.

    Raises:
      RuntimeError: names or shapes that do not fit.
    """
    own = {}
    for name, array in state.items():
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"^layer([1-4])\.", lambda match: f"layers.{int(match[1]) - 1}.", name)
        if ".squeeze." in name and array.ndim == 4:
            array = array.reshape(array.shape[:2])  # a 1x1 convolution
        own[name] = torch.from_numpy(np.array(array, np.float64 if array.dtype == np.float64 else np.float32))
    counters = {name for name in net.state_dict() if name.endswith("num_batches_tracked")}
    own |= {name: torch.zeros(()) for name in counters - own.keys()}  # old checkpoints have none
    if any(tensor.dtype == torch.float64 for tensor in own.values()):
        net.double()
    net.load_state_dict(own, strict=True)
