"""What `jaxcls doctor` looks at: each check gives a sentence, or raises what stands in a run's way."""

import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from jaxcls.config import Config
from jaxcls.data import turbo
from jaxcls.data.decode import DecodeError, open_image
from jaxcls.data.pipeline import train_batches
from jaxcls.data.sources import Source
from jaxcls.errors import CheckpointError, DataError, RunError, Warn
from jaxcls.machine import cores
from jaxcls.memory import compile_tidily, machine_memory, program_bytes
from jaxcls.train.programs import Programs
from jaxcls.train.setup import Task
from jaxcls.workdir import begun, check_config

SNUG = 0.9  # of the memory; more is worth a word
GIB = 2**30


def devices(wanted: int | None, processes: int) -> str:
    """The devices and processes that JAX finds; `processes` is what the launcher says, `wanted` what the user does."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    found = f"{count} x {kind} in {jax.process_count()} process" + ("es" if jax.process_count() > 1 else "")
    if processes != jax.process_count():
        raise RunError(f"{found}, but the launcher started {processes} processes; they do not find each other")
    if wanted is not None and wanted != count:
        raise RunError(f"{found}, and --devices={wanted} are expected")
    if jax.default_backend() == "cpu" and Path("/dev/nvidia0").exists():
        raise Warn(f"{found}, but there is a GPU; pip install 'jaxcls[cuda13]' (or cuda12) makes use of it")
    return found


def data(sources: dict[str, Source], config: Config) -> str:
    """That the first image of each split decodes, and how many records and classes there are."""
    for split, source in sources.items():
        if not len(source):
            raise DataError(f"no {split} images in {config.data.source} {config.data.path or ''}")
        try:
            open_image(source[0]["image"]).pixels()
        except (DecodeError, OSError) as error:
            raise DataError(f"the first {split} image, {source.id(0)}, cannot be used ({error})") from error
    counts = " and ".join(f"{len(source):,} {split}" for split, source in sources.items())
    return f"{counts} images of {len(sources['train'].classes)} classes from {config.data.source}; the first of each decode"


def decoder() -> str:
    """What decodes JPEGs."""
    if turbo.LIBRARY is None:
        return "simplejpeg, whole rows; pip install 'jaxcls[turbo]' decodes crops alone, which is faster"
    return "libjpeg-turbo 3, crops alone"


def input_rate(source: Source, config: Config, seconds: float) -> str:
    """How many training images come in a second, measured for so long."""
    batch = min(config.train.batch_size, len(source))
    batches = train_batches(source, config.data, batch_size=batch, seed=0, start_step=0, stop_step=10**6)
    next(batches)
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        next(batches)
        count += batch
    rate = count / (time.perf_counter() - began)
    batches.close()
    return f"{rate:,.0f} training images/s on {cores()} cores (a measurement of {seconds:g} s)"


def split_of_batch(task: Task) -> str:
    """How a global batch is shared; that it can be is known, since there is a task."""
    batch, share = task.config.train.batch_size, task.config.train.batch_size // task.mesh.size
    return f"train.batch_size={batch}: {share} images on each of {task.mesh.size}; {task.steps_per_epoch:,} steps an epoch"


def step_memory(task: Task, limit: int | None = None) -> str:
    """What the compiled training step needs of a device's memory (of the machine's, if it is the device).

    Args:
      limit: bytes that there are; by default as many as the device says or the machine has.
    """
    needed = sum(program_bytes(compile_tidily(Programs(task).lower_train())).values())
    device = task.mesh.local_devices[0]
    sharing = len(task.mesh.local_devices) if device.platform == "cpu" else 1
    limit = (limit or (device.memory_stats() or {}).get("bytes_limit") or machine_memory()) // sharing
    found = f"{needed / GIB:.2f} GiB for a training step, of {limit / GIB:.1f} GiB for each device"
    if needed > limit:
        raise RunError(
            f"{found}; a smaller train.batch_size than {task.config.train.batch_size}, or a larger train.grad_accum than "
            f"{task.config.train.grad_accum}, needs less"
        )
    if needed > SNUG * limit:
        raise Warn(f"{found}: hardly any is left")
    return found


def disk(workdir: Path, state_bytes: int, keep: int, free: int | None = None) -> str:
    """That the checkpoints have room: those kept, the best, and the one being written.

    Args:
      free: bytes; by default those of the disk that `workdir` is on.
    """
    free = shutil.disk_usage(_existing(workdir)).free if free is None else free
    there = sum(1 for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
    needed = max(1, keep + 2 - there) * state_bytes
    found = f"{free / GIB:.1f} GiB free; {keep + 2} checkpoints of {state_bytes / GIB:.2f} GiB"
    found += f", of which {there} are there, need {needed / GIB:.1f}" if there else f" need {needed / GIB:.1f}"
    if needed > free:
        raise RunError(f"{found}; make room, or set a smaller checkpoint.keep")
    return found


def own_workdir(workdir: Path, config: Config) -> str:
    """That the run directory can be written to, and is not that of another run."""
    place = _existing(workdir)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise RunError(f"{place} cannot be written to ({error.strerror}); take another --workdir") from error
    check_config(workdir, config)
    if begun(workdir) and (workdir / "config.json").exists():
        return f"{workdir} holds a run of this config, which will be resumed"
    return f"{workdir} can be " + ("written to" if place == workdir else "made")


def shared_workdir(workdir: Path, index: int, count: int, barrier: Callable[[str], None]) -> str:
    """That all processes see the same directory: each writes a token, and must see those of all others.

    Args:
      barrier: returns when all processes have come to it; takes a name.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    token = workdir / f".doctor-{index}"
    token.write_text(platform.node())
    barrier("tokens are written")
    missing = [other for other in range(count) if not (workdir / f".doctor-{other}").exists()]
    barrier("tokens are seen")
    token.unlink(missing_ok=True)
    if missing:
        raise RunError(
            f"{workdir} is not shared: process {index} of {count} on {platform.node()} does not see what process "
            f"{missing[0]} wrote there; --workdir must be on a disk that all of them have"
        )
    return f"{workdir} is seen by all {count} processes"


def initial_weights(origin: str | None) -> str:
    """That `checkpoint.init_from` is there."""
    if origin is None:
        return "a fresh start, or the newest checkpoint of the workdir"
    if not Path(origin).exists():
        raise CheckpointError(f"checkpoint.init_from={origin} is not there")
    return f"{origin} is there"


def compilation_cache() -> str:
    """That compiled programs can be kept."""
    place = jax.config.jax_compilation_cache_dir
    if not place:
        raise Warn("none: every start compiles anew")
    if re.match(r"\w+://", place):
        return place
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise Warn(f"{place} cannot be written to ({error.strerror}): every start compiles anew") from error
    return place


def _existing(path: Path) -> Path:
    """The path, or its nearest ancestor that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def bytes_of(leaves: Sequence) -> int:
    """Of arrays, or of their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
