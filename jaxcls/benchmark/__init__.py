"""`jaxcls benchmark`: how fast is it here?"""

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
    with command.before_files(args.json, pictures):
        report = _measure(args)
    if args.json:
        from jaxcls.report.files import write_json

        write_json(Path(args.json), report)
        print(f"Wrote {args.json}.")
    if pictures:
        draw(report, Path(pictures))


def _measure(args) -> dict | list[dict]:
    """The report; what measures is imported late, so that a wrong flag is refused at once."""
    if args.what == "data":
        from jaxcls.benchmark.data import benchmark_data

        return benchmark_data(args)
    names = _networks(args.model)
    _check_batches([args.batch] if args.what in ("layers", "layout") else args.batch)
    if args.what == "layers":
        from jaxcls.benchmark.layers import benchmark_layers

        return benchmark_layers(args, names)
    if args.what == "layout":
        from jaxcls.benchmark.layers import benchmark_layout

        return benchmark_layout(args, names)
    from jaxcls.benchmark.steps import benchmark_steps

    return benchmark_steps(args, names)


def _check_batches(batches: list[int]) -> None:
    from jaxcls.resolve import BOUNDS

    _, most = BOUNDS["train.batch_size"]
    if max(batches) > most:
        raise ConfigError(f"--batch={max(batches)} must be at most {most}")


def _networks(names: list[str]) -> list[str]:
    from jaxcls.models.registry import create_model, list_models

    if names == ["all"]:
        return list_models()
    for name in names:
        create_model(name, num_classes=1)  # refuses an unknown one
    return names
