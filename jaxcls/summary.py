"""`jaxcls summary`: parameters, FLOPs and activations of a network, layer by layer."""

import sys
from pathlib import Path

from jaxcls import command, flags


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: summarize(flags.parse_summary(argv)))


def summarize(args) -> None:
    """Prints the tables, and writes `args.json`; see `flags.parse_summary`. Nothing is compiled."""
    from jaxcls.models import flops
    from jaxcls.models.registry import create_model
    from jaxcls.models.resnet import part_names
    from jaxcls.report.files import write_json

    command.check_writable(args.json, "--json")
    model = create_model(args.model, num_classes=args.num_classes, se_width=args.se_width)
    layers = flops.count_layers(model, args.image_size)
    sums = flops.total(layers)
    if args.json:
        facts = {"model": args.model, "num_classes": args.num_classes, "image_size": args.image_size}
        write_json(Path(args.json), facts | sums | {"layers": [layer._asdict() for layer in layers]})
        print(f"Wrote {args.json}.")
    print(f"{args.model}, {args.num_classes} classes, one image of {args.image_size} px\n\n{_HEAD}")
    for layer in layers:
        _print_row(layer.name, " x ".join(map(str, layer.output)), layer._asdict(), sums["flops"])
    print()
    for part in part_names(model.spec):
        _print_row(part, "", flops.total([layer for layer in layers if layer.name.split("/")[0] == part]), sums["flops"])
    _print_row("total", "", sums, sums["flops"])
    print(
        f"\n{sums['macs'] / 1e9:.2f} GMACs = {sums['flops'] / 1e9:.2f} GFLOPs, forward (a multiply-add is 2 FLOPs); a "
        "training step takes about three times as much.\n"
        "Convolutions and affine layers count; BN, activations and pooling do not."
    )


_HEAD = f"{'layer':32}{'output':>16}{'parameters':>13}{'MFLOPs':>14}{'share':>8}{'activations':>16}"


def _print_row(name: str, output: str, row: dict, whole: int) -> None:
    work = f"{row['flops'] / 1e6:14,.1f}{row['flops'] / whole:8.1%}{row['activations']:16,}" if row["flops"] else ""
    print(f"{name:32}{output:>16}{row['parameters']:13,}{work}")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
