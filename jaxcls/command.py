"""What all commands share: errors as one line and an exit code."""

import errno
import os
import sys
from collections.abc import Callable

from jaxcls.errors import Interrupted, JaxclsError, RunError


def run(body: Callable[[], None], *, interrupted: str = "interrupted") -> int:
    """Runs a command; returns its exit code (see `jaxcls.errors`), after a line on standard error if it failed.

    Args:
      body: the command.
      interrupted: what to say when Ctrl-C stops it.
    """
    try:
        body()
    except JaxclsError as error:
        print(f"jaxcls: {error}", file=sys.stderr, flush=True)
        if error.at_once:
            sys.stdout.flush()
            os._exit(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"jaxcls: {interrupted}", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print("jaxcls: the output cannot be written (no space left); make room and run the command again", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RunError.exit_code
    return 0
