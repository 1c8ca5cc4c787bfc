"""What can go wrong for a user: one line that names what was wrong, where, and what would be right, and an exit code."""


class JaxclsError(Exception):
    """A mistake or a fault that is reported in one line, never as a traceback."""

    exit_code = 1


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


class Interrupted(JaxclsError):
    """The run was told to stop; it saved its state and can be resumed."""

    exit_code = 75


class Warn(Exception):
    """What a check of `jaxcls doctor` found that a run survives."""
