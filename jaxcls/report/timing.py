"""Latency and throughput from lists of seconds, and what they mean."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def latency_quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Average and `nearest` quantiles of latencies, under the reference's names.

    Returns:
      `compute_latency` (the average) and `compute_latency_at90`, `_at95`, `_at99`, `_at100`, in seconds.
    """
    values = np.asarray(seconds, np.float64)
    result = {"compute_latency": float(values.mean())}
    for percent in (90, 95, 99, 100):
        result[f"compute_latency_at{percent}"] = float(np.quantile(values, percent / 100, method="nearest"))
    return result


def step_milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """`avg` and the `nearest` quantiles `p50`, `p90`, `p95` and `p99` of seconds, in milliseconds."""
    values = 1e3 * np.asarray(seconds, np.float64)
    quantiles = {f"p{percent}": float(np.quantile(values, percent / 100, method="nearest")) for percent in (50, 90, 95, 99)}
    return {"avg": float(values.mean())} | quantiles


def spread(milliseconds: Mapping[str, float]) -> float:
    """How much longer the slow steps of `step_milliseconds` take than the usual one: `(p90 - p50) / p50`."""
    return (milliseconds["p90"] - milliseconds["p50"]) / milliseconds["p50"]


def input_verdict(images_per_second: float, cores: int, target: float) -> str:
    """Whether the input pipeline keeps up, in a sentence.

    Args:
      images_per_second: what the pipeline gives.
      cores: that it has for that.
      target: images per second that are wanted of it.
    """
    if images_per_second >= target:
        return f"keeps up: {images_per_second:,.0f} images/s of {target:,.0f} wanted, on {_cores(cores)}"
    needed = math.ceil(target * cores / images_per_second)
    return f"input-bound: needs {_cores(needed)} for {target:,.0f} images/s; you have {cores}"


def _cores(count: int) -> str:
    return f"{count} core" + ("s" if count > 1 else "")
