#!/usr/bin/env python3
"""What checkpoints cost: scripts/bench_checkpoint.py [--model resnet50] [--rounds 5] [--json OUT]. See docs/survival.md.

The round trip: seconds that a whole save takes (until it is on disk), and a restore in a new `Checkpoints`, as a run that
resumes does it. The loop: seconds of a fixed number of training steps, with an asynchronous save begun at the first of them
and without, in turns; the difference is what a save costs the loop, wherever it comes from (copying the state, or the
writer's share of processor and disk). Compression: processor seconds and bytes of a save by orbax, without (as jaxcls saves)
and with zstd, in turns. Figures are medians of the rounds; the first round warms up.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxcls import runtime
from jaxcls.config import default_config, set_key
from jaxcls.resolve import resolve
from jaxcls.train import steps
from jaxcls.train.checkpoints import Checkpoints
from jaxcls.train.setup import build


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="of a measurement of the loop (default: 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="disk to measure (default: that of temporary files)")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args()
    runtime.configure("fp32")
    task = make_task(args)
    with tempfile.TemporaryDirectory(dir=args.directory) as place:
        report = measure(task, args, Path(place))
    show(report, args)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


def make_task(args):
    config = default_config()
    settings = {"model.name": args.model, "data.image_size": args.image_size, "train.batch_size": args.batch}
    # The classes of ImageNet, for the size of the state.
    settings |= {"data.source": "synthetic", "model.num_classes": 1000}
    for key, value in settings.items():
        set_key(config, key, value)
    return build(resolve(config, settings)[0], steps.make_mesh())


def measure(task, args, place):
    state = steps.init_state(task.model, task.optimizer, task.mesh, 0)
    template = steps.abstract_state(task.model, task.optimizer, task.mesh)
    step = steps.make_train_step(task.model, task.optimizer, task.schedule, task.mesh, label_smoothing=0.1)
    split = steps.batch_sharding(task.mesh)
    images = np.random.default_rng(0).integers(256, size=(args.batch, args.image_size, args.image_size, 3), dtype=np.uint8)
    batch = jax.device_put((images, np.zeros(args.batch, np.int32)), split)
    found = {name: [] for name in ("save", "restore", "blocked", "with", "without")}
    checkpoints = Checkpoints(place / "checkpoints", keep=1)
    number = 0

    def run(saving):
        """Seconds of the steps, and those of them in which `save` did not return."""
        nonlocal state, number
        checkpoints.wait()
        began, blocked = time.perf_counter(), 0.0
        for index in range(args.steps):
            state, metrics = step(state, *batch, jax.random.key(0))
            if saving and index == 0:
                jax.block_until_ready(metrics)  # as the loop, which reads the step's metrics first
                number, before = number + 1, time.perf_counter()
                checkpoints.save(number, state, {"progress": {"step": number}}, None)
                blocked = time.perf_counter() - before
            jax.block_until_ready(metrics)
        return time.perf_counter() - began, blocked

    for round_ in range(args.rounds + 1):
        without, _ = run(False)
        with_save, blocked = run(True)
        checkpoints.wait()
        number, began = number + 1, time.perf_counter()
        checkpoints.save(number, state, {"progress": {"step": number}}, None)
        checkpoints.wait()
        saved = time.perf_counter()
        reader = Checkpoints(place / "checkpoints", keep=1, read_only=True)
        jax.block_until_ready(reader.restore(template)[0])
        restored = time.perf_counter()
        reader.close()
        if round_:
            for name, value in zip(found, (saved - began, restored - saved, blocked, with_save, without), strict=True):
                found[name].append(value)
        print(
            f"round {round_}: save {saved - began:.2f} s, restore {restored - saved:.2f} s, {args.steps} steps "
            f"{without:.2f} s, with a save {with_save:.2f} s",
            flush=True,
        )
    checkpoints.close()
    compression = measure_compression(state, args, place)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return {name: statistics.median(values) for name, values in found.items()} | {
        "cost": statistics.median(a - b for a, b in zip(found["with"], found["without"], strict=True)),
        "bytes": size,
        "compression": compression,
        "rounds": found,
        "device": jax.devices()[0].device_kind,
    }


def measure_compression(state, args, place):
    """Median processor seconds of a save, and bytes on disk, by whether it is compressed."""
    import orbax.checkpoint as ocp

    handlers = {name: ocp.PyTreeCheckpointHandler(use_compression=name == "zstd") for name in ("plain", "zstd")}
    seconds, sizes = {name: [] for name in handlers}, {}
    for round_ in range(args.rounds + 1):
        for name, handler in handlers.items():
            folder, began = place / f"{name}-{round_}", time.process_time()
            ocp.Checkpointer(handler).save(folder, args=ocp.args.PyTreeSave(state))
            seconds[name].append(time.process_time() - began)
            sizes[name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
    return {name: {"processor": statistics.median(seconds[name][1:]), "bytes": sizes[name]} for name in handlers}


def show(report, args):
    cost = report["cost"]
    print(
        f"{args.model}, {report['bytes'] / 1e6:.0f} MB of state, on {report['device']}; medians of {args.rounds} rounds\n"
        f"round trip   save {report['save']:.2f} s, restore {report['restore']:.2f} s\n"
        f"loop         a save costs {cost:.2f} s, {report['blocked']:.2f} s of them before `save` returns; "
        f"{args.steps} steps take {report['without']:.2f} s\n"
        f"             less than 2% of the time if saves are at least {max(cost, 0) / 0.02:.0f} s apart"
    )
    costs = ", ".join(
        f"{name} {cost['processor']:.2f} s of the processor and {cost['bytes'] / 1e6:.0f} MB"
        for name, cost in report["compression"].items()
    )
    print(f"compression  {costs}")


if __name__ == "__main__":
    main()
