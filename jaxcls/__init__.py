"""jaxcls: image classification in JAX."""

import importlib

__version__ = "0.1.0"

# Public names and where they live. They are resolved on first use, so that `import jaxcls` stays cheap: the data
# pipeline's worker processes import this package too, and have no use for JAX.
_PUBLIC = {
    "create_model": "jaxcls.models.registry",
    "list_models": "jaxcls.models.registry",
    "load": "jaxcls.loading",
    "preprocess": "jaxcls.loading",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxcls' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
