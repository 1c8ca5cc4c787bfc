"""From a source to batches: order, augmentation, decoding in threads or processes. The only user of grain.

A batch is a pure function of (seed, step): the order of an epoch depends on (seed, epoch), a record's augmentation on
(seed, epoch, record). So the number of workers and of hosts changes nothing, and a run can start at any step.
"""

import contextlib
import dataclasses
import itertools
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from jaxcls.config import DataConfig
from jaxcls.data import transforms
from jaxcls.data.decode import DecodeError, Picture, open_image
from jaxcls.data.patience import patiently
from jaxcls.data.sources import Source
from jaxcls.errors import DataError, RunError
from jaxcls.machine import cores

MOST_FAILURES = 100  # records in a row that may fail before a run gives up
MOST_THREADS = 16


class Batch(NamedTuple):
    """This host's share of a batch, B records.

    Attributes:
      image: uint8 `[B, S, S, 3]`.
      label: int32 `[B]`.
      mask: float32 `[B]`; 0 where evaluation has no record: padding, or one that was skipped.
      index: int64 `[B]`, the record's index in its source.
      bad: (id, reason) of each record that could not be used for this batch.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray
    index: np.ndarray
    bad: tuple[tuple[str, str], ...]


def steps_per_epoch(records: int, batch_size: int) -> int:
    """Batches in an epoch; the last short one is dropped. Raises DataError if there is none."""
    if records < batch_size:
        raise DataError(f"{records} training images cannot fill one batch of {batch_size}; use a smaller train.batch_size")
    return records // batch_size


def train_batches(
    source: Source,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Shuffled, augmented batches of the steps from `start_step` to before `stop_step`.

    Args:
      batch_size: of all hosts together; each gets a contiguous share.

    Raises:
      DataError: a record cannot be used and `on_error` is `fail`, or too many in a row cannot.
      RunError: a worker process died.
    """
    share = batch_size // process_count
    order = _Order(len(source), batch_size, seed)
    loader = _TrainLoader(source, config, order, seed, first_slot=process_index * share, slots=share)
    for step, raw in zip(range(start_step, stop_step), _run(loader, config, start_step, stop_step), strict=True):
        failed = [
            order.record(step, int(slot) + process_index * share, attempt)
            for slot in np.flatnonzero(raw["failures"])
            for attempt in range(raw["failures"][slot])
        ]
        bad = tuple((source.id(index), loader.why_not(step // order.steps, index)) for index in failed)
        if bad and (config.on_error == "fail" or raw["failures"].max() >= min(MOST_FAILURES, len(source))):
            raise DataError(f"{_located(source, failed[0])} cannot be used: {bad[0][1]}" + _and_more(bad))
        yield _batch(source, raw, bad)


def eval_batches(
    source: Source, config: DataConfig, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """Every record once, in order; the last batch is filled up with masked zeros.

    Args:
      batch_size: of all hosts together; each gets a contiguous share.

    Raises:
      DataError: a record cannot be used, unless `on_error` is `skip`.
    """
    share = batch_size // process_count
    loader = _EvalLoader(source, config, batch_size, first_slot=process_index * share, slots=share)
    for raw in _run(loader, config, 0, -(-len(source) // batch_size)):
        failed = raw["index"][raw["failures"] > 0].tolist()
        bad = tuple((source.id(index), loader.why_not(index)) for index in failed)
        if bad and config.on_error != "skip":
            raise DataError(
                f"evaluation image {_located(source, failed[0])} cannot be used: {bad[0][1]}{_and_more(bad)}; mend or "
                "remove it, or set data.on_error=skip"
            )
        yield _batch(source, raw, bad)


class _Order:
    """Which record stands where: grain's shuffle, another one each epoch."""

    def __init__(self, records: int, batch_size: int, seed: int):
        self.records, self.batch_size = records, batch_size
        self.steps = steps_per_epoch(records, batch_size)
        self._shuffled = grain.MapDataset.range(records).seed(seed).shuffle().repeat()

    def record(self, step: int, slot: int, attempt: int = 0) -> int:
        """The record in a slot of a step's batch, or the `attempt`-th one after it in the epoch's order."""
        epoch, position = divmod(step, self.steps)
        place = position * self.batch_size + slot + attempt
        return int(self._shuffled[epoch * self.records + place % self.records])


class _Loader:
    """What runs in workers; a Ctrl-C, which a terminal sends to every process, is for the run alone to decide on."""

    def open(self, index: int) -> tuple[Picture, int]:
        """A record's picture and label; meanwhile it is among `reading`."""
        thread = threading.get_ident()
        self.reading[thread] = index
        try:
            return _open(self.source, index)
        finally:
            del self.reading[thread]

    def why_not(self, *place: int) -> str:
        """Why what `_load` loads from there fails, found out by trying it again here."""
        try:
            self._load(_empty(1, self.config.image_size), 0, *place)
        except DecodeError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)
        return "it could not be read a moment ago"

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        parent = multiprocessing.parent_process()
        if parent is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent) -> None:
    """Ends this process when the one that started it has gone, in whatever way."""
    parent.join()
    os._exit(RunError.exit_code)


@dataclasses.dataclass
class _TrainLoader(_Loader):
    """Step -> arrays. Runs in workers: a bad record is counted, not raised, and named by the process that asked."""

    source: Source
    config: DataConfig
    order: _Order
    seed: int
    first_slot: int
    slots: int
    reading: dict[int, int] = dataclasses.field(default_factory=dict)  # records that are being read, by thread

    def what(self, step: int) -> tuple[str, list[int]]:
        """What the batch is called, and its records."""
        records = [self.order.record(step, self.first_slot + slot) for slot in range(self.slots)]
        return f"the batch of step {step + 1}", records

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        raw = _empty(self.slots, self.config.image_size)
        epoch = step // self.order.steps
        for slot in range(self.slots):
            for attempt in range(min(MOST_FAILURES, self.order.records)):
                index = self.order.record(step, self.first_slot + slot, attempt)
                try:
                    self._load(raw, slot, epoch, index)
                    break
                except (DecodeError, OSError):
                    raw["failures"][slot] += 1
        raw["mask"][:] = 1
        return raw

    def _load(self, raw: dict[str, np.ndarray], slot: int, epoch: int, index: int) -> None:
        picture, raw["label"][slot] = self.open(index)
        raw["index"][slot] = index
        config = self.config
        if config.augment == "none":
            raw["image"][slot] = _center(picture, config)
        else:
            rng = transforms.generator_for(self.seed, epoch, index)
            raw["image"][slot] = transforms.train_transform(
                picture, config.image_size, config.augment, config.interpolation, rng
            )


@dataclasses.dataclass
class _EvalLoader(_Loader):
    """Number of the batch -> arrays."""

    source: Source
    config: DataConfig
    batch_size: int
    first_slot: int
    slots: int
    reading: dict[int, int] = dataclasses.field(default_factory=dict)

    def what(self, number: int) -> tuple[str, list[int]]:
        """As of `_TrainLoader`."""
        first = number * self.batch_size + self.first_slot
        return f"evaluation batch {number + 1}", list(range(first, min(first + self.slots, len(self.source))))

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        raw = _empty(self.slots, self.config.image_size)
        for slot, index in enumerate(self.what(number)[1]):
            raw["index"][slot] = index
            try:
                self._load(raw, slot, index)
                raw["mask"][slot] = 1
            except (DecodeError, OSError):
                raw["failures"][slot] = 1
        return raw

    def _load(self, raw: dict[str, np.ndarray], slot: int, index: int) -> None:
        picture, raw["label"][slot] = self.open(index)
        raw["image"][slot] = _center(picture, self.config)


def _run(loader, config: DataConfig, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    """`loader(start), ..., loader(stop - 1)`, in order, made ahead in threads or processes."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # grain reports its own settings there
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags, which jaxcls does not use
    threads = 1 if config.workers else config.threads or min(cores(), MOST_THREADS)
    ahead = max(config.prefetch, threads)
    dataset = grain.MapDataset.range(start, stop).map(loader)
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    if config.workers:
        _free_shared_memory_silently()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=config.prefetch))
    others = multiprocessing.active_children()
    iterator = iter(dataset)
    items = patiently(iterator, config.timeout_seconds, lambda count: _why_waiting(loader, config, start, start + count))
    try:
        with _interrupts_held_back():
            first = list(itertools.islice(items, min(1, stop - start)))  # starts the threads and processes
        while first:
            yield first.pop()
        yield from itertools.islice(items, max(stop - start - 1, 0))
    except RunError:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.kill()  # one that hangs would be waited for
        raise
    except RuntimeError as error:
        if "process was terminated" not in str(error):
            raise
        raise RunError(
            f"a data worker died ({error}) If it was for want of memory, fewer data.workers need less; run the "
            "same command to resume from the last checkpoint"
        ) from error
    finally:
        items.close()
        iterator.close()


def _free_shared_memory_silently() -> None:
    """Python frees what a killed worker or a device held to the end, but warns of it after the run's own last words."""
    option = "ignore:resource_tracker:UserWarning"
    if option not in sys.warnoptions:
        sys.warnoptions.append(option)  # passed on to the processes that Python starts, its resource tracker among them


def _why_waiting(loader, config: DataConfig, start: int, number: int) -> str:
    """Why `loader(number)` does not come, as far as can be seen from here."""
    name, records = loader.what(number)
    if config.workers:
        first, last = (_located(loader.source, index) for index in (records[0], records[-1]))
        culprit = (
            f"data worker {(number - start) % config.workers + 1} of {config.workers} is at its records, {first} to {last}"
        )
    elif loader.reading:
        longest = next(iter(loader.reading.values()))  # entries are in the order in which reading began
        culprit = f"{_located(loader.source, longest)} is still being read"
    else:
        culprit = "nothing is being read, so decoding is too slow"
    return (
        f"{name} did not come within {config.timeout_seconds:g} s (data.timeout_seconds): {culprit}. See to the disk or "
        "network that it comes from, then run the same command to resume from the last checkpoint"
    )


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """What is started in here never sees a Ctrl-C, not even before its `_Loader` is there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # threads and processes inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _empty(slots: int, size: int) -> dict[str, np.ndarray]:
    return {
        "image": np.zeros((slots, size, size, 3), np.uint8),
        "label": np.zeros(slots, np.int32),
        "mask": np.zeros(slots, np.float32),
        "index": np.zeros(slots, np.int64),
        "failures": np.zeros(slots, np.int32),  # records that failed before the slot was filled
    }


def _open(source: Source, index: int) -> tuple[Picture, int]:
    record = source[index]
    return open_image(record["image"]), record["label"]


def _center(picture: Picture, config: DataConfig) -> np.ndarray:
    return transforms.eval_transform(picture, config.image_size, config.eval_resize, config.interpolation)


def evaluation_picture(source: Source, config: DataConfig, index: int) -> np.ndarray:
    """A record's picture as evaluation shows it to the network, uint8 `[S, S, 3]`.

    Raises:
      decode.DecodeError, OSError: it cannot be used.
    """
    return _center(_open(source, index)[0], config)


def _located(source: Source, index: int) -> str:
    root = getattr(source, "root", None)
    return str(root / source.id(index)) if root else source.id(index)


def _and_more(bad: tuple) -> str:
    return f" (and {len(bad) - 1} more in this batch)" if len(bad) > 1 else ""


def _batch(source: Source, raw: dict[str, np.ndarray], bad: tuple) -> Batch:
    label = raw["label"]
    if label.min() < 0 or label.max() >= len(source.classes):
        place = int(np.argmax((label < 0) | (label >= len(source.classes))))
        name = source.id(int(raw["index"][place]))
        raise DataError(f"{name} has label {label[place]}, but there are {len(source.classes)} classes")
    return Batch(raw["image"], label, raw["mask"], raw["index"], bad)
