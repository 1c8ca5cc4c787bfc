"""Several processes as one run: joining them, agreeing, and what happens when one of them goes.

Alone, all of this does nothing. What passes between processes here does so at the start and between epochs; the steps
themselves carry what they have to agree on in between (`jaxcls.train.agreement`).
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcls import __version__, errors
from jaxcls.config import Config, flatten, to_dict
from jaxcls.errors import ConfigError, Interrupted, JaxclsError, RunError
from jaxcls.launch import COORDINATOR_VARIABLE, Launch

HEARTBEAT_TIMEOUT = 60  # seconds of silence after which a process counts as dead
SHUTDOWN_TIMEOUT = 60  # seconds that a process which has finished waits for the others

# What may differ from host to host: where the data lies, and how it is read.
LOCAL_KEYS = ("data.path", "data.workers", "data.threads", "data.prefetch", "data.timeout_seconds", "data.cache")

# Words of the errors that collectives end with when a process has gone.
_GONE = ("gloo", "nccl", "coordination service", "connection reset", "connection closed", "socket closed", "heartbeat")

T = TypeVar("T")


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(launch: Launch, logs: Path) -> Iterator[int]:
    """While entered, this process is one of the run's; yields how many there are.

    When the block is left because of an error, the others do not wait for this process: it ends at once, and they by
    `RunError`. Only if all of them fail in the same way (`JaxclsError.shared`) they leave together.

    Args:
      launch: how this process was started.
      logs: directory for what the libraries below JAX write to standard output and error.

    Raises:
      ConfigError: JAX cannot find the other processes.
      RunError: they were not there in time, or one of them has gone.
    """
    if launch.processes == 1:
        yield 1
        return
    name = socket.gethostname() if launch.process is None else f"process-{launch.process}"
    last_words, end = _catch_aborts(_divert_native_output(logs / f"{name}.log"))
    last_words.value = _nobody_there(launch)
    with _ended_by_signals(), _ended_after(launch.timeout, end):
        _initialize(launch)
    last_words.value = f"jaxcls: {_gone()}".encode()
    try:
        _check_devices()
        yield jax.process_count()
    except JaxclsError as error:
        if error.shared:
            jax.distributed.shutdown()
        else:
            error.at_once = True
        raise
    except KeyboardInterrupt:
        error = Interrupted("interrupted before the run began")
        error.at_once = True
        raise error from None
    except Exception as error:
        if not any(word in str(error).lower() for word in _GONE):
            traceback.print_exc()
            os._exit(1)
        gone = RunError(_gone())
        gone.at_once = True
        raise gone from error
    jax.distributed.shutdown()  # waits for the others


def _initialize(launch: Launch) -> None:
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    if launch.process == 0 and launch.coordinator is not None:
        _check_free(launch.coordinator)
    try:
        jax.distributed.initialize(
            launch.coordinator,
            launch.processes,
            launch.process,
            cluster_detection_method="deactivate" if launch.by == "the flags" else None,
            initialization_timeout=launch.timeout,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except Exception as error:
        unknown = isinstance(error, ValueError) and ("should be defined" in str(error) or "must be defined" in str(error))
        if launch.processes is None and unknown:
            return  # nothing says that there are others
        why = "it does not say where process 0 is" if unknown else f"{type(error).__name__}: {' '.join(str(error).split())}"
        count = "" if launch.processes is None else f" {launch.processes}"
        raise ConfigError(
            f"JAX cannot find the{count} processes that {launch.by} started ({why}); set {COORDINATOR_VARIABLE}=HOST:PORT "
            "or give --coordinator, --processes and --process"
        ) from error


def _check_devices() -> None:
    devices = Counter(device.process_index for device in jax.devices())
    for index, count in sorted(devices.items()):
        if count != devices[0]:
            raise _shared(
                ConfigError(f"process {index} has {count} devices and process 0 has {devices[0]}; give all the same")
            )


def _check_free(coordinator: str) -> None:
    """JAX would crash if the port were taken."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise RunError(f"port {port} of --coordinator={coordinator} cannot be used ({error.strerror})") from error


def _nobody_there(launch: Launch) -> bytes:
    place = f"coordinator {launch.coordinator}" if launch.coordinator else f"the coordinator that {launch.by} names"
    of = "" if launch.processes is None else f"; this is process {launch.process} of {launch.processes}"
    return (
        f"jaxcls: the processes of this run did not meet at {place} within {launch.timeout} s "
        f"(--join-timeout){of}; are all started, and is the address right?"
    ).encode()


def _gone() -> str:
    return "another process of this run has gone; the last checkpoint is intact: run the same command to resume"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """There is nothing to save yet, and Python would not see a signal while JAX waits."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _ended_after(seconds: float, end: Callable[[], None]) -> Iterator[None]:
    """Calls `end` after `seconds` in here: JAX itself takes up to 15 seconds longer than it was told to."""
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _divert_native_output(log: Path) -> int:
    """Sends what is not written by Python to `log`; returns the file descriptor of the true standard error.

    JAX's runtime reports the end of another process in twenty lines, and a process that waits for peers is chatty.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        native = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    except OSError as error:
        raise RunError(f"{log} cannot be written ({error.strerror})") from error
    for stream, number in (("stdout", 1), ("stderr", 2)):
        getattr(sys, stream).flush()
        setattr(sys, stream, os.fdopen(os.dup(number), "w", buffering=1, errors="backslashreplace"))
        os.dup2(native, number)
    return sys.stderr.fileno()


def _catch_aborts(stderr: int) -> tuple[ctypes.Array, Callable[[], None]]:
    """Makes abort() end the process with a line and RunError's exit code.

    JAX's runtime aborts the process when the coordinator does not answer or a process has gone, and has no working hook.

    Returns:
      what holds the line, as its `value`, and a function that ends the process in the same way.
    """
    words = ctypes.create_string_buffer(1024)

    def end():
        os.write(stderr, words.value + b"\n")
        os._exit(RunError.exit_code)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _number: end())
    words.handler = handler  # must live as long
    system = ctypes.CDLL(None).signal
    system.argtypes, system.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    system(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    return words, end


# Agreement


def together(body: Callable[[], T]) -> T:
    """The result of `body`, which every process runs; if it fails on one, it fails on all with that error."""
    if jax.process_count() == 1:
        return body()
    result, failure = None, ("", "")
    try:
        result = body()
    except JaxclsError as error:
        failure = (type(error).__name__, str(error))
    for index, told in enumerate(gather(json.dumps(failure))):
        kind, message = json.loads(told)
        if kind:
            raise _shared(getattr(errors, kind)(message if index == 0 else f"process {index}: {message}"))
    return result


def gather(text: str) -> list[str]:
    """The texts of all processes, by their order, on each of them. All must call it at the same point."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(mine)))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(mine)] = mine
    everything = multihost_utils.process_allgather(padded)  # [processes, longest]
    return [bytes(row[:length]).decode() for row, length in zip(everything, lengths, strict=True)]


def identity(config: Config) -> dict[str, Any]:
    """What processes of one run have in common: the code, and the config but for what is a host's own affair."""
    code = f"jaxcls {__version__} (source {source_digest()}) on jax {jax.__version__}"
    return {"code": code} | {key: value for key, value in flatten(to_dict(config)).items() if key not in LOCAL_KEYS}


def agree(facts: Mapping[str, Any]) -> None:
    """Refuses processes that differ.

    Args:
      facts: what must be the same, by its name in the message.

    Raises:
      ConfigError: names the first difference, on all processes alike.
    """
    if jax.process_count() == 1:
        return
    first, *others = (json.loads(told) for told in gather(json.dumps(facts)))
    for index, theirs in enumerate(others, 1):
        for name in [*first, *(theirs.keys() - first.keys())]:
            if first.get(name) != theirs.get(name):
                raise _shared(
                    ConfigError(
                        f"the processes differ: {name} is {first.get(name)} in process 0 and {theirs.get(name)} in process "
                        f"{index}; start all with the same command, code and data"
                    )
                )


def source_digest() -> str:
    """A short hash of the package's source files."""
    root, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def replicate(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """The arrays of process 0, on all devices: so that no process starts from values of its own."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    tree = multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree)


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's share of an array that is split along its first axis, in host memory."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _shared(error: JaxclsError) -> JaxclsError:
    error.shared = True
    return error
