"""`jaxcls benchmark data`: how fast do training images come in?"""

import sys
from pathlib import Path

import jax

from jaxcls import runtime
from jaxcls.config import DataConfig
from jaxcls.data import turbo
from jaxcls.data.measure import pipeline_rate, stage_seconds, usable
from jaxcls.data.sources.image_folder import find_images
from jaxcls.errors import ConfigError
from jaxcls.machine import cores
from jaxcls.report.timing import input_verdict
from jaxcls.resolve import BOUNDS


def benchmark_data(args) -> dict:
    """The input pipeline on `args.path`."""
    threads, most = args.threads or cores(), BOUNDS["data.threads"][1]
    if threads > most:
        raise ConfigError(f"--threads={threads} must be at most {most}")
    runtime.configure("fp32")
    config = DataConfig(image_size=args.image_size, interpolation=args.interpolation, threads=threads)
    paths, bad = usable_images(args.path, args.most)
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


def usable_images(folder: str, most: int) -> tuple[list[Path], list[tuple[str, str]]]:
    """As `usable`, of at most `most` below a folder, spread over all of them: the first may all be of one class. Tells those
    that are left out.

    Raises:
      DataError: there is no folder, or no image that can be used.
    """
    found = find_images(Path(folder))
    paths, bad = usable(found[:: max(1, -(-len(found) // most))])
    for path, reason in bad:
        print(f"Left out {path}: {reason}.", file=sys.stderr)
    return paths, bad


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
