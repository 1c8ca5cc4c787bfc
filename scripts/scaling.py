#!/usr/bin/env python3
"""What a training step exchanges on 1 to 8 devices, and what that would cost on links of published speed.

    scripts/scaling.py [--model resnet50] [--image-size 64]

The first table is read from programs compiled here, for virtual devices of the CPU. The second is arithmetic, not a
measurement: see docs/scaling.md for the model and the sources of the link speeds.
"""

import argparse
import math
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # they change nothing in what is exchanged, and take minutes

import jax
import jax.numpy as jnp

import jaxcls
from jaxcls.config import OptimConfig
from jaxcls.report.collectives import collectives
from jaxcls.train import steps
from jaxcls.train.optim import make_optimizer

# GB/s in one direction, for each accelerator: half of the published figure for both; and numbers of accelerators.
LINKS = {
    "H200, NVLink": (450, (8,)),
    "H200, 400 Gb/s InfiniBand": (50, (8, 64, 1024)),
    "TPU v5e, inside a pod": (200, (8, 64, 256)),
    "TPU v5p, inside a pod": (600, (8, 64, 1024)),
}
HOP = 5e-6  # s, of one message between neighbours: an assumption
RATE, BATCH = 5500, 256  # of one H200: images/s, which are a target and not a measurement, and images of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", choices=jaxcls.list_models())
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--image-size", type=int, default=64, help="pixels; does not change what is exchanged")
    args = parser.parse_args()
    model = jaxcls.create_model(args.model, num_classes=1000)
    values = jax.eval_shape(lambda key: model.init(key, jnp.zeros((1, 64, 64, 3)), train=False), jax.random.key(0))
    count = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in values.items()}
    expected = 4 * (count["params"] + count["batch_stats"] + 1)
    counts = f"{count['params']:,} parameters, {count['batch_stats']:,} running statistics and a loss"
    print(f"{args.model}: {counts} are {expected:,} bytes.\n")
    print("| devices | collectives in the step | bytes of each | as the arithmetic says |\n|---|---|---|---|")
    for devices in args.devices:
        found = collectives(compiled(model, devices, args.image_size))
        kinds = ", ".join(operation.kind for operation in found) or "none"
        sizes = ", ".join(f"{operation.bytes:,}" for operation in found) or "0"
        right = [operation.bytes for operation in found] == ([expected] if devices > 1 else [])
        print(f"| {devices} | {kinds} | {sizes} | {'yes' if right else 'NO'} |", flush=True)
    step = BATCH / RATE
    print(f"\nModel: {BATCH} images take an H200 {1e3 * step:.1f} ms ({RATE} images/s), the exchange apart.\n")
    print("| link | devices | all-reduce, ms | step, ms, nothing hidden | efficiency |\n|---|---|---|---|---|")
    for link, (speed, counts) in LINKS.items():
        for devices in counts:
            seconds = all_reduce_seconds(expected, devices, speed * 1e9)
            total = step + seconds
            of_h200 = f"{1e3 * total:.1f} | {100 * step / total:.1f}%" if link.startswith("H200") else "- | -"
            print(f"| {link} | {devices} | {1e3 * seconds:.2f} | {of_h200} |")


def compiled(model, devices: int, image_size: int) -> str:
    """The text of the compiled train step."""
    mesh = steps.make_mesh(jax.devices()[:devices])
    optimizer = make_optimizer(OptimConfig(weight_decay=1e-4), lambda step: 0.1)
    step = steps.make_train_step(model, optimizer, lambda step: 0.1, mesh, label_smoothing=0.1)
    split = steps.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((8, image_size, image_size, 3), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((8,), jnp.int32, sharding=split)
    key = jax.eval_shape(jax.random.key, 0)
    return step.lower(steps.abstract_state(model, optimizer, mesh), images, labels, key).compile().as_text()


def all_reduce_seconds(size: int, devices: int, speed: float) -> float:
    """A ring all-reduce moves `2 (n - 1) / n` of its bytes over each link (Patarasuk and Yuan, 2009); a tree's hops."""
    return 2 * (devices - 1) / devices * size / speed + 2 * math.log2(devices) * HOP


if __name__ == "__main__":
    main()
