"""`scripts/prepare_array_record`: images packed into a few large files."""

import concurrent.futures
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from jaxcls import command, flags
from jaxcls.data import preparation, record_format
from jaxcls.data.preparation import Progress, Task
from jaxcls.data.record_format import Metadata
from jaxcls.data.shard_writer import Shard, write_shard
from jaxcls.data.sources import Source
from jaxcls.errors import DataError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(
        lambda: prepare(flags.parse_prepare(argv)), interrupted="interrupted; the same command goes on where it stopped"
    )


def prepare(args) -> None:
    """Makes the data set `args.target` of the images in `args.source`; see `flags.parse_prepare`.

    Raises:
      DataError: the input is not in order, images do not decode, or a file is not as it was written.
      ConfigError: the target was made with other options, or another process is preparing there.
      OSError: the disk is full.
    """
    source, target = Path(args.source), Path(args.target)
    sources = preparation.open_input(source)
    tasks = preparation.plan(sources, args.shards)
    with preparation.claim(target):
        progress = Progress(target, preparation.describe(sources, tasks, args.resize, args.quality))
        if progress.complete:
            metadata = record_format.read_metadata(target)
            print(f"{target} is finished already.")
        else:
            _make_shards(sources, tasks, progress, args)
            metadata = progress.finish(sources, tasks)
    if args.verify:
        _verify(target, metadata)
    _say_result(target, metadata)


def _make_shards(sources: dict[str, Source], tasks: list[Task], progress: Progress, args) -> None:
    kept = [task for task in tasks if task.name in progress.finished]
    left = [task for task in tasks if task.name not in progress.finished]
    if kept:
        print(f"Going on: {len(kept)} of {len(tasks)} files are finished.")
    bad: list[dict[str, str]] = []
    total = sum(len(task.indices) for task in left)
    with tqdm(total=total, unit="image", disable=None, leave=False, smoothing=0.05) as bar:

        def work(task: Task, tick: Callable[[], None]) -> Shard:
            shard = write_shard(
                sources[task.split],
                task.indices,
                progress.directory / task.name,
                resize=args.resize,
                quality=args.quality,
                skip_bad=args.skip_bad,
                tick=tick,
            )
            if shard.entry:
                progress.add(shard)
            return shard

        for shard in _in_threads(work, left, args.workers or os.cpu_count() or 1, bar):
            bad += shard.bad
    if bad and not args.skip_bad:
        _list_bad(bad)
        raise DataError(
            f"{len(bad)} of {sum(map(len, sources.values()))} images cannot be decoded, {bad[0]['id']} for one "
            f"({bad[0]['reason']}); replace them, or leave them out with --skip-bad, and run the command again"
        )


def _in_threads(work: Callable, tasks: list[Task], count: int, bar: tqdm):
    """Results in the order in which they come. When one fails or Ctrl-C comes, the others are told to end."""
    stop, lock = threading.Event(), threading.Lock()

    def tick() -> None:
        if stop.is_set():
            raise concurrent.futures.CancelledError
        with lock:
            bar.update()

    pool = concurrent.futures.ThreadPoolExecutor(min(count, len(tasks) or 1))
    try:
        for future in concurrent.futures.as_completed([pool.submit(work, task, tick) for task in tasks]):
            yield future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _verify(target: Path, metadata: Metadata) -> None:
    entries = [entry for split in preparation.SPLITS for entry in (*metadata.shards[split], metadata.index[split])]
    total = sum(entry.bytes for entry in entries)
    with tqdm(total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        preparation.verify(target, metadata, bar.update)
    print(f"Verified: {len(entries)} files, {total:,} bytes, are as they were written.")


def _say_result(target: Path, metadata: Metadata) -> None:
    _list_bad(metadata.skipped)
    parts = [
        f"{sum(entry.records for entry in metadata.shards[split]):,} {name} images in {len(metadata.shards[split])} files"
        for split, name in (("train", "training"), ("val", "evaluation"))
    ]
    left_out = f"; {len(metadata.skipped)} left out" if metadata.skipped else ""
    print(f"{target}: {' and '.join(parts)}, {len(metadata.classes)} classes{left_out}.")


def _list_bad(bad) -> None:
    for image in sorted(bad, key=lambda image: image["id"]):
        print(f"{image['id']} does not decode: {image['reason']}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
