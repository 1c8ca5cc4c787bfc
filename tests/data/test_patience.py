"""Reads that hang end a run, and are named."""

import threading
import time

import numpy as np
import pytest

from jaxcls.config import DataConfig
from jaxcls.data.patience import patiently
from jaxcls.data.pipeline import eval_batches, train_batches
from jaxcls.errors import RunError


class Stuck:
    """A source of 12 records, of which one is never read to its end, or not before `free` is set."""

    classes, root = ("a",), None
    free = threading.Event()

    def __init__(self, stuck):
        self.stuck = stuck

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == self.stuck:
            self.free.wait(300)
        return {"image": np.zeros((8, 8, 3), np.uint8), "label": 0, "id": self.id(index)}

    def id(self, index):
        return f"record-{index}"


@pytest.fixture(autouse=True)
def freed():
    Stuck.free.clear()
    yield
    Stuck.free.set()  # the threads would outlive the test


def train(stuck, **options):
    config = DataConfig(image_size=32, augment="none", eval_resize=32, **options)
    return train_batches(Stuck(stuck), config, batch_size=4, seed=0, start_step=0, stop_step=6)


def test_a_record_that_hangs_is_named():
    orders = [batch.index.tolist() for batch in train(None, threads=2)]
    stuck = orders[1][2]
    found = []
    with pytest.raises(RunError) as caught:
        for batch in train(stuck, timeout_seconds=0.5, threads=2):
            found.append(batch.index.tolist())
    assert found == orders[:1]
    assert f"the batch of step 2 did not come within 0.5 s (data.timeout_seconds): record-{stuck} is still" in str(
        caught.value
    )


def test_so_in_evaluation():
    config = DataConfig(image_size=32, eval_resize=32, timeout_seconds=0.5, threads=1)
    with pytest.raises(RunError, match=r"evaluation batch 3 did not come within 0.5 s .*: record-9 is still being read"):
        list(eval_batches(Stuck(9), config, batch_size=4))


def test_a_worker_that_hangs_is_named_and_ended():
    began = time.monotonic()
    with pytest.raises(RunError, match=r"data worker [12] of 2 is at its records, record-\d+ to record-\d+"):
        list(train(3, timeout_seconds=5.0, workers=2))
    assert time.monotonic() - began < 150, "without waiting for the record"


def test_slow_is_not_stuck_and_errors_pass():
    def items():
        yield 1
        time.sleep(0.1)
        yield 2
        raise KeyError("mine")

    found = patiently(items(), 10.0, str)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(KeyError, match="mine"):
        next(found)
    assert list(patiently(iter(range(3)), 10.0, str)) == list(patiently(iter(range(3)), 0, str)) == [0, 1, 2]


def test_the_thread_ends_with_the_iterator():
    before = set(threading.enumerate())
    found = patiently(iter(range(9)), 10.0, str)
    next(found)
    found.close()
    deadline = time.monotonic() + 10
    while not set(threading.enumerate()) <= before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) <= before
