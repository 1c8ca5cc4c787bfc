"""`jaxcls benchmark`: how fast is it here?"""

import sys
from pathlib import Path

from jaxcls import command, flags
from jaxcls.errors import ConfigError


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: benchmark_data(flags.parse_benchmark(argv)))


def benchmark_data(args) -> None:
    """Measures the input pipeline on `args.path`; see `flags.parse_benchmark`. Prints a table, and writes `args.json`."""
    import jax

    from jaxcls import runtime
    from jaxcls.config import DataConfig
    from jaxcls.data import turbo
    from jaxcls.data.measure import pipeline_rate, stage_seconds, usable
    from jaxcls.data.pipeline import cores
    from jaxcls.data.sources.image_folder import find_images
    from jaxcls.report.files import write_json
    from jaxcls.report.timing import input_verdict
    from jaxcls.resolve import BOUNDS

    command.check_writable(args.json, "--json")
    least, most = BOUNDS["data.image_size"]
    if not least <= args.image_size <= most:
        raise ConfigError(f"--image-size={args.image_size} must be between {least} and {most}")
    runtime.configure("fp32")
    threads = args.threads or cores()
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
    if args.json:
        write_json(Path(args.json), report)
        print(f"Wrote {args.json}.")


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


if __name__ == "__main__":
    sys.exit(main(sys.argv))
