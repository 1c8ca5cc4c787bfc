"""`jaxcls benchmark layers|layout`: how fast is each convolution, in each way to write it and in each layout?"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxcls import runtime
from jaxcls.errors import ConfigError
from jaxcls.memory import free_bytes
from jaxcls.models import measure
from jaxcls.precision import POLICIES

PARTS = ("forward", "dx", "dw")  # of training


def benchmark_layers(args, names: list[str]) -> list[dict]:
    """Each lowering of each different convolution."""
    shapes, dtype = _shapes(args, names)
    parts = ("inference", *PARTS)
    peak = measure.matmul_peak(dtype)
    print(
        f"{len(shapes)} different convolutions, batch {args.batch}, {args.precision}; matrix product: {peak / 1e9:,.0f} "
        "GFLOPS. Milliseconds, and share of that speed; * what a network takes.\n\n"
        f"{'side, in, out, window, stride, groups':>38}  {'lowering':10}" + "".join(f"{part:>16}" for part in parts)
    )
    found = []
    for shape, networks in shapes.items():
        work = args.batch * shape.flops
        rows = []
        for row in measure.time_lowerings(shape, args.batch, dtype):
            shares = {part: work / row[part] / peak for part in parts}
            rows.append(row | {"peak_fraction": shares})
            marks = (f"{'*' if part in row['planned'] else ' '}{1e3 * row[part]:8.2f} {shares[part]:5.0%}" for part in parts)
            title = "" if len(rows) > 1 else ", ".join(map(str, shape))
            print(f"{title:>38}  {row['lowering']:10}" + "".join(f"{mark:>16}" for mark in marks), flush=True)
        facts = {"batch": args.batch, "precision": args.precision, "gflops": work / 1e9, "networks": list(networks)}
        found.append(shape._asdict() | facts | {"peak_flops_per_second": peak, "lowerings": rows})
    return found


def benchmark_layout(args, names: list[str]) -> dict:
    """XLA's convolution with channels last and first: each different one, and the sums over each network."""
    shapes, dtype = _shapes(args, names)
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


def _shapes(args, names: list[str]) -> tuple[dict, Any]:
    """The convolutions to measure, and the type; JAX is ready for them.

    Raises:
      ConfigError: a batch that does not fit in memory.
    """
    shapes = measure.distinct_convolutions(names, args.image_size)
    runtime.configure("fp32")
    dtype = jnp.dtype(POLICIES[args.precision].compute_dtype)
    # The input, the output, and what lies under the windows (if there are any), each with a gradient.
    largest = max(
        2 * (s.side**2 * s.channels + s.area * s.out + (s.window > 1) * s.window**2 * s.area * s.channels) for s in shapes
    )
    needed, free = args.batch * largest * dtype.itemsize, free_bytes(jax.local_devices()[0])
    if needed > free:
        raise ConfigError(
            f"--batch {args.batch} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; about "
            f"{int(args.batch * free / needed)} would fit"
        )
    return shapes, dtype


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
