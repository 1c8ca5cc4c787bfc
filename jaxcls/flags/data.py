"""Flags of the commands that have to do with data."""

import argparse
from collections.abc import Sequence

from jaxcls.flags.parser import Parser, positive


def parse_prepare(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `scripts/prepare_array_record`; errors as `parse`."""
    parser = Parser(
        "prepare_array_record",
        description="Packs the images train/CLASS/* and val/CLASS/* of a folder or a plain tar file into a few large files, "
        "shuffled, for data.source=array_record. Every image is decoded once, to be sure of it. Running the same command "
        "again goes on where it stopped.",
        epilog="examples:\n"
        "  scripts/prepare_array_record IMAGENET PREPARED\n"
        "  scripts/prepare_array_record IMAGENET SMALL --resize 256 --quality 95 --skip-bad",
    )
    parser.add_argument("source", metavar="IN", help="folder or .tar file")
    parser.add_argument("target", metavar="OUT", help="directory to make")
    parser.add_argument("--shards", type=positive, metavar="N", help="training files (default: one for 5000 images)")
    parser.add_argument(
        "--resize", type=positive, metavar="S", help="shrink images to a shorter side of S pixels, as JPEG (default: keep)"
    )
    parser.add_argument("--quality", type=positive, default=95, metavar="Q", help="of shrunk JPEG, 1 to 100 (default: 95)")
    parser.add_argument("--workers", type=positive, metavar="N", help="images at a time (default: one for each core)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that do not decode (default: refuse them)")
    parser.add_argument("--verify", action="store_true", help="at the end, read all files again and compare their checksums")
    args = parser.parse_args(argv[1:])
    if args.quality > 100:
        parser.error(f"argument --quality: {args.quality} must be between 1 and 100")
    return args
