#!/usr/bin/env python3
"""Images per second of jaxcls and of PyTorch, taking turns in one process: the same network, batch and precision.

    scripts/bench_vs_torch.py [--model NAME ...] [--train N ...] [--infer N ...] [--image-size S] [--precision P]
                              [--compile] [--memory] [--rounds R] [--steps N] [--json OUT]

PyTorch runs the independent network of `jaxcls.interop.torch_resnet` in channels_last: SGD with momentum, weight decay and
label smoothing in training, `inference_mode` in inference, AMP for bf16; with --compile, also under torch.compile, and the
faster of the two counts. With --memory, what a training step needs at its peak on a CPU (eager; above the process with
its libraries), each side in a process of its own. Both sides use all cores, or the first GPU. Ratios above 1 mean that
jaxcls is faster; each is that of the medians. docs/performance.md has the commands of its table; for a GPU, see
scripts/bench_gpu.py.

    scripts/bench_vs_torch.py --model resnet50 --train 16 --infer 16 1 --compile --memory --json OUT
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is for both; JAX would take most of it

import jax
import torch

import jaxcls
from jaxcls import command, huge_pages, runtime
from jaxcls.flags.parser import Parser, positive
from jaxcls.interop import torch_resnet
from jaxcls.precision import POLICIES
from jaxcls.train import measure
from jaxcls.versions import installed


def main() -> int:
    return command.run(lambda: compare(parse(sys.argv[1:])))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("bench_vs_torch.py", description=__doc__)
    networks = [name for name in jaxcls.list_models() if name in torch_resnet.ARCHITECTURES]
    parser.add_argument("--model", nargs="+", choices=networks, default=["resnet50"], metavar="NAME")
    parser.add_argument("--train", nargs="*", type=positive, default=[], metavar="N", help="batches")
    parser.add_argument("--infer", nargs="*", type=positive, default=[], metavar="N", help="batches")
    parser.add_argument("--image-size", type=positive, default=224, metavar="S")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; needs a C++ compiler on a CPU")
    parser.add_argument("--memory", action="store_true", help="peak memory of a training step, too; Linux, on a CPU")
    parser.add_argument("--rounds", type=positive, default=5, metavar="R", help="turns that are measured (default: 5)")
    parser.add_argument("--steps", type=positive, default=1, metavar="N", help="steps of a turn (default: 1)")
    parser.add_argument("--json", metavar="OUT")
    args = parser.parse_args(argv)
    if not args.train and not args.infer:
        parser.error("nothing to measure; give --train or --infer with batches")
    command.check_writable(args.json, "--json")
    return args


def compare(args: argparse.Namespace) -> None:
    huge_pages.use_huge_pages(ours=True)  # for both sides, as `jaxcls` has them
    runtime.configure("fp32")
    device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
    found = []
    print("| network, batch | jaxcls images/s | PyTorch images/s | ratio |" + " peak, jaxcls | PyTorch |" * args.memory)
    print("|---|---|---|---|" + "---|---|" * args.memory)
    for kind, batches in (("train", args.train), ("infer", args.infer)):
        for name in args.model:
            for batch in batches:
                sides, _ = prepare(kind, name, batch, args, device)
                row = take_turns(kind, name, batch, args, sides)
                if args.memory and kind == "train":
                    row |= {f"{side}_peak_bytes": peak_bytes(side, name, batch, args) for side in ("jaxcls", "torch")}
                found.append(row)
                rates = " | ".join(f"{row[f'{side}_images_per_second']:,.1f}" for side in ("jaxcls", "torch"))
                print(f"| {name} {args.precision} {kind}, {batch} | {rates} | {row['ratio']:.2f} |{peaks(row)}", flush=True)
    if args.json:
        facts = {"device": jax.devices()[0].device_kind, "torch": torch.__version__, "versions": installed()}
        Path(args.json).write_text(json.dumps(facts | {"results": found}, indent=2) + "\n")


def prepare(kind: str, name: str, batch: int, args: argparse.Namespace, device: torch.device):
    """By side, a function that runs a number of steps and waits for the last, all warmed up; and our compiled program."""
    compile_step, call = jaxcls_steps(kind, name, batch, args)

    def run(steps: int) -> None:
        for _ in range(steps):
            result = call()
        jax.block_until_ready(result)

    sides = {"jaxcls": run}
    torch_side = torch_training if kind == "train" else torch_inference
    for compiled in (False, True)[: 1 + args.compile]:
        sides["torch.compile" if compiled else "eager"] = torch_side(name, batch, args, device, compiled)
    with ThreadPoolExecutor(1) as pool:  # XLA compiles while PyTorch does
        compiling = pool.submit(compile_step)
        for side in list(sides)[1:]:
            sides[side](2)
        program = compiling.result()
    run(2)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return sides, program


def jaxcls_steps(kind: str, name: str, batch: int, args: argparse.Namespace) -> tuple[Callable, Callable]:
    """`(compile, call)` of a step."""
    policy = POLICIES[args.precision]
    model = jaxcls.create_model(
        name, num_classes=measure.CLASSES, dtype=policy.compute_dtype, param_dtype=policy.param_dtype
    )
    of_kind = measure.prepare_training if kind == "train" else measure.prepare_inference
    return of_kind(model, batch, args.image_size, args.precision, jax.devices()[:1])


def take_turns(kind: str, name: str, batch: int, args: argparse.Namespace, sides: dict[str, Callable]) -> dict:
    """One row: medians over the rounds, in each of which every side takes a turn.

    The first round is left out, and so is the first step of each turn: a virtual machine takes back the memory that XLA
    frees after a step if it lies idle for seconds, as here while the other side runs, and giving it out anew took a second
    of a step of 3.4. In training one step follows the other.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(1 + args.rounds):
        for side, run in sides.items():
            run(1)
            began = time.perf_counter()
            run(args.steps)
            if turn:
                times[side].append((time.perf_counter() - began) / args.steps)
    medians = {side: statistics.median(seconds) for side, seconds in times.items()}
    ours = medians.pop("jaxcls")
    fastest = min(medians, key=medians.__getitem__)
    return {
        "kind": kind,
        "model": name,
        "batch": batch,
        "image_size": args.image_size,
        "precision": args.precision,
        "jaxcls_images_per_second": batch / ours,
        "torch_images_per_second": batch / medians[fastest],
        "torch_mode": fastest,
        "ratio": medians[fastest] / ours,
        "seconds": times,
    }


def peaks(row: dict) -> str:
    """Two more cells, if they were measured."""
    found = [row[key] for key in ("jaxcls_peak_bytes", "torch_peak_bytes") if key in row]
    return "".join(f" {number / 2**30:.2f} GiB |" for number in found)


def peak_bytes(side: str, name: str, batch: int, args: argparse.Namespace) -> int:
    """Resident memory of two training steps at its peak, after two more, over that before them, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_peak_bytes, side, name, batch, args).result()


def _peak_bytes(side: str, name: str, batch: int, args: argparse.Namespace) -> int:
    before = resident("VmRSS")
    if side == "torch":
        run = torch_training(name, batch, args, torch.device("cpu"), compiled=False)
    else:
        runtime.configure("fp32")
        compile_step, call = jaxcls_steps("train", name, batch, args)
        compile_step()

        def run(steps: int) -> None:
            for _ in range(steps):
                jax.block_until_ready(call())

    run(2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: without what compiling took
    run(2)
    return resident("VmHWM") - before


def resident(what: str) -> int:
    """Bytes of this process in memory: `VmRSS`, now, or `VmHWM`, at the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


def torch_network(name: str, batch: int, args: argparse.Namespace, device: torch.device, compiled: bool):
    """The network, a batch of noise in channels_last, labels, and the context of the precision."""
    net = torch_resnet.build(name, measure.CLASSES).to(device, memory_format=torch.channels_last)
    images = torch.rand(batch, 3, args.image_size, args.image_size, device=device)
    labels = torch.randint(measure.CLASSES, (batch,), device=device)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")
    return (torch.compile(net) if compiled else net), images.to(memory_format=torch.channels_last), labels, amp


def torch_training(name: str, batch: int, args: argparse.Namespace, device: torch.device, compiled: bool) -> Callable:
    net, images, labels, amp = torch_network(name, batch, args, device, compiled)
    config = measure.OPTIMIZER
    optimizer = torch.optim.SGD(
        net.parameters(), lr=measure.RATE, momentum=config.momentum, weight_decay=config.weight_decay
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=measure.SMOOTHING)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            with amp:
                loss = loss_of(net(images), labels)
            loss.backward()
            optimizer.step()
        wait(device)

    return run


def torch_inference(name: str, batch: int, args: argparse.Namespace, device: torch.device, compiled: bool) -> Callable:
    net, images, _, amp = torch_network(name, batch, args, device, compiled)
    net.eval()

    @torch.inference_mode()
    def run(steps: int) -> None:
        with amp:
            for _ in range(steps):
                net(images).softmax(-1).topk(5)
        wait(device)

    return run


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
