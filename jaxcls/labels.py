"""Files of class names."""

import json
from pathlib import Path

from jaxcls.errors import ConfigError


def read(path: str, num_classes: int) -> list[str]:
    """The names of classes 0, 1, ... from a file.

    Args:
      path: text with a name a line; or JSON: a list of names, or a dict from index to name. A name that is a list, as
        ImageNet's `{"0": ["n01440764", "tench"]}`, is its last part.
      num_classes: how many names are needed.

    Raises:
      ConfigError: it cannot be read, or holds another number of names.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = (
            json.loads(text) if text.lstrip()[:1] in ("[", "{") else (text.removesuffix("\n").split("\n") if text else [])
        )
        if isinstance(names, dict):
            names = [names[str(index)] for index in range(len(names))]
        names = [name[-1] if isinstance(name, list) else name for name in names]
        if odd := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"{odd[0]!r} is not a name")
        names = [name.strip() for name in names]
        "".join(names).encode()  # what cannot be printed is refused
    except OSError as error:
        raise ConfigError(f"class names {path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise ConfigError(
            f"class names {path} are neither a name a line nor JSON ({type(error).__name__}: {error})"
        ) from error
    if len(names) != num_classes:
        raise ConfigError(f"{path} holds {len(names)} class names, and the network has {num_classes} classes")
    return names
