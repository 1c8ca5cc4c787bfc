"""Flags of `jaxcls benchmark`."""

import argparse
from collections.abc import Sequence

from jaxcls.flags.parser import Parser, positive

PRECISIONS = ("fp32", "bf16", "fp16")


def parse_benchmark(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls benchmark WHAT`; errors as `parse`."""
    parser = Parser(
        "jaxcls benchmark",
        description="Measures how fast it is here.",
        epilog="examples:\n"
        "  jaxcls benchmark train --model resnet50 --batch 16\n"
        "  jaxcls benchmark infer --model all --batch 1 8 32 --precision bf16 --json infer.json\n"
        "  jaxcls benchmark infer --model all --batch 1 4 16 64 256 --pictures pictures\n"
        "  jaxcls benchmark infer --batch 8 --path /data/imagenet/val --load 0.5 0.9\n"
        "  jaxcls benchmark data --path /data/imagenet/val --threads 2",
    )
    kinds = parser.add_subparsers(dest="what", required=True, parser_class=Parser, metavar="WHAT")
    for kind, text in (
        (
            "train",
            "training steps on synthetic images: images/s, latency and spread, share of the matrix product's speed, memory",
        ),
        ("infer", "inference on synthetic images: the same"),
    ):
        steps = kinds.add_parser(kind, help=text, description=text)
        _add_networks(steps)
        steps.add_argument("--batch", type=positive, nargs="+", default=[16], metavar="N", help="images (default: 16)")
        steps.add_argument(
            "--precision", choices=PRECISIONS, nargs="+", default=["fp32"], metavar="P", help="policies (default: fp32)"
        )
        steps.add_argument("--steps", type=positive, default=20, metavar="N", help="to measure (default: 20)")
        steps.add_argument("--warmup", type=positive, default=3, metavar="N", help="before them (default: 3)")
    kinds.choices["train"].add_argument("--remat", action="store_true", help="as model.remat: less memory, more time")
    kinds.choices["infer"].add_argument(
        "--pictures", metavar="DIR", help="draw throughput by latency, and published accuracy by work, into this folder"
    )
    kinds.choices["infer"].add_argument(
        "--path", metavar="DIR", help="images, in any tree of folders, to measure the throughput with data, too"
    )
    kinds.choices["infer"].add_argument(
        "--load",
        type=_share,
        nargs="+",
        default=[],
        metavar="F",
        help="shares of the throughput, such as 0.5 0.9, at which single images are asked for at random, to measure the "
        "latency from request to answer, too",
    )
    for kind, text in (
        ("layers", "each different convolution of the networks, each way to write it, forward and both gradients"),
        ("layout", "each different convolution of the networks with channels last and first, and what a transpose costs"),
    ):
        layers = kinds.add_parser(kind, help=text, description=text)
        _add_networks(layers)
        layers.add_argument("--batch", type=positive, default=8, metavar="N", help="images (default: 8)")
        layers.add_argument("--precision", choices=PRECISIONS, default="fp32", help="(default: fp32)")
    _add_data(kinds)
    for each in kinds.choices.values():
        each.add_argument("--json", metavar="OUT", help="write all figures there")
    return parser.parse_args(argv[1:])


def _share(text: str) -> float:
    """A number above 0 and below 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and below 1, a share of the throughput")
    return value


def _add_networks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", nargs="+", default=["resnet50"], metavar="NAME", help="networks, or all (default: resnet50)"
    )
    parser.add_argument("--image-size", type=positive, default=224, metavar="S", help="pixels (default: 224)")


def _add_data(kinds) -> None:
    text = "how fast training images below a folder can be read, decoded, cropped and resized"
    parser = kinds.add_parser("data", help=text, description=text)
    parser.add_argument("--path", required=True, metavar="DIR", help="images, in any tree of folders")
    parser.add_argument("--threads", type=positive, metavar="N", help="that decode (default: one a core)")
    parser.add_argument("--image-size", type=positive, default=224, metavar="S", help="pixels (default: 224)")
    parser.add_argument(
        "--interpolation", choices=("bilinear", "bicubic", "linear"), default="bilinear", help="(default: bilinear)"
    )
    parser.add_argument("--most", type=positive, default=500, metavar="N", help="images to take at most (default: 500)")
    parser.add_argument("--seconds", type=positive, default=10, metavar="T", help="of each measurement (default: 10)")
    parser.add_argument(
        "--target", type=positive, default=5500, metavar="N", help="images/s for the verdict (default: 5500, an H200's)"
    )
