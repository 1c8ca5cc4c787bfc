"""A run in a process of its own, to be watched and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxcls.errors import ConfigError, JaxclsError, RunError

PROGRAM = (sys.executable, "-m", "jaxcls.recorded")
POLL_SECONDS = 0.005


class Trial:
    """One run in one workdir, by one command, which `start` starts again and again. Its output goes to `WORKDIR.log`."""

    def __init__(self, flags: Sequence[str], workdir: Path, program: Sequence[str] | None = None):
        self.command = [*(program or PROGRAM), *flags, "--workdir", str(workdir)]
        self.workdir = workdir
        self.log = workdir.with_name(workdir.name + ".log")
        self._process: subprocess.Popen | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Starts the process, in a session of its own, so that its workers end with it and a Ctrl-C does not reach it."""
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )

    def watch(self, until: Callable[[], bool], on_step: Callable[[int], None] = lambda step: None) -> bool:
        """Waits; returns true when `until()` is true, false when the process has ended before.

        Args:
          until: looked at every few milliseconds.
          on_step: told how many steps are done, about once a second.
        """
        told = 0.0
        while self._process.poll() is None:
            if until():
                return True
            if time.monotonic() - told > 1:
                told = time.monotonic()
                on_step(self.steps_done())
            time.sleep(POLL_SECONDS)
        return False

    def finish(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        """Waits for the end. Raises the error that the run ended with, if it failed."""
        self.watch(lambda: False, on_step)
        if code := self._process.returncode:
            raise self.failure(code)

    def kill(self) -> None:
        """Ends the process and its workers at once, by SIGKILL; nothing if it has ended."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def failure(self, code: int) -> JaxclsError:
        """What the run's last line says, as an error with its exit code."""
        lines = [line for line in self._said() if line.strip()] or ["it said nothing"]
        kinds = {kind.exit_code: kind for kind in JaxclsError.__subclasses__()}
        if lines[-1].startswith("jaxcls: ") and code in kinds:
            return kinds[code](lines[-1].removeprefix("jaxcls: "))
        return RunError(f"`{' '.join(self.command)}` ended with code {code}; its last line: {lines[-1]}")

    def steps_done(self) -> int:
        """The step of the last whole line of `metrics.jsonl`."""
        path = self.workdir / "metrics.jsonl"
        whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
        return json.loads(whole.rpartition(b"\n")[2])["step"] if whole else 0

    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints."""
        return sorted(int(path.name) for path in (self.workdir / "checkpoints").glob("*") if path.name.isdigit())

    def saving(self) -> bool:
        """Whether a checkpoint is being written (or was when the process was killed): orbax then has a directory `*tmp*`."""
        return any((self.workdir / "checkpoints").glob("*tmp*"))

    def resumed_at(self) -> list[int]:
        """The steps at which the starts up to now resumed, as they said."""
        return [int(line.split()[3]) for line in self._said() if line.startswith("Resuming at step ")]

    def _said(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []


def devices_found() -> tuple[str, int]:
    """(platform, devices) as a process finds them that is started here; this one then holds no device."""
    program = "import jax; print(jax.default_backend(), jax.local_device_count())"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if found.returncode:
        raise RunError(f"JAX finds no devices: {(found.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    platform, count = found.stdout.split()[-2:]
    return platform, int(count)


def devices_environment(wanted: int | None, platform: str, found: int) -> dict[str, str]:
    """Environment variables with which a process sees `wanted` devices, and computes the same each time.

    Raises:
      ConfigError: there are fewer.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if platform == "cpu":
        return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={wanted}".strip()} if wanted else {}
    environment = {"XLA_FLAGS": f"{flags} --xla_gpu_deterministic_ops=true".strip()} if platform == "gpu" else {}
    if wanted is None or wanted == found:
        return environment
    if wanted > found or platform != "gpu":
        raise ConfigError(
            f"--devices: {wanted} are wanted and {found} of kind {platform} are here; "
            + (f"at most {found} can be had" if wanted > found else "on a part of them only GPUs and CPUs can be used")
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(found)))).split(",")
    return environment | {"CUDA_VISIBLE_DEVICES": ",".join(visible[:wanted])}
