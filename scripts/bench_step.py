#!/usr/bin/env python3
"""Seconds of a training step of ResNet-50 at the digits' size, fp32, batch 32, and of its first call, which compiles.

scripts/bench_step.py
git worktree add OLD COMMIT; PYTHONPATH=OLD scripts/bench_step.py     # the same of another version
"""

import statistics
import time

import jax
import numpy as np

import jaxcls
from jaxcls.config import OptimConfig
from jaxcls.train import steps
from jaxcls.train.optim import make_optimizer

STEPS, BATCH, SIZE, CLASSES, RATE = 14, 32, 32, 10, 0.01


def main() -> None:
    mesh = steps.make_mesh(jax.devices()[:1])
    model = jaxcls.create_model("resnet50", num_classes=CLASSES, zero_init_last_bn=True)
    optimizer = make_optimizer(OptimConfig(weight_decay=1e-4), lambda step: RATE)
    state = steps.init_state(model, optimizer, mesh, 0)
    step = steps.make_train_step(model, optimizer, lambda step: RATE, mesh, label_smoothing=0.1)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(BATCH, SIZE, SIZE, 3), dtype=np.uint8)
    batch = jax.device_put((images, rng.integers(CLASSES, size=BATCH, dtype=np.int32)))
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        state, metrics = step(state, *batch, jax.random.key(1))
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    print(f"{jaxcls.__file__}: first call {seconds[0]:.1f} s, then {median:.3f} s, median of {STEPS - 1}")


if __name__ == "__main__":
    main()
