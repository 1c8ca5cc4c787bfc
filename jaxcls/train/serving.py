"""How fast a network answers when its images come from files, or one by one when they like."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcls.config import DataConfig
from jaxcls.data.measure import Files
from jaxcls.data.pipeline import eval_batches
from jaxcls.machine import cores
from jaxcls.report.timing import step_milliseconds


def rate_with_data(call: Callable, source: Files, row: dict[str, Any], count: int, warmup: int) -> dict[str, float]:
    """Throughput from files to answers: images are read, decoded and cropped for evaluation in threads, and each batch is on
    its way before the answer to the one before is waited for.

    Args:
      call: of `measure_steps`, for inference.
      source: images enough.
      row: of `measure_steps`, that of `call`.
      count, warmup: batches to measure, but at least four for each thread that decodes, since each makes a whole one; and
        before them.

    Returns:
      `images_per_second`, `wait_fraction` (of the time, for the next batch to be decoded) and `batches`.
    """
    count = max(count, 4 * cores())
    size = row["image_size"]
    batches = eval_batches(source, DataConfig(image_size=size, eval_resize=size + 32), batch_size=row["batch"])
    device = jax.local_devices()[0]
    waited, answer = 0.0, None
    for number in range(-warmup, count):
        if number == 0:
            jax.block_until_ready(answer)
            began, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        images = next(batches).image
        waited += time.perf_counter() - asked
        before, answer = answer, call(jax.device_put(images, device))
        jax.block_until_ready(before)
    jax.block_until_ready(answer)
    seconds = time.perf_counter() - began
    batches.close()
    return {"images_per_second": count * row["batch"] / seconds, "wait_fraction": waited / seconds, "batches": count}


def answer_requests(call: Callable, row: dict[str, Any], share: float, count: int) -> dict[str, Any]:
    """Latency under load: requests of one image come in at random (a Poisson process), whether or not the ones before are
    answered; whatever waits when the device is free goes into the next batch, filled up to the program's size.

    Args:
      call, row: of `measure_steps`, for inference.
      share: of the row's images/s that is asked for, between 0 and 1.
      count: requests, in full batches.

    Returns:
      `share`, `asked_per_second`, `latency_ms` (from a request to its answer: as `step_ms`), `images_per_batch` (on
      average, without what fills it up) and `requests`.
    """
    rate, most = share * row["images_per_second"], row["batch"]
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count * most))
    latencies: list[float] = []
    began, batches = time.perf_counter(), 0
    while (done := len(latencies)) < len(arrivals):
        now = time.perf_counter() - began
        waiting = int(np.searchsorted(arrivals, now, side="right")) - done
        if not waiting:
            time.sleep(arrivals[done] - now)
            continue
        jax.block_until_ready(call())
        answered = time.perf_counter() - began
        latencies += (answered - arrivals[done : done + min(waiting, most)]).tolist()
        batches += 1
    return {
        "share": share,
        "asked_per_second": rate,
        "latency_ms": step_milliseconds(latencies),
        "images_per_batch": len(latencies) / batches,
        "requests": len(latencies),
    }
