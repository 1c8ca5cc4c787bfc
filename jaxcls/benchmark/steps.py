"""`jaxcls benchmark train|infer`: how fast is a step of a network?"""

import itertools
import sys
from pathlib import Path

from jaxcls import runtime
from jaxcls.benchmark.data import usable_images
from jaxcls.data.measure import Files
from jaxcls.models.measure import matmul_peak
from jaxcls.precision import POLICIES
from jaxcls.train import serving
from jaxcls.train.measure import measure_steps

MOST_IMAGES = 500  # of a folder; they are taken over and over
HEAD = ("images/s", "avg ms", "p50", "p90", "p95", "p99", "spread", "GFLOPS", "of peak", "GiB", "compile s", "first step s")


def benchmark_steps(args, names: list[str]) -> list[dict]:
    """Training or inference of each network, precision and batch."""
    paths = usable_images(args.path, MOST_IMAGES)[0] if args.what == "infer" and args.path else []
    runtime.configure("fp32", cached=False)  # the time to compile is a figure, too
    peaks = {precision: matmul_peak(POLICIES[precision].compute_dtype) for precision in args.precision}
    for precision, peak in peaks.items():
        print(f"Matrix product, {precision}: {peak / 1e9:,.0f} GFLOPS.")
    print(f"\n{'network':22}{'batch':>6}{'':>6}" + "".join(f"{title:>13}" for title in HEAD))
    return [
        _measure(args, name, precision, batch, peaks[precision], paths)
        for name, precision, batch in itertools.product(names, args.precision, args.batch)
    ]


def _measure(args, name: str, precision: str, batch: int, peak: float, paths: list[Path]) -> dict:
    """One row, as it is printed; its network is gone afterwards."""
    infer = args.what == "infer"
    row, call = measure_steps(
        args.what,
        name,
        batch=batch,
        precision=precision,
        image_size=args.image_size,
        count=args.steps,
        warmup=args.warmup,
        peak=peak,
        remat=not infer and args.remat,
    )
    _print_row(row)
    if paths:
        row["with_data"] = serving.rate_with_data(call, Files(paths, sys.maxsize), row, args.steps, args.warmup)
        _print_with_data(row["with_data"], row["images_per_second"])
    if infer and args.load:
        row["load"] = [serving.answer_requests(call, row, share, args.steps) for share in args.load]
        for answered in row["load"]:
            _print_load(answered)
    return row


def _print_row(row: dict) -> None:
    cells = [f"{row['images_per_second']:,.1f}", *(f"{value:,.1f}" for value in row["step_ms"].values())]
    cells += [f"{row['spread']:.0%}", f"{row['flops_per_second'] / 1e9:,.0f}", f"{row['peak_fraction']:.0%}"]
    cells += [f"{row['peak_memory_bytes'] / 2**30:.2f}"]
    cells += [f"{row[key]:.1f}" for key in ("compile_seconds", "first_step_seconds")]
    title = f"{row['model']:22}{row['batch']:>6}{row['precision']:>6}"
    print(title + "".join(f"{cell:>13}" for cell in cells), flush=True)


def _print_with_data(found: dict, without: float) -> None:
    rate = found["images_per_second"]
    text = f"with data: {rate:,.1f} images/s, {rate / without:.2f} times that without; {found['wait_fraction']:.0%}"
    print(f"    {text} of the time goes to waiting for images", flush=True)


def _print_load(found: dict) -> None:
    latency = ", ".join(f"{key} {value:,.1f}" for key, value in found["latency_ms"].items())
    text = f"{found['share']:.0%} of that asked for, {found['asked_per_second']:,.1f} images/s: {latency} ms"
    print(f"    {text} from request to answer; {found['images_per_batch']:.1f} images a batch", flush=True)
