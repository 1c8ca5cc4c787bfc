"""Any network on scikit-learn's 1,797 handwritten digits, enlarged to 32 px: minutes on a CPU, nothing to download.

    python -m jaxcls.main --config configs/digits.py                          # ResNet-50
    python -m jaxcls.main --config configs/digits.py:se-resnext101-32x4d

Measured accuracy and time: see README.md.
"""

from jaxcls.config import apply_digits_preset, default_config


def get_config(network: str = "resnet50"):
    config = default_config()
    config.model.name = network
    apply_digits_preset(config)
    return config
