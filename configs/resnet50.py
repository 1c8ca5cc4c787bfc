"""ResNet-50 v1.5 on ImageNet, as the reference trains it.

    python -m jaxcls.main --config configs/resnet50.py --config.data.path=IMAGENET

trains 90 epochs (`resnet50.py:50ep` and `:250ep` are the other published lengths) with a global batch of 256 images. The
reference's published runs use eight GPUs of 256 images each, in mixed precision:

    python -m jaxcls.main --config configs/resnet50.py --config.data.path=IMAGENET \
        --config.train.batch_size=2048 --config.precision.policy=bf16

which makes the learning rate 0.256 * 2048 / 256 = 2.048, the weight decay 1/32768 and the warm-up 8 epochs.

`--config.data.source=tfds` in place of the path takes `imagenet2012` as TFDS prepared it (`docs/sources.md`).

Published top-1 of the reference (NVIDIA, mixed precision): 77.12% after 90 epochs and 78.43% after 250 on 8 x A100, 75.81%
after 50 on 16 x V100. Of jaxcls: not run yet.
"""

from jaxcls.config import default_config, set_length


def get_config(length: str = "90ep"):
    config = default_config()
    config.model.name = "resnet50"
    config.train.batch_size = 256
    set_length(config, length)
    config.optim.base_lr = 0.256  # per 256 images: 0.256 * 256 / 256 = 0.256 at this batch size
    return config
