#!/usr/bin/env python3
"""All that only a GPU can show, in one go: speed against PyTorch, precisions, the real loop, agreement with PyTorch.

    scripts/bench_gpu.py OUT [--only GROUP ...] [--images DIR] [--dry-run]

Groups, one after another, by default all of them:

    speed       bf16, batch 256, 224 px: jaxcls and PyTorch (eager and torch.compile), taking turns
    precisions  fp32, TF32 and fp16 beside them: images/s and memory
    digits      python -m jaxcls.main, as typed, in each precision
    networks    python -m jaxcls.main: 100 steps of each network on synthetic images, bf16, batch 256, 224 px; with --images,
                of ResNet-50 on the JPEGs below DIR/train, too, repeated until they fill twelve batches
    parity      errors of the logits against PyTorch in float64; 200 steps of both on the same batches of 32 px

What belongs to a group compiles side by side, and is then measured alone, one thing after another. That takes 70 GiB of the
GPU's memory or more. OUT gets gpu.json, two pictures of losses, and what each job said. --dry-run does very little of
everything, on a CPU, too.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share the GPU's memory

NETWORKS = ("resnet50", "resnext101-32x4d", "se-resnext101-32x4d")
POLICY_OF = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}  # policies by name
FULL_FP32 = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # by default JAX multiplies float32 in TF32


class Size(NamedTuple):
    """How much work."""

    batch: int
    pixels: int
    rounds: int
    steps: int  # of a round, and of a measurement
    loop_steps: int
    parity_batch: int
    parity_steps: int
    networks: tuple[str, ...]


REAL = Size(256, 224, 5, 10, 100, 128, 200, NETWORKS)
DRY = Size(2, 32, 1, 1, 3, 8, 20, NETWORKS[:1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], default=[*GROUPS], metavar="GROUP")
    parser.add_argument("--images", type=Path, metavar="DIR")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # this process does the one job
    args = parser.parse_args()
    args.out, args.images = args.out.absolute(), args.images and args.images.absolute()
    if args.images and not args.images.is_dir():
        parser.error(f"--images {args.images} is not a folder; give one of images")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"{args.out} cannot be made ({error.strerror}); give a folder that can be")
    size = DRY if args.dry_run else REAL
    if args.job:
        work(args, size)
        return 0
    found, failed = {"device": "", "seconds": 0.0}, []
    began = time.monotonic()
    for group in GROUPS:
        if group not in args.only:
            continue
        for name, result in run_jobs(args, GROUPS[group](args, size)):
            if result is None:
                failed.append(name)
                continue
            found |= {name: result, "device": result["device"], "seconds": time.monotonic() - began}
            (args.out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(args, found)
    show(found)
    print(f"\n{found['device']}, {found['seconds']:.0f} s in all; wrote {args.out / 'gpu.json'}.")
    for name in failed:
        print(f"FAILED: {name}; see {args.out / name}.log", file=sys.stderr)
    return 1 if failed else 0


# --- Processes: each prepares, says so, waits for its turn, measures.


def run_jobs(args: argparse.Namespace, names: list[str]) -> Iterator[tuple[str, dict | None]]:
    """Each job and its result, `None` if it failed."""
    processes = {}
    for name in names:
        command = [sys.executable, __file__, str(args.out), "--job", name, *["--dry-run"] * args.dry_run]
        command += ["--images", str(args.images)] if args.images else []
        processes[name] = subprocess.Popen(
            command,
            env=os.environ | environment_of(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(args.out / f"{name}.log").open("w"),
            text=True,
        )
    for name, process in processes.items():
        print(f"{name}: {process.stdout.readline().strip() or 'failed'}", flush=True)
    for name, process in processes.items():
        with contextlib.suppress(BrokenPipeError):  # it has failed
            process.stdin.write("go\n")
            process.stdin.close()
        answer = process.stdout.read()
        result = json.loads(answer) if process.wait() == 0 else None
        print(f"{name}: {json.dumps(brief(result)) if result else 'failed'}", flush=True)
        yield name, result


def work(args: argparse.Namespace, size: Size) -> None:
    """A job: `prepare` is what comes before its generator's first yield."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    began = time.monotonic()
    kind, _, rest = args.job.partition("-")
    steps = JOBS[kind](rest, args, size)
    next(steps)
    print(f"ready in {time.monotonic() - began:.0f} s", file=answers, flush=True)
    sys.stdin.readline()
    print(json.dumps(next(steps)), file=answers, flush=True)


def environment_of(name: str) -> dict[str, str]:
    return FULL_FP32 if name.endswith("-fp32") else {}


def device_facts() -> dict[str, Any]:
    import jax

    from jaxcls.versions import installed

    return {"device": jax.devices()[0].device_kind, "versions": installed()}


# --- Speed


def speed(network: str, args: argparse.Namespace, size: Size) -> Iterator[dict | None]:
    """A training step in bf16, ours and PyTorch's."""
    import bench_vs_torch
    import torch

    from jaxcls import runtime

    runtime.configure("fp32", cached=False)
    how = SimpleNamespace(
        image_size=size.pixels, precision="bf16", compile=not args.dry_run, rounds=size.rounds, steps=size.steps
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides, program = bench_vs_torch.prepare("train", network, size.batch, how, device)
    facts = device_facts() | {"torch": torch.__version__} | program_facts(program, size)
    yield None
    yield facts | bench_vs_torch.take_turns("train", network, size.batch, how, sides)


def precisions(rest: str, args: argparse.Namespace, size: Size) -> Iterator[dict | None]:
    """Training steps of each network in each precision; in one process, where programs that are compiled share memory."""
    import jax

    import jaxcls
    from jaxcls import runtime
    from jaxcls.precision import POLICIES
    from jaxcls.train import measure

    runtime.configure("fp32", cached=False)

    def prepare(network: str, name: str):
        policy = POLICIES[POLICY_OF[name]]
        model = jaxcls.create_model(
            network, num_classes=measure.CLASSES, dtype=policy.compute_dtype, param_dtype=policy.param_dtype
        )
        began = time.monotonic()
        with jax.default_matmul_precision("highest" if name == "fp32" else "default"):  # by default float32 is TF32
            compile_step, call = measure.prepare_training(model, size.batch, size.pixels, POLICY_OF[name], jax.devices()[:1])
            facts = program_facts(compile_step(), size)
        return facts | {"compile_seconds": time.monotonic() - began}, call

    with ThreadPoolExecutor(6) as pool:
        pairs = [(network, name) for network in size.networks for name in POLICY_OF]
        prepared = [pool.submit(prepare, *pair) for pair in pairs]
    yield None
    rows = []
    for (network, name), future in zip(pairs, prepared, strict=True):
        facts, call = future.result()
        for _ in range(2):
            jax.block_until_ready(call())
        rate = size.batch / statistics.median(measure.intervals(call, size.steps))
        rows.append({"model": network, "precision": name, "batch": size.batch, "images_per_second": rate} | facts)
    yield device_facts() | {"rows": rows}


def program_facts(program, size: Size) -> dict[str, Any]:
    """Memory of a compiled step, and the float32 activations that it writes to memory."""
    from jaxcls.memory import program_bytes

    return {
        "memory_gib": sum(program_bytes(program).values()) / 2**30,
        "float32_activations": float32_activations(program.as_text(), size.batch),
    }


def float32_activations(program: str, batch: int) -> list[str]:
    """Shapes of float32 arrays of four axes, a batch of more than 4 x 4 pixels, that the program writes to memory."""
    found = []
    entry = program[program.index("\nENTRY") :]
    for line in entry.splitlines():
        result, separator, _ = line.partition(" fusion(") if " fusion(" in line else line.partition(" custom-call(")
        if separator and "=" in result:
            shapes = result.partition("=")[2].split("f32[")[1:]
            dims = [[int(side) for side in shape.partition("]")[0].split(",") if side] for shape in shapes]
            found += [str(tuple(one)) for one in dims if len(one) == 4 and one[0] == batch and one[1] > 4]
    return found


# --- The real loop


def loop(rest: str, args: argparse.Namespace, size: Size) -> Iterator[dict | None]:
    """`python -m jaxcls.main`, twice: the first time fills the compilation cache."""
    commands = {
        "input": ["resnet50.py", f"data.path={args.out / 'images'}"],
        **{f"digits-{name}": ["resnet50.py", f"precision.policy={policy}"] for name, policy in POLICY_OF.items()},
        **{f"synthetic-{name}": [f"{name.replace('-', '_')}.py", "data.source=synthetic"] for name in size.networks},
    }
    config, *overrides = commands[rest]
    if rest == "input":
        repeat_images(args.images, args.out / "images", 12 * size.batch)
    if rest.startswith("digits"):
        overrides += ["checkpoint.every_steps=100000"] + ["train.max_steps=3"] * args.dry_run
    else:
        overrides += [f"train.max_steps={size.loop_steps}", f"train.batch_size={size.batch}", "train.epochs=90"]
        overrides += ["precision.policy=bf16", f"data.image_size={size.pixels}", "checkpoint.every_steps=100000"]
    repository = Path(__file__).parents[1]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(args.out / "cache" / rest)}
    for turn in ("first", "second"):
        workdir = args.out / "runs" / f"{rest}-{turn}"
        shutil.rmtree(workdir, ignore_errors=True)
        command = [sys.executable, "-m", "jaxcls.main", "--config", f"configs/{config}", "--workdir", str(workdir)]
        command += [f"--config.{override}" for override in overrides]
        subprocess.run(command, check=True, cwd=repository, env=environment)
        if turn == "first":
            yield None
    summary = json.loads((workdir / "summary.json").read_text())
    losses = [json.loads(line)["train.loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("final_top1", "steps", "images_per_second", "data_wait_fraction", "wall_seconds", "device", "versions")
    yield {key: summary[key] for key in keys} | {"command": " ".join(command[1:]), "losses": losses}


def repeat_images(images: Path, out: Path, least: int) -> None:
    """An image folder of the photographs below `images/train`, linked to under as many names as make `least` of them."""
    if (out / "val").exists():
        return
    found = sorted(path for path in (images / "train").rglob("*") if path.is_file())
    for split in ("train", "val"):
        for copy in range(-(-least // len(found)) if split == "train" else 1):
            for path in found:
                link = out / split / path.parent.name / f"{copy}-{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)


# --- Agreement with PyTorch


def logits(network: str, args: argparse.Namespace, size: Size) -> Iterator[dict | None]:
    """Errors of the logits on random, calibrated weights, against PyTorch in float64 on the CPU."""
    import jax
    import numpy as np
    import torch

    import jaxcls
    from jaxcls import loading, runtime, xla
    from jaxcls.interop import torch_resnet, torch_side, torch_weights

    runtime.configure("fp32", cached=False)
    torch.manual_seed(0)
    images = torch_side.normalized(np.random.default_rng(0).integers(256, size=(8, size.pixels, size.pixels, 3)))
    net = torch_resnet.build(network, 1000).double()
    torch_side.calibrate(net, images)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        truth = net.eval()(tensor).numpy()
    state = {name: array.astype(np.float32) for name, array in torch_side.arrays(net.state_dict()).items()}
    variables, options, _ = loading.from_state(torch_weights.strip_prefixes(state), network)
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    net, tensor = net.float().to(cuda, memory_format=torch.channels_last), tensor.float().to(cuda)

    def ours(name: str) -> np.ndarray:
        model = jaxcls.create_model(**options, dtype="bfloat16" if name == "bf16" else "float32")
        with jax.default_matmul_precision("highest" if name == "fp32" else "default"):
            apply = xla.jit(lambda variables, images: model.apply(variables, images, train=False), train=False)
            return np.asarray(apply(variables, images.astype(np.float32)))

    def theirs(name: str) -> np.ndarray:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        with torch.no_grad(), torch.autocast(cuda, torch.bfloat16, enabled=name == "bf16"):
            return net(tensor).float().cpu().numpy()

    names = ("fp32", "tf32", "bf16")
    answers = {name: {"jax": ours(name), "torch": theirs(name)} for name in names}
    yield None
    errors = {
        name: {side: float(np.abs(found - truth).max() / np.abs(truth).max()) for side, found in sides.items()}
        for name, sides in answers.items()
    }
    agree = {name: 100 * float((sides["jax"].argmax(-1) == truth.argmax(-1)).mean()) for name, sides in answers.items()}
    yield device_facts() | {"model": network, "errors": errors, "top1_agreement": agree}


def curves(rest: str, args: argparse.Namespace, size: Size) -> Iterator[dict | None]:
    """ResNet-50 from the same weights on the same batches of digits at 32 px, float32 without TF32, on both sides."""
    import jax
    import numpy as np
    import torch

    import jaxcls
    from jaxcls import loading, runtime
    from jaxcls.config import DataConfig, OptimConfig, ScheduleConfig
    from jaxcls.data.pipeline import train_batches
    from jaxcls.data.sources import make_source
    from jaxcls.interop import torch_resnet, torch_side, torch_weights
    from jaxcls.train import optim, steps

    runtime.configure("fp32", cached=False)
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    count, batch = size.parity_steps, size.parity_batch
    decay, smoothing = 1 / 16384, 0.1
    source = make_source(DataConfig(source="digits", image_size=32), "train")
    config = DataConfig(source="digits", image_size=32, augment="none", eval_resize=32)
    pairs = [
        (found.image, found.label)
        for found in train_batches(source, config, batch_size=batch, seed=0, start_step=0, stop_step=count)
    ]
    torch.manual_seed(0)
    net = torch_resnet.build("resnet50", 10)
    for block in (module for module in net.modules() if hasattr(module, "bn3")):
        torch.nn.init.zeros_(block.bn3.weight)  # or rounding errors double at every step: see docs/parity.md
    variables, options, _ = loading.from_state(torch_weights.strip_prefixes(torch_side.arrays(net.state_dict())), "resnet50")
    net = net.to(cuda, memory_format=torch.channels_last).train()
    rate = optim.make_schedule(ScheduleConfig(warmup_epochs=1), peak_lr=0.05, epochs=10, steps_per_epoch=-(-count // 10))
    optimizer = optim.make_optimizer(OptimConfig(weight_decay=decay), rate)
    mesh = steps.make_mesh(jax.devices()[:1])
    state = steps.init_state(jaxcls.create_model(**options), optimizer, mesh, 0)
    state = state.replace(
        **jax.device_put(jax.tree.map(np.array, variables), jax.sharding.NamedSharding(mesh, steps.REPLICATED))
    )
    step = steps.make_train_step(jaxcls.create_model(**options), optimizer, rate, mesh, label_smoothing=smoothing)
    step = step.lower(state, *pairs[0], jax.random.key(0)).compile()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim == 1 and p.shape != (10,)], "weight_decay": 0.0},
        {"params": [p for p in net.parameters() if p.ndim > 1 or p.shape == (10,)], "weight_decay": decay},
    ]
    torch_optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.875)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    yield None
    ours, theirs = [], []
    for index, (images, labels) in enumerate(pairs):
        state, metrics = step(state, images, labels, jax.random.key(0))
        ours.append(float(metrics["loss"]))
        for group in torch_optimizer.param_groups:
            group["lr"] = float(metrics["lr"])
        tensor = torch.from_numpy(torch_side.normalized(images).transpose(0, 3, 1, 2)).float().to(cuda)
        torch_optimizer.zero_grad()
        loss = loss_of(net(tensor), torch.from_numpy(labels).long().to(cuda))
        loss.backward()
        torch_optimizer.step()
        theirs.append(loss.item())
        if index == 0:
            first = abs(ours[0] - theirs[0]) / theirs[0]
    last = {side: statistics.mean(found[-20:]) for side, found in (("jax", ours), ("torch", theirs))}
    yield device_facts() | {"jax": ours, "torch": theirs, "first_relative_difference": first, "mean_of_last_20": last}


# --- What there is to do


JOBS = {"speed": speed, "precisions": precisions, "loop": loop, "logits": logits, "curves": curves}
GROUPS = {
    "speed": lambda args, size: [f"speed-{name}" for name in size.networks],
    "precisions": lambda args, size: ["precisions-"],
    "digits": lambda args, size: [f"loop-digits-{name}" for name in POLICY_OF],
    "networks": lambda args, size: [
        *(f"loop-synthetic-{name}" for name in size.networks),
        *["loop-input"] * bool(args.images),
    ],
    "parity": lambda args, size: [*(f"logits-{name}" for name in size.networks), "curves-"],
}


LONG = ("seconds", "command", "versions")


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """Without what is long."""
    return {key: value for key, value in row.items() if not isinstance(value, list) and key not in LONG}


def draw(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Pictures of the losses."""
    from jaxcls.report.plots import losses_by_step

    digits = {each: found[f"loop-digits-{each}"]["losses"] for each in POLICY_OF if f"loop-digits-{each}" in found}
    if digits:
        losses_by_step(args.out / "losses-precisions.svg", digits, title="ResNet-50 on the digits, by precision")
    if "curves-" in found:
        both = {"jaxcls": found["curves-"]["jax"], "PyTorch": found["curves-"]["torch"]}
        losses_by_step(args.out / "losses-torch.svg", both, title="The same weights and batches, float32")


def show(found: dict[str, Any]) -> None:
    """Tables for the docs."""
    rows = [row for name, row in found.items() if name.startswith("speed-")]
    if rows:
        print("\n| network, batch | jaxcls images/s | PyTorch images/s | ratio |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} bf16, {row['batch']} | {row['jaxcls_images_per_second']:,.0f} | "
            f"{row['torch_images_per_second']:,.0f} ({row['torch_mode']}) | {row['ratio']:.2f} |"
        )
    rows = found.get("precisions-", {}).get("rows", [])
    if rows:
        print("\n| network | precision | images/s | GiB | compile s |\n|---|---|---|---|---|")
    for row in rows:
        cells = f"{row['images_per_second']:,.0f} | {row['memory_gib']:.1f} | {row['compile_seconds']:.0f}"
        print(f"| {row['model']} | {row['precision']} | {cells} |")
    rows = {name[5:]: row for name, row in found.items() if name.startswith("loop-")}
    if rows:
        print("\n| run | steps | images/s | waiting for data | top-1 | seconds |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['steps']} | {row['images_per_second']:,.0f} | {row['data_wait_fraction']:.1%} | "
            f"{row['final_top1']:.2f}% | {row['wall_seconds']:.0f} |"
        )
    rows = [row for name, row in found.items() if name.startswith("logits-")]
    if rows:
        print("\n| network | precision | jaxcls | PyTorch | top-1 agreement |\n|---|---|---|---|---|")
    for row in rows:
        for name, errors in row["errors"].items():
            agreement = f"{row['top1_agreement'][name]:.0f}%"
            print(f"| {row['model']} | {name} | {errors['jax']:.1e} | {errors['torch']:.1e} | {agreement} |")
    if "curves-" in found:
        row = found["curves-"]
        print(
            f"\n{len(row['jax'])} steps: the first loss differs by {row['first_relative_difference']:.1e}; mean of the last "
            f"20: jaxcls {row['mean_of_last_20']['jax']:.4f}, PyTorch {row['mean_of_last_20']['torch']:.4f}."
        )


if __name__ == "__main__":
    sys.exit(main())
