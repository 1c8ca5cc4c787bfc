"""What all commands share: errors as one line and an exit code."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from jaxcls.errors import ConfigError, Interrupted, JaxclsError, RunError


def run(
    body: Callable[[], None], *, interrupted: str = "interrupted", unread: str | None = None, unread_code: int = 0
) -> int:
    """Runs a command; returns its exit code (see `jaxcls.errors`), after a line on standard error if it failed.

    Args:
      body: the command.
      interrupted: what to say when Ctrl-C stops it.
      unread, unread_code: what to say, and the exit code, when the reader of the output, such as `head`, has gone.
    """
    with contextlib.suppress(AttributeError):  # in its place may be anything that can be written to
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be UTF-8
    try:
        body()
    except JaxclsError as error:
        print(f"jaxcls: {error}", file=sys.stderr, flush=True)
        if error.at_once:
            _end_at_once(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"jaxcls: {interrupted}", file=sys.stderr, flush=True)
        _end_at_once(Interrupted.exit_code)  # XLA may still be compiling; its threads crash while Python takes itself apart
    except BrokenPipeError:
        _drop_output()
        if unread:
            print(f"jaxcls: {unread}", file=sys.stderr)
        return unread_code
    except (AssertionError, RuntimeError, ValueError) as error:
        if not _of_jax_as_it_starts(error):
            raise
        asked = {name: value for name, value in os.environ.items() if name.startswith("JAX_")}
        settings = ", ".join(f"{name}={value}" for name, value in asked.items()) or "this environment"
        why = " ".join(str(error).split()) or "no such platform is installed"
        print(f"jaxcls: JAX does not start with {settings}: {why}", file=sys.stderr)
        return ConfigError.exit_code
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("jaxcls: the output cannot be written (no space left); make room and run the command again", file=sys.stderr)
        _drop_output()
        return RunError.exit_code
    return 0


def _of_jax_as_it_starts(error: Exception) -> bool:
    """Whether JAX raised it while it looked at its settings or for its devices."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    if files[-1].endswith(("jax/_src/xla_bridge.py", "jax/_src/config.py")):
        return True
    # Inside of a transformation JAX leaves its own frames out; but what does not start then does not start now.
    try:
        if jax := sys.modules.get("jax"):
            jax.devices()
    except (AssertionError, RuntimeError):
        return True
    return False


def check_writable(path: str | None, flag: str | None = None) -> None:
    """Refuses a file to write, if there is one, before the work; `flag` is where the user gave it.

    Raises:
      ConfigError: it is a folder, or its own is not there or cannot be written to.
    """
    if not path:
        return
    name, folder = f"{flag}={path}" if flag else path, Path(path).absolute().parent
    try:
        is_folder = path.endswith("/") or Path(path).is_dir()
        good = folder.is_dir() and os.access(folder, os.W_OK)
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise ConfigError(f"{name} cannot be written ({error.strerror})") from error
    if is_folder:
        raise ConfigError(f"{name} cannot be written: it is a folder")
    if not good:
        raise ConfigError(f"{name} cannot be written: {folder} is not a folder that can be written to")


@contextlib.contextmanager
def before_files(*paths: str | None) -> Iterator[None]:
    """Around the printing of what goes into files afterwards, if any: that the reader of the output, such as `head`, has
    gone must not pass for success then.

    Raises:
      RunError: it has.
    """
    try:
        yield
    except BrokenPipeError:
        if not any(paths):
            raise
        _drop_output()
        unwritten = ", ".join(path for path in paths if path)
        raise RunError(f"the reader of the output has gone; {unwritten} was not written") from None


def _drop_output() -> None:
    """What is still to be printed, by Python as it ends, too, goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_at_once(code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # whose reader has gone
        sys.stdout.flush()
    os._exit(code)
