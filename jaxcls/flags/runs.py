"""Flags of the commands that have to do with a run."""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from jaxcls.config import convert, default_config, set_key
from jaxcls.errors import ConfigError
from jaxcls.flags.config_file import load_config, split_overrides
from jaxcls.flags.hosts import add_hosts, hosts_of
from jaxcls.flags.parser import Parser, positive

LEAST_STEPS = 4  # of verify-resume


class Args(NamedTuple):
    """A parsed command line of `python -m jaxcls.main`."""

    config_name: str  # the config file's stem, with its argument: resnet50-250ep
    config: ml_collections.ConfigDict  # with the overrides
    overridden: frozenset[str]  # keys that the command line set
    workdir: str | None
    mode: str  # train, evaluate
    hosts: dict[str, Any]  # arguments of `jaxcls.launch.launched`


def parse(argv: Sequence[str]) -> Args:
    """Parses the command line, program name first, and loads the config file.

    Raises:
      ConfigError: a wrong flag, key, value or file.
      SystemExit: after `--help`.
    """
    parser = _make_parser()
    known, rest = parser.parse_known_args(argv[1:])
    if known.workdir == "":
        raise ConfigError("--workdir is empty; name a directory, or leave it out")
    config, name = load_config(known.config)
    overridden = _override(config, rest, parser)
    return Args(name, config, frozenset(overridden), known.workdir, known.mode, hosts_of(known))


def _override(config: ml_collections.ConfigDict, rest: list[str], parser: Parser) -> dict[str, str]:
    """Applies the `--config.KEY=VALUE` among the arguments in place; returns them."""
    overrides = split_overrides(rest, parser)
    for key, value in overrides.items():
        set_key(config, key, convert(key, value))
    return overrides


def _parse_with_config(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """Adds `--config` and overrides to a parser; the namespace has them as `config` and `overrides`.

    Without a file the config is the defaults (so ResNet-50), and `config_file` is `None`.
    """
    parser.add_argument(
        "--config", dest="config_file", metavar="FILE[:ARG]", help="config file (default: ResNet-50, on what data there is)"
    )
    args, rest = parser.parse_known_args(argv[1:])
    args.config = default_config() if args.config_file is None else load_config(args.config_file)[0]
    args.overrides = _override(args.config, rest, parser)
    return args


def _make_parser() -> Parser:
    parser = Parser(
        prog="python -m jaxcls.main",
        description="Train or evaluate a network. Running the same command again resumes it.",
        epilog="examples:\n"
        "  python -m jaxcls.main --config configs/resnet50.py\n"
        "  python -m jaxcls.main --config configs/resnet50.py:250ep --config.data.path=/data/imagenet "
        "--config.precision.policy=bf16\n"
        "  python -m jaxcls.main --config configs/resnet50.py --workdir runs/mine --mode evaluate\n"
        "The config keys, with their meaning and defaults, are in jaxcls/config.py.",
        usage="%(prog)s --config FILE[:ARG] [--config.KEY=VALUE ...] [--workdir DIR] [--mode train|evaluate]\n"
        "       [--coordinator HOST:PORT --processes N --process I] [--join-timeout SECONDS]",
    )
    parser.add_argument("--config", required=True, metavar="FILE[:ARG]", help="config file, such as configs/resnet50.py")
    parser.add_argument("--workdir", metavar="DIR", help="run directory (default: runs/<config>-<hash of the config>)")
    parser.add_argument("--mode", choices=("train", "evaluate"), default="train", help="(default: train)")
    add_hosts(parser)
    return parser


def parse_replay(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls replay`; errors as `parse`."""
    parser = Parser(
        "jaxcls replay",
        description="Makes the batch of one step of a run again, augmented and mixed: a picture, and an .npz of its arrays.",
        epilog="example:\n  jaxcls replay runs/mine --step 1234 -o spike",
    )
    parser.add_argument("run", metavar="DIR", help="the run")
    parser.add_argument("--step", required=True, type=positive, metavar="K", help="as in metrics.jsonl")
    parser.add_argument("-o", dest="out", metavar="OUT", help="writes OUT.npz and OUT.png (default: DIR/replay-K)")
    return parser.parse_args(argv[1:])


def parse_verify_resume(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls verify-resume`; errors as `parse`."""
    parser = Parser(
        "jaxcls verify-resume",
        description="Proves that a run which is killed and resumed is the run that nothing happened to: trains twice, kills "
        "one of the two in the middle, resumes it, and compares weights, optimizer state, BN statistics, losses, records.",
        epilog="examples:\n"
        "  jaxcls verify-resume                                       # a minute or two\n"
        "  jaxcls verify-resume --config configs/resnet50.py --config.data.path=/data/imagenet --steps 100\n"
        "  jaxcls verify-resume --devices 1,2                         # begun on one device, resumed on two",
        usage="%(prog)s [--config FILE[:ARG]] [--config.KEY=VALUE ...] [--steps N] [--devices A,B]",
    )
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="to train (default: 20)")
    parser.add_argument(
        "--devices", type=_two_counts, metavar="A,B", help="devices before and after the kill (default: all, both times)"
    )
    args = _parse_with_config(parser, argv)
    if args.steps < LEAST_STEPS:
        parser.error(f"argument --steps: {args.steps} leave no room to save, be killed and go on; {LEAST_STEPS} would")
    return args


def _two_counts(text: str) -> tuple[int, int]:
    counts = [positive(part.strip()) for part in text.split(",")]
    if len(counts) != 2:
        raise argparse.ArgumentTypeError(f"{text} must be two numbers of devices, such as 1,2")
    return tuple(counts)


def parse_doctor(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls doctor`; errors as `parse`."""
    parser = Parser(
        "jaxcls doctor",
        description="Looks, before a run, at all that it needs: versions, devices, memory, disk, data. Exit code 0: nothing "
        "stands in its way.",
        epilog="examples:\n"
        "  jaxcls doctor --config configs/resnet50.py --config.data.path=/data/imagenet --workdir /shared/runs/mine\n"
        "  srun --ntasks=4 jaxcls doctor --config configs/resnet50.py --workdir /shared/runs/mine --devices 32",
        usage="%(prog)s [--config FILE[:ARG]] [--config.KEY=VALUE ...] [--workdir DIR] [--devices N] [--json OUT]",
    )
    parser.add_argument("--workdir", metavar="DIR", help="run directory (default: runs)")
    parser.add_argument("--devices", type=positive, metavar="N", help="expected, over all processes (default: any number)")
    parser.add_argument("--json", metavar="OUT", help="write all checks there")
    return _parse_with_config(parser, argv)
