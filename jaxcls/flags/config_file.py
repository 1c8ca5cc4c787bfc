"""Config files and overrides: `--config FILE[:ARG]` and `--config.KEY=VALUE`.

They read as ml-collections' flags do, and files return a ConfigDict; but values are parsed by the types of `jaxcls.config`.
ml-collections goes by the value that is there, and so cannot set a key that is None, takes `1.2` for an int as a crash, and
turns `a,b` into one string.
"""

import argparse
import difflib
import importlib.util
import inspect
import traceback
from pathlib import Path
from typing import NoReturn

import ml_collections

from jaxcls.config import keys, unknown_key
from jaxcls.errors import ConfigError


def split_overrides(rest: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """`["--config.a.b=1", "--config.c", "2"]` as `{"a.b": "1", "c": "2"}`."""
    overrides = {}
    rest = list(rest)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            _refuse(flag, parser)
        key, equals, value = flag.removeprefix("--config.").partition("=")
        if key not in keys():
            raise unknown_key(key)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--config.{key} needs a value: --config.{key}=VALUE")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _refuse(flag: str, parser: argparse.ArgumentParser) -> NoReturn:
    if not flag.startswith("-"):
        raise ConfigError(f"unexpected argument {flag!r}; flags start with --, such as --config configs/resnet50.py")
    name = flag.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    known += [f"--config.{key}" for key in keys()]
    near = difflib.get_close_matches(name, known, 1)
    raise ConfigError(f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else ""))


def load_config(path_and_argument: str) -> tuple[ml_collections.ConfigDict, str]:
    """Runs `get_config` of `FILE[:ARG]`.

    Returns:
      the ConfigDict and its name: the file's stem, and the argument if there is one.

    Raises:
      ConfigError: no such file, it has no `get_config`, or it failed (the message has the line).
    """
    file, _, argument = path_and_argument.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"there is no config file {file}" + _nearest_file(path))
    try:
        spec = importlib.util.spec_from_loader(path.stem, loader=None)
        module = importlib.util.module_from_spec(spec)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"config file {file} has no function get_config")
        if argument and not inspect.signature(module.get_config).parameters:
            raise ConfigError(f"config file {file} takes no argument, but :{argument} was given")
        config = module.get_config(*([argument] if argument else []))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"config file {_place(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"config file {file}: get_config returned {type(config).__name__}, not a ConfigDict")
    return config, path.stem + (f"-{argument}" if argument else "")


def _nearest_file(path: Path) -> str:
    siblings = sorted(str(sibling) for sibling in path.parent.glob("*.py")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), siblings, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f" (looked from {Path.cwd()})"


def _place(error: Exception, path: Path) -> str:
    """`file:line` where a config file failed."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
