"""SE-ResNeXt101-32x4d on ImageNet, as the reference trains it.

    python -m jaxcls.main --config configs/se_resnext101_32x4d.py --config.data.path=IMAGENET

trains 90 epochs (`se_resnext101_32x4d.py:250ep` is the other published length) with a global batch of 128 images.
The reference's published runs use eight GPUs of 128 images each, in mixed precision:

    python -m jaxcls.main --config configs/se_resnext101_32x4d.py --config.data.path=IMAGENET \
        --config.train.batch_size=1024 --config.precision.policy=bf16

which makes the learning rate 0.256 * 1024 / 256 = 1.024, the weight decay 1/16384 and the warm-up 8 epochs.

`--config.data.source=tfds` in place of the path takes `imagenet2012` as TFDS prepared it (`docs/sources.md`).

Published top-1 of the reference (NVIDIA, 8 x A100, mixed precision): 80.03% after 90 epochs, 80.90% after 250
(50 epochs: not published). Of jaxcls: not run yet.
"""

from jaxcls.config import default_config, set_length


def get_config(length: str = "90ep"):
    config = default_config()
    config.model.name = "se-resnext101-32x4d"
    config.train.batch_size = 128
    set_length(config, length)
    config.optim.base_lr = 0.256  # per 256 images: 0.256 * 128 / 256 = 0.128 at this batch size
    return config
