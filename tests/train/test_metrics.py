import numpy as np
import pytest

from jaxcls.report.timing import latency_quantiles
from jaxcls.train.metrics import divide, evaluation_sums


def test_masked_sums():
    logits = np.array([[9, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1], [9, 5, 4, 3, 2, 1]], np.float32)
    labels, mask = np.array([0, 4, 5, 0]), np.array([1, 1, 1, 0], np.float32)
    losses = np.array([1, 2, 3, np.nan], np.float32)  # what padding computes must not matter
    sums = {name: float(value) for name, value in evaluation_sums(logits, losses, labels, mask).items()}
    assert sums == {"count": 3, "loss": 6, "top1": 1, "top5": 2}
    assert divide(sums) == {"loss": 2, "top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}


def test_equal_logits_are_not_all_first():
    logits = np.zeros((3, 10), np.float32)
    sums = evaluation_sums(logits, np.zeros(3), np.array([0, 4, 9]), np.ones(3, np.float32))
    assert (sums["top1"], sums["top5"]) == (1, 2)


def test_nan_is_never_right():
    sums = evaluation_sums(np.full((2, 3), np.nan, np.float32), np.zeros(2), np.array([0, 1]), np.ones(2, np.float32))
    assert (sums["top1"], sums["top5"]) == (0, 0)


def test_latency_quantiles_are_latencies_that_occurred():
    quantiles = latency_quantiles(np.arange(1, 101)[::-1])
    assert quantiles["compute_latency"] == 50.5
    assert [quantiles[f"compute_latency_at{p}"] for p in (90, 95, 99, 100)] == [90, 95, 99, 100]
