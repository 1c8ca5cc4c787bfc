"""Flags of the commands that have to do with networks and their weights."""

import argparse
from collections.abc import Sequence

from jaxcls.flags.parser import Parser, natural, positive
from jaxcls.interop.torch_files import SUFFIXES

NAMES = ("reference", "torchvision", "timm")  # keys of jaxcls.interop.torch_weights.NAMINGS, which comes with JAX


def parse_convert(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls convert`; errors as `parse`."""
    parser = Parser(
        "jaxcls convert",
        description="Converts weights. IN is a PyTorch file, a run or a directory of weights; OUT is a PyTorch file (by its "
        f"ending: {', '.join(SUFFIXES)}) or, with any other name, a directory of jaxcls weights.",
        epilog="examples:\n"
        "  jaxcls convert --model resnet50 nvidia_resnet50.pth.tar weights/resnet50\n"
        "  jaxcls convert runs/mine mine.pth",
    )
    _add_weights_flags(parser)
    parser.add_argument("--names", choices=NAMES, default="reference", help="of a PyTorch OUT (default: reference)")
    parser.add_argument("--labels", metavar="FILE", help="class names to keep with the weights: a line each, or JSON")
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    return parser.parse_args(argv[1:])


def parse_classify(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls classify`; errors as `parse`."""
    parser = Parser("jaxcls classify", description="Classifies images, and those in folders (and folders in them).")
    parser.add_argument("--weights", required=True, metavar="PATH", help="a run, jaxcls weights or a PyTorch file")
    _add_weights_flags(parser)
    parser.add_argument("--labels", metavar="FILE", help="class names, a line each, or JSON (default: the weights' own)")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--heatmaps",
        metavar="DIR",
        help="draw there, beside each image, what in it speaks for its likeliest class (Grad-CAM)",
    )
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    return parser.parse_args(argv[1:])


def parse_compare(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls compare`; errors as `parse`."""
    parser = Parser(
        "jaxcls compare",
        description="Computes the same with a network of jaxcls and with PyTorch, and says how far they are apart and from "
        "which layer on. Needs the torch extra.",
        epilog="examples:\n"
        "  jaxcls compare --model resnet50                                   # random weights, noise\n"
        "  jaxcls compare --model resnet50 --torch nvidia.pth.tar --images DIR --train-steps 20 --json parity.json\n"
        "  jaxcls compare --model resnet50 --torch-module my.package:make_resnet",
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the network (see jaxcls.list_models)")
    parser.add_argument("--torch", metavar="PATH", help="PyTorch weights for both sides (default: random ones)")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights of a PyTorch training checkpoint")
    parser.add_argument(
        "--torch-module", metavar="PKG.MOD:FACTORY", help="your own network: FACTORY() makes it (default: one of jaxcls's)"
    )
    parser.add_argument("--images", metavar="DIR", help="photographs to compare on (default: seeded noise)")
    parser.add_argument("--count", type=positive, default=4, metavar="N", help="images in a batch (default: 4)")
    parser.add_argument("--image-size", type=positive, default=224, metavar="S", help="pixels (default: 224)")
    parser.add_argument("--train-steps", type=int, default=0, metavar="N", help="optimizer steps side by side (default: 0)")
    parser.add_argument(
        "--free-running",
        action="store_true",
        help="let both sides train on by themselves; random weights then start with a last BN scale of 0 (default: before "
        "each step jaxcls takes over PyTorch's state)",
    )
    parser.add_argument(
        "--decay-bn", choices=("reference", "none", "all"), default="reference", help="jaxcls's optim.decay_bn"
    )
    parser.add_argument("--every", choices=("epoch", "step"), default="epoch", help="jaxcls's schedule.every")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of random weights, noise, labels and mixup")
    parser.add_argument("--json", metavar="OUT", help="write all figures there")
    parser.add_argument("--picture", metavar="OUT", help="draw the error by depth: .svg or .png")
    return parser.parse_args(argv[1:])


def parse_summary(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls summary`; errors as `parse`."""
    parser = Parser("jaxcls summary", description="Parameters, FLOPs and activations of a network, layer by layer.")
    parser.add_argument("--model", required=True, metavar="NAME", help="the network (see jaxcls.list_models)")
    parser.add_argument("--image-size", type=positive, default=224, metavar="S", help="pixels (default: 224)")
    parser.add_argument("--num-classes", type=positive, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument(
        "--se-width", type=natural, default=16, metavar="N", help="of SE gates; 0: channels/16 (default: 16)"
    )
    parser.add_argument("--json", metavar="OUT", help="write all figures there")
    return parser.parse_args(argv[1:])


def _add_weights_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="the network, where the weights do not say (see jaxcls.list_models)")
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights of a run or of a PyTorch training checkpoint"
    )
