"""`jaxcls benchmark`: how fast is it here?"""

import itertools
import sys
from pathlib import Path

from jaxcls import command, flags
from jaxcls.errors import ConfigError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: benchmark(flags.parse_benchmark(argv)))


def benchmark(args) -> None:
    """Measures `args.what`; see `flags.parse_benchmark`. Prints a table, and writes `args.json`."""
    from jaxcls.resolve import BOUNDS

    command.check_writable(args.json, "--json")
    pictures = args.pictures if args.what == "infer" else None
    least, most = BOUNDS["data.image_size"]
    if not least <= args.image_size <= most:
        raise ConfigError(f"--image-size={args.image_size} must be between {least} and {most}")
    if pictures:
        from jaxcls.pictures import draw, make_folder

        make_folder(Path(pictures))
    report = KINDS[args.what](args)
    if args.json:
        from jaxcls.report.files import write_json

        write_json(Path(args.json), report)
        print(f"Wrote {args.json}.")
    if pictures:
        draw(report, Path(pictures))


def benchmark_steps(args) -> list[dict]:
    """Training or inference of each network, batch and precision."""
    from jaxcls import runtime
    from jaxcls.models.measure import matmul_peak
    from jaxcls.precision import POLICIES
    from jaxcls.train.measure import measure_steps

    names = _networks(args)
    runtime.configure("fp32", cached=False)  # the time to compile is a figure, too
    peaks = {precision: matmul_peak(POLICIES[precision].compute_dtype) for precision in args.precision}
    for precision, peak in peaks.items():
        print(f"Matrix product, {precision}: {peak / 1e9:,.0f} GFLOPS.")
    head = ("images/s", "avg ms", "p50", "p90", "p95", "p99", "spread")
    head += ("GFLOPS", "of peak", "GiB", "compile s", "first step s")
    print(f"\n{'network':22}{'batch':>6}{'':>6}" + "".join(f"{title:>13}" for title in head))
    found = []
    for name, precision, batch in itertools.product(names, args.precision, args.batch):
        row = measure_steps(
            args.what,
            name,
            batch=batch,
            precision=precision,
            image_size=args.image_size,
            count=args.steps,
            warmup=args.warmup,
            peak=peaks[precision],
            remat=args.what == "train" and args.remat,
        )
        found.append(row)
        cells = [f"{row['images_per_second']:,.1f}", *(f"{value:,.1f}" for value in row["step_ms"].values())]
        cells += [f"{row['spread']:.0%}", f"{row['flops_per_second'] / 1e9:,.0f}", f"{row['peak_fraction']:.0%}"]
        cells += [f"{row['peak_memory_bytes'] / 2**30:.2f}"]
        cells += [f"{row[key]:.1f}" for key in ("compile_seconds", "first_step_seconds")]
        print(f"{name:22}{batch:>6}{precision:>6}" + "".join(f"{cell:>13}" for cell in cells), flush=True)
    return found


def benchmark_layers(args) -> list[dict]:
    """Each lowering of each different convolution."""
    from jaxcls import runtime
    from jaxcls.models import measure
    from jaxcls.precision import POLICIES

    shapes = measure.distinct_convolutions(_networks(args), args.image_size)
    runtime.configure("fp32")
    dtype = POLICIES[args.precision].compute_dtype
    peak = measure.matmul_peak(dtype)
    print(
        f"{len(shapes)} different convolutions, batch {args.batch}, {args.precision}; matrix product: {peak / 1e9:,.0f} "
        "GFLOPS. Milliseconds, and share of that speed; * what a network takes.\n\n"
        f"{'side, in, out, window, stride, groups':>38}  {'lowering':9}{'forward':>16}{'dx':>16}{'dw':>16}"
    )
    found = []
    for shape, networks in shapes.items():
        work = args.batch * shape.flops
        rows = []
        for row in measure.time_lowerings(shape, args.batch, dtype):
            shares = {part: work / row[part] / peak for part in PARTS}
            rows.append(row | {"peak_fraction": shares})
            marks = (f"{'*' if part in row['planned'] else ' '}{1e3 * row[part]:8.2f} {shares[part]:5.0%}" for part in PARTS)
            title = "" if len(rows) > 1 else ", ".join(map(str, shape))
            print(f"{title:>38}  {row['lowering']:9}" + "".join(f"{mark:>16}" for mark in marks), flush=True)
        facts = {"batch": args.batch, "precision": args.precision, "gflops": work / 1e9, "networks": list(networks)}
        found.append(shape._asdict() | facts | {"peak_flops_per_second": peak, "lowerings": rows})
    return found


def benchmark_layout(args) -> dict:
    """XLA's convolution with channels last and first: each different one, and the sums over each network."""
    from jaxcls import runtime
    from jaxcls.models import measure
    from jaxcls.precision import POLICIES

    names = _networks(args)
    shapes = measure.distinct_convolutions(names, args.image_size)
    runtime.configure("fp32")
    dtype = POLICIES[args.precision].compute_dtype
    print(
        f"{len(shapes)} different convolutions, batch {args.batch}, {args.precision}, as XLA takes them. Milliseconds, "
        "channels last (NHWC) / first (NCHW).\n\n"
        f"{'side, in, out, window, stride, groups':>38}" + "".join(f"{part:>20}" for part in PARTS) + f"{'a transpose':>13}"
    )
    layers = []
    for shape, counts in shapes.items():
        row = measure.time_layouts(shape, args.batch, dtype)
        pairs = (f"{1e3 * row['nhwc'][part]:9.2f} /{1e3 * row['nchw'][part]:9.2f}" for part in PARTS)
        cells = "".join(f"{pair:>20}" for pair in pairs) + f"{1e3 * row['transpose']:13.2f}"
        print(f"{', '.join(map(str, shape)):>38}{cells}", flush=True)
        layers.append(shape._asdict() | {"networks": counts} | row)
    for name in names:
        _print_layouts(name, layers)
    sums = {name: {layout: _layer_seconds(layers, name, layout) for layout in ("nhwc", "nchw")} for name in names}
    return {"batch": args.batch, "precision": args.precision, "layers": layers, "step_seconds": sums}


def _print_layouts(name: str, layers: list[dict]) -> None:
    """NCHW's time in NHWC's, over the convolutions of a network: by window, of all, and what transposes would take."""
    layers = [layer for layer in layers if name in layer["networks"]]
    print(f"\n{name}, NCHW's time in NHWC's" + "".join(f"{part:>12}" for part in PARTS))
    for window in sorted({layer["window"] for layer in layers}):
        own = [layer for layer in layers if layer["window"] == window]
        first, last = ([_layer_seconds(own, name, layout, part) for part in PARTS] for layout in ("nchw", "nhwc"))
        ratios = "".join(f"{one / other:12.2f}" for one, other in zip(first, last, strict=True))
        print(f"{sum(layer['networks'][name] for layer in own):6} of {window}x{window}{'':{len(name) + 12}}{ratios}")
    last, first = (_layer_seconds(layers, name, layout) for layout in ("nhwc", "nchw"))
    turning = sum(layer["networks"][name] * layer["transpose"] for layer in layers)
    turning /= _layer_seconds(layers, name, "nhwc", "forward")
    print(
        f"All of a training step: {1e3 * last:,.0f} ms NHWC, {1e3 * first:,.0f} ms NCHW, {first / last:.2f} times. A "
        f"transpose of each input would add {turning:.0%} to the forward passes."
    )


def _layer_seconds(layers: list[dict], name: str, layout: str, part: str | None = None) -> float:
    """Of a network's convolutions in a layout: one of `PARTS`, or all of them."""
    return sum(
        layer["networks"].get(name, 0) * (layer[layout][part] if part else sum(layer[layout].values())) for layer in layers
    )


PARTS = ("forward", "dx", "dw")


def _networks(args) -> list[str]:
    from jaxcls.models.registry import create_model, list_models

    names = list_models() if args.model == ["all"] else args.model
    for name in names:
        create_model(name, num_classes=1)  # refuses an unknown one
    return names


def benchmark_data(args) -> dict:
    """The input pipeline on `args.path`."""
    import jax

    from jaxcls import runtime
    from jaxcls.config import DataConfig
    from jaxcls.data import turbo
    from jaxcls.data.measure import pipeline_rate, stage_seconds, usable
    from jaxcls.data.pipeline import cores
    from jaxcls.data.sources.image_folder import find_images
    from jaxcls.report.timing import input_verdict
    from jaxcls.resolve import BOUNDS

    threads, most = args.threads or cores(), BOUNDS["data.threads"][1]
    if threads > most:
        raise ConfigError(f"--threads={threads} must be at most {most}")
    runtime.configure("fp32")
    config = DataConfig(image_size=args.image_size, interpolation=args.interpolation, threads=threads)
    found = find_images(Path(args.path))
    # Spread over all of them: the first ones may all be of one class.
    paths, bad = usable(found[:: max(1, -(-len(found) // args.most))])
    for path, reason in bad:
        print(f"Left out {path}: {reason}.", file=sys.stderr)
    device = jax.local_devices()[0]

    def put(batch):
        jax.block_until_ready(jax.device_put(batch, device))

    stages = stage_seconds(paths, config, put, args.seconds)
    rate = pipeline_rate(paths, config, put, args.seconds)
    used = min(threads, cores())
    report = {
        "images_per_second": rate,
        "images_per_second_per_core": rate / used,
        "threads": threads,
        "cores": cores(),
        "stages": stages,
        "one_thread_images_per_second": 1 / sum(stages.values()),
        "verdict": input_verdict(rate, used, args.target),
        "images": len(paths),
        "bad": [{"path": path, "reason": reason} for path, reason in bad],
        "image_size": args.image_size,
        "interpolation": args.interpolation,
        "decoder": "simplejpeg" if turbo.LIBRARY is None else "libjpeg-turbo 3",
        "device": device.device_kind,
    }
    _print(report)
    return report


def _print(report: dict) -> None:
    stages, total = report["stages"], sum(report["stages"].values())
    print(
        f"{report['images']} images, training transform at {report['image_size']} px, {report['interpolation']}, decoded by "
        f"{report['decoder']}\n\nstage     ms an image   share"
    )
    for name, seconds in stages.items():
        print(f"{name:10}{1e3 * seconds:11.3f}{100 * seconds / total:7.1f}%")
    print(f"{'together':10}{1e3 * total:11.3f}   {1 / total:,.0f} images/s on one thread")
    print(
        f"\nThe pipeline, {report['threads']} threads on {report['cores']} cores, to the device: "
        f"{report['images_per_second']:,.0f} images/s, {report['images_per_second_per_core']:,.0f} a core"
    )
    print(f"Verdict: {report['verdict']}.")


KINDS = {
    "train": benchmark_steps,
    "infer": benchmark_steps,
    "layers": benchmark_layers,
    "layout": benchmark_layout,
    "data": benchmark_data,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv))
