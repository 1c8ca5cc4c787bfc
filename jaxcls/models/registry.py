"""Network names, and what each one is."""

import difflib

from jaxcls.errors import ConfigError
from jaxcls.models.resnet import ResNet, Spec

MODELS = {
    "resnet50": Spec((3, 4, 6, 3), (64, 128, 256, 512), expansion=4),
    "resnet50-v1": Spec((3, 4, 6, 3), (64, 128, 256, 512), expansion=4, stride_in_first=True),
    "resnext101-32x4d": Spec((3, 4, 23, 3), (128, 256, 512, 1024), expansion=2, groups=32),
    "se-resnext101-32x4d": Spec((3, 4, 23, 3), (128, 256, 512, 1024), expansion=2, groups=32, squeeze_excite=True),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)


def create_model(name: str, *, num_classes: int, **options) -> ResNet:
    """The network called `name`; `options` are attributes of `ResNet`.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(MODELS)}"
        raise ConfigError(f"no network is called {name!r}; {hint}")
    return ResNet(MODELS[name], num_classes, **options)
