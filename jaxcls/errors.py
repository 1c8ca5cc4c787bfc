"""What can go wrong for a user: one line that names what was wrong, where, and what would be right, and an exit code."""


class JaxclsError(Exception):
    """A mistake or a fault that is reported in one line, never as a traceback."""

    exit_code = 1
    at_once = False  # end the process without waiting for threads or for other processes
    shared = False  # all processes of the run fail by this very error, so that they can leave together


class ConfigError(JaxclsError):
    """A wrong command, flag or configuration."""

    exit_code = 2


class DataError(JaxclsError):
    """A data set or an image that cannot be used."""

    exit_code = 3


class CheckpointError(JaxclsError):
    """A checkpoint or weights that cannot be used."""

    exit_code = 4


class RunError(JaxclsError):
    """The run failed; its last checkpoint is intact."""

    exit_code = 5
    at_once = True  # threads that still try to write would have the last word as Python ends


class Interrupted(JaxclsError):
    """The run was told to stop; it saved its state and can be resumed."""

    exit_code = 75
    shared = True


class Warn(Exception):
    """What a check of `jaxcls doctor` found that a run survives."""
