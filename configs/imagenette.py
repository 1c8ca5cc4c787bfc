"""ResNet-50 on Imagenette, ten classes of ImageNet (9,469 training and 3,925 evaluation images), from TFDS.

    pip install 'jaxcls[prepare]'                                              # TensorFlow, for the next line only
    tfds build imagenette/full-size-v2 --file_format=array_record              # downloads 1.5 GB
    python -m jaxcls.main --config configs/imagenette.py                       # any network: imagenette.py:NAME

Where TFDS keeps its data can be set with `--data_dir` there and `--config.data.path` here. 40 epochs of 9469 // 64 = 147
steps, with a learning rate of 0.256 * 64 / 256 = 0.064 after a warm-up of 4 epochs.

Expected: not run yet.
"""

from jaxcls.config import default_config


def get_config(network: str = "resnet50"):
    config = default_config()
    config.model.name = network
    config.data.source = "tfds"
    config.data.name = "imagenette/full-size-v2"
    config.train.batch_size = 64
    config.train.epochs = 40.0
    config.optim.base_lr = 0.256  # per 256 images: 0.256 * 64 / 256 = 0.064 at this batch size
    config.schedule.warmup_epochs = 4.0
    return config
