"""What every command's flags are made with: a parser whose errors are one line, and types of values."""

import argparse
from typing import NoReturn

from jaxcls.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and raises ConfigError instead of ending the process."""

    def __init__(self, prog: str, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)
