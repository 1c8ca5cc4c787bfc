"""Latency and throughput from lists of seconds."""

from collections.abc import Sequence

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
