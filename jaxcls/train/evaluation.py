"""Evaluation: every record counts exactly once."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcls.data.pipeline import Batch
from jaxcls.data.sources import Source
from jaxcls.errors import RunError
from jaxcls.report.predictions import Predictions
from jaxcls.report.timing import latency_quantiles
from jaxcls.train.metrics import divide


def evaluate(
    eval_step: Callable,
    variables: Any,
    batches: Iterable[Batch],
    source: Source,
    put: Callable,
    on_batch: Callable[[int, int], bool],
) -> tuple[dict[str, Any], Predictions] | None:
    """Evaluates `source` once.

    Args:
      eval_step: `(variables, images, labels, mask) -> (sums, outcomes)`, see `steps.make_eval_step`; what it returns is in
        host memory, the outcomes those of this process's share.
      batches: padded and masked batches of the whole source.
      put: takes host arrays to the devices.
      on_batch: called with (records done, records in all); evaluation is given up when it returns false.

    Returns:
      `loss`, `top1` and `top5` (percent), throughputs and latencies by the reference's names, `count` (records counted),
      `digest` (order-independent hash of their ids) and `bad` (records that could not be decoded); with what all of them
      were taken for; `None` if given up.

    Raises:
      RunError: a record was left out or counted twice.
    """
    sums: dict[str, float] = {}
    digest, padded, bad = 0, 0, 0
    parts = []
    waits, latencies = [], []
    start = waiting = time.perf_counter()
    for batch in batches:
        began = time.perf_counter()
        waits.append(began - waiting)
        found, outcomes = eval_step(variables, *put(batch.image, batch.label, batch.mask))
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        waiting = time.perf_counter()
        latencies.append(waiting - began)
        digest = (digest + batch_digest(batch, source)) % 2**64
        index = np.where(batch.mask > 0, batch.index, -1).astype(np.int32)
        parts.append((index, batch.label, outcomes["prediction"], outcomes["confidence"]))
        padded, bad = padded + len(batch.label), bad + len(batch.bad)
        if not on_batch(min(padded, len(source)), len(source)):
            return None
    digest, padded, bad = _over_processes(digest, padded, bad)
    if sums["count"] != len(source) - bad:
        raise RunError(f"evaluation counted {sums['count']:.0f} records, not {len(source)} less {bad} bad ones")
    count = int(sums["count"])
    results = {
        "compute_ips": padded / sum(latencies),
        "total_ips": padded / (time.perf_counter() - start),
        "data_time": float(np.mean(waits)),
        "count": count,
        "digest": f"{digest:016x}",
        "bad": bad,
    }
    return divide(sums) | latency_quantiles(latencies) | results, _predictions(parts, source)


def batch_digest(batch: Batch, source: Source) -> int:
    """The sum of the 64-bit hashes of the ids of the records that count; the digest is that of all batches, modulo 2**64."""
    ids = (source.id(int(index)) for index in batch.index[batch.mask > 0])
    return sum(int.from_bytes(hashlib.blake2b(os.fsencode(record), digest_size=8).digest()) for record in ids) % 2**64


def _over_processes(digest: int, padded: int, bad: int) -> tuple[int, int, int]:
    """The sums over all processes, each having evaluated its own share."""
    if jax.process_count() == 1:
        return digest, padded, bad
    mine = np.array([digest >> 32, digest & 0xFFFFFFFF, padded, bad], np.uint32)  # JAX has no 64 bits unless told to
    high, low, padded, bad = multihost_utils.process_allgather(mine).astype(object).sum(0)
    return ((high << 32) + low) % 2**64, padded, bad


def _predictions(parts: list[tuple[np.ndarray, ...]], source: Source) -> Predictions:
    """Those of all processes, without padding, in the source's order.

    Args:
      parts: index (-1 where there is no record), label, prediction and confidence of each batch.
    """
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    if jax.process_count() > 1:  # each process had as many slots
        columns = [multihost_utils.process_allgather(column).reshape(-1) for column in columns]
    order = np.argsort(columns[0])
    index, *columns = (column[order[columns[0][order] >= 0]] for column in columns)
    ids = np.array([source.id(int(place)) for place in index], str)
    return Predictions(index, ids, *columns, np.array(source.classes, str))
