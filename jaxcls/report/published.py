"""What NVIDIA published of the PyTorch networks that these are compared with; jaxcls has run none of it.

Source: README.md of `resnet50v1.5`, `resnext101-32x4d` and `se-resnext101-32x4d` in PyTorch/Classification/ConvNets of
https://github.com/NVIDIA/DeepLearningExamples. Training in mixed precision (AMP, float16): top-1 on ImageNet's validation
images at 224 px from DGX A100 (8 x A100 80GB, container pytorch-20.12), images/s from the same (pytorch-21.03).
"""

from typing import NamedTuple

CITATION = "NVIDIA, published, not run by jaxcls"


class Published(NamedTuple):
    """The figures of one network."""

    top1: dict[int, float]  # percent, by epochs of training
    images_per_second: dict[int, int]  # of training, by the number of A100s


PUBLISHED = {
    "resnet50": Published({50: 75.81, 90: 77.12, 250: 78.43}, {1: 2470, 8: 16621}),  # 50 epochs: on DGX-2, 16 x V100
    "resnext101-32x4d": Published({90: 79.47, 250: 80.19}, {1: 1211, 8: 7925}),
    "se-resnext101-32x4d": Published({90: 80.03, 250: 80.90}, {1: 855, 8: 5779}),
}
