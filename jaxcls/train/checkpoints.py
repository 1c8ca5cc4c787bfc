"""Checkpoints of a run: the only user of orbax.

A checkpoint holds `{state, metadata}` under the step's number. The state is the `TrainState`; the metadata is JSON: the
loop's progress, the resolved config, the class names, and checksums of the state, which are compared when it is read.
There is no iterator state: the step is the position in the data.
"""

import json
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from jaxcls import hosts
from jaxcls.errors import CheckpointError, RunError

REPLACED = ".replaced"  # ends the name of a checkpoint whose step is being saved again


class Checkpoints:
    """The checkpoints in one directory: the newest ones, and the best by top-1.

    Saving is asynchronous: `save` returns when the state has been copied. A checkpoint takes its final name only when all
    of it is written, so a killed process leaves no half-written one behind; one that is written again is there until then.
    """

    def __init__(self, directory: Path, *, keep: int, warn: Callable[[str], None] = print, read_only: bool = False):
        """Opens `directory`, made if need be.

        Args:
          keep: number of newest checkpoints to keep, besides the best.
          warn: told of each checkpoint that cannot be read.
          read_only: change nothing in there.

        Raises:
          CheckpointError: opened `read_only`, a checkpoint's metrics are damaged, which orbax would not go past.
        """
        self.directory, self._warn = directory, warn
        self._last: tuple[int, Any, dict, float | None] = (-1, None, {}, None)  # the last save that was begun
        self._failed = False  # whether it, or the one before it, failed
        self._broken = []
        if read_only and (damaged := next(self._with_damaged_metrics(), None)):
            raise CheckpointError(
                f"checkpoint {damaged} cannot be read (damaged metrics); rename it to {damaged.name}.broken to do without"
            )
        if hosts.is_first() and not read_only:
            self._settle_replaced()
            self._broken = self._set_broken_aside()
        hosts.gather("")  # the others look when the first has done so
        best = BestN(get_metric_fn=_top1, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                best_fn=_top1,
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
            ),
            # Compressed, fp32 weights take 8% less of the disk and a third as much time again of the processor.
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(use_compression=False),
                "metadata": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: Any, metadata: dict, top1: float | None) -> None:
        """Starts to write a checkpoint; `top1` (percent) is that of an evaluation at this very step, if there was one.

        If the save before it failed, that is said, and this one takes its place.

        Raises:
          RunError: this save failed twice, or one before it and then this one, e.g. for a full disk.
        """
        try:
            self._wait_until_finished()
        except Exception as error:  # noqa: BLE001 (raised again the second time)
            self._forgive(error, f"that of step {step} takes its place")
        self._last = (step, state, _sealed(metadata | {"checksums": checksums(state)}), top1)
        self._begin()

    def wait(self) -> None:
        """Returns when the last save is on disk; one that failed is tried once more. Raises RunError if it failed again."""
        while True:
            try:
                self._wait_until_finished()
                return
            except Exception as error:
                if _gone(self._last[1]):
                    raise self._failure(error) from error
                self._forgive(error, "trying once more")
            self._begin()

    def _wait_until_finished(self) -> None:
        self._manager.wait_until_finished()
        self._failed = False
        if hosts.is_first():
            self._settle_replaced()

    def _begin(self) -> None:
        """Starts to write `self._last`, up to twice."""
        step, state, metadata, top1 = self._last
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), metadata=ocp.args.JsonSave(metadata))
        while True:
            try:
                if step in self._manager.all_steps():  # unreadable, or from before this step was evaluated
                    self._set_replaced_aside(step)
                self._manager.save(step, args=items, metrics=None if top1 is None else {"top1": top1}, force=True)
                return
            except Exception as error:  # noqa: BLE001 (raised again the second time)
                self._forgive(error, "trying once more")

    def _set_replaced_aside(self, step: int) -> None:
        """Renames a checkpoint that is about to be written again, until the new one is complete."""
        if hosts.is_first():
            (self.directory / str(step)).rename(self.directory / f"{step}{REPLACED}")
        hosts.gather("")
        self._manager.reload()

    def _settle_replaced(self) -> None:
        """Deletes the checkpoints set aside, or takes them back where the new one was never completed."""
        for path in self.directory.glob(f"*{REPLACED}"):
            step = path.with_suffix("")
            if step.exists():
                shutil.rmtree(path)
            else:
                path.rename(step)

    def _forgive(self, error: Exception, what_now: str) -> None:
        """Tells of a save that failed, if the one before it did not; else, or if others wait for this process, raises."""
        failure = self._failure(error)
        if self._failed or jax.process_count() > 1:
            raise failure from error
        self._failed = True
        self._warn(f"{failure.args[0].partition('; the last')[0]}; {what_now}")
        for part in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(part, ignore_errors=True)  # makes room
        self._manager.reload()  # what is on disk, and no more

    def close(self) -> None:
        """Waits for the last save and lets go of the directory. If an error is on its way, one of the save is told only."""
        on_its_way = sys.exception()
        try:
            self.wait()
        except RunError as failure:
            if on_its_way is None:
                raise
            self._warn(str(failure))
        self._manager.close()

    def _set_broken_aside(self) -> list[str]:
        """Renames checkpoints whose metrics cannot be read, at which orbax would refuse the whole directory."""
        broken = []
        for step in self._with_damaged_metrics():
            self._warn(f"checkpoint {step} cannot be read (damaged metrics); it is set aside as {step.name}.broken")
            aside = step.with_name(f"{step.name}.broken")
            shutil.rmtree(aside, ignore_errors=True)  # the same step, set aside before
            step.rename(aside)
            broken.append(step.name)
        return broken

    def _with_damaged_metrics(self) -> Iterator[Path]:
        """Checkpoints whose top-1 cannot be read, or is not that of their metadata."""
        for path in sorted(self.directory.glob("[0-9]*/metrics/metrics")):
            checkpoint = path.parents[1]
            if not checkpoint.name.isdigit():  # one that is set aside or half written
                continue
            try:
                top1 = float(json.loads(path.read_text())["top1"])
                noted = _noted_top1(checkpoint)
            except OSError as error:
                raise CheckpointError(f"checkpoint {checkpoint} cannot be read ({error.strerror})") from error
            except (ValueError, TypeError, KeyError):
                yield checkpoint
                continue
            if noted is not None and noted != top1:
                yield checkpoint

    def restore(self, template: Any) -> tuple[Any, dict] | None:
        """The newest readable checkpoint as `(state, metadata)`, or `None` if there is none at all.

        Args:
          template: a tree like the state, of arrays or `jax.ShapeDtypeStruct` with shardings.

        Raises:
          CheckpointError: there are checkpoints, but none that can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        placed = ocp.checkpoint_utils.construct_restore_args(template)
        for step in steps:
            items = ocp.args.Composite(
                state=ocp.args.PyTreeRestore(template, restore_args=placed), metadata=ocp.args.JsonRestore()
            )
            try:
                restored = self._manager.restore(step, args=items)
                state, metadata = restored["state"], restored["metadata"]
                _check_seal(metadata)
                if (noted := metadata["progress"]["step"]) != step:
                    raise ValueError(f"its metadata is that of step {noted}")
                _compare_checksums(state, metadata)
                return state, metadata
            except Exception as error:  # noqa: BLE001 (a damaged file may surface as anything)
                path = self.directory / str(step)
                self._warn(f"checkpoint {path} cannot be read ({_brief(error)}); trying the one before")
        if steps or self._broken:
            names = ", ".join([*map(str, steps), *self._broken])
            raise CheckpointError(
                f"none of the checkpoints {names} in {self.directory} can be read; restore one from a backup, or start "
                "anew in another --workdir"
            )
        return None

    def restore_weights(self, *, ema: bool = False) -> tuple[dict, dict, int]:
        """Weights of the best checkpoint by top-1, or the newest if none was evaluated; with `ema`, their averages there.

        Returns:
          `({"params", "batch_stats"}, metadata, step)`, the arrays in host memory.

        Raises:
          CheckpointError: there is none, it holds no averages, or it cannot be read.
        """
        best = self._manager.best_step()
        step = self._manager.latest_step() if best is None else best
        if step is None:
            raise CheckpointError(f"{self.directory} holds no checkpoint; a run directory is expected")
        path = self.directory.absolute() / str(step) / "state"
        try:
            with ocp.PyTreeCheckpointer() as reader:
                saved = reader.metadata(path).item_metadata.tree
                if ema and not saved.get("ema"):
                    raise CheckpointError(
                        f"{path.parent} holds no averaged weights (train.ema_decay was 0); leave --ema out"
                    )
                wanted = {name: (saved["ema"] if ema else saved)[name] for name in ("params", "batch_stats")}
                wanted = {"ema": wanted} if ema else wanted
                host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
                variables = reader.restore(
                    path, args=ocp.args.PyTreeRestore(wanted, restore_args=host, partial_restore=True)
                )
            variables = variables["ema"] if ema else variables
            metadata = self._manager.restore(step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore()))["metadata"]
            _check_seal(metadata)
            _compare_checksums({"ema": variables} if ema else variables, metadata)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"checkpoint {path.parent} cannot be read ({_brief(error)})") from error
        return variables, metadata, step

    def _failure(self, error: Exception) -> RunError:
        free = shutil.disk_usage(self.directory).free / 2**20 if self.directory.exists() else 0
        return RunError(
            f"checkpoint at step {self._last[0]} could not be written to {self.directory} ({_brief(error)}; "
            f"{free:.0f} MiB free); the last complete one is intact: make room and run the same command to resume"
        )


def read_state(directory: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of the state in one checkpoint, in host memory, by its path, such as `params/head/bias`.

    Raises:
      CheckpointError: it is not there, or cannot be read.
    """
    path = directory.absolute() / str(step) / "state"
    try:
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path).item_metadata.tree
            host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=host))
    except Exception as error:
        raise CheckpointError(f"checkpoint {path.parent} cannot be read ({_brief(error)})") from error
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def checksums(state: Any) -> dict[str, int]:
    """CRC-32 of the bytes of each part of a state, such as `params`."""
    sums: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        part = jax.tree_util.keystr(path[:1], simple=True)
        # Not of `leaf` itself, which would keep what NumPy sees of it, and could not give its memory to the next step then.
        array = np.ascontiguousarray(leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf)
        sums[part] = zlib.crc32(array.view(np.uint8), sums.get(part, 0))
    return sums


def _sealed(metadata: dict) -> dict:
    """Metadata with a checksum of itself."""
    return metadata | {"checksum": _checksum(metadata)}


def _check_seal(metadata: dict) -> None:
    """Raises ValueError if metadata that was sealed is not what was saved."""
    sealed = {name: value for name, value in metadata.items() if name != "checksum"}
    if metadata.get("checksum", (found := _checksum(sealed))) != found:
        raise ValueError("damaged: the checksum of its metadata differs")


def _checksum(metadata: dict) -> int:
    return zlib.crc32(json.dumps(metadata, sort_keys=True).encode())


def _noted_top1(checkpoint: Path) -> float | None:
    """The top-1 of the evaluation at a checkpoint's step by its metadata; `None` if that does not say, or cannot be read."""
    try:
        progress = json.loads((checkpoint / "metadata" / "metadata").read_text())["progress"]
        return progress["evaluation"]["top1"] if progress["evaluated_step"] == int(checkpoint.name) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None  # which `restore` will find


def _compare_checksums(state: Any, metadata: dict) -> None:
    """Raises ValueError if a part of the state is not what was saved."""
    saved = metadata.get("checksums", {})
    damaged = [part for part, sum_ in checksums(state).items() if saved.get(part, sum_) != sum_]
    if damaged:
        raise ValueError(f"damaged: the checksum of {', '.join(damaged)} differs")


def _gone(state: Any) -> bool:
    """Whether a later step has taken over the memory of a state."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))


def _top1(metrics: dict) -> float:
    return metrics["top1"]


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    system = re.search(r"([^:]+) \[os_error_code", text)  # tensorstore puts what the system said last
    return system[1].strip() if system else f"{type(error).__name__}: {text[:160]}".rstrip(": ")
