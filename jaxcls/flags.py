"""The command lines: the one owner of every command's flags.

`--config FILE` and `--config.KEY=VALUE` read as ml-collections' flags do, and files return a ConfigDict; but values are
parsed by the types of `jaxcls.config`. ml-collections goes by the value that is there, and so cannot set a key that is
None, takes `1.2` for an int as a crash, and turns `a,b` into one string.
"""

import argparse
import difflib
import importlib.util
import inspect
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import ml_collections

from jaxcls.config import convert, keys, set_key, unknown_key
from jaxcls.errors import ConfigError
from jaxcls.interop.torch_files import SUFFIXES
from jaxcls.launch import JOIN_TIMEOUT

NAMES = ("reference", "torchvision", "timm")  # keys of jaxcls.interop.torch_weights.NAMINGS, which comes with JAX


class Args(NamedTuple):
    """A parsed command line of `python -m jaxcls.main`."""

    config_name: str  # the config file's stem, with its argument: resnet50-250ep
    config: ml_collections.ConfigDict  # with the overrides
    overridden: frozenset[str]  # keys that the command line set
    workdir: str | None
    mode: str  # train, evaluate
    hosts: dict[str, Any]  # arguments of `jaxcls.launch.launched`


class _Parser(argparse.ArgumentParser):
    def __init__(self, prog: str, **options):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> Args:
    """Parses the command line, program name first, and loads the config file.

    Raises:
      ConfigError: a wrong flag, key, value or file.
      SystemExit: after `--help`.
    """
    parser = _make_parser()
    known, rest = parser.parse_known_args(argv[1:])
    overrides = _split_overrides(rest, parser)
    config, name = load_config(known.config)
    for key, value in overrides.items():
        set_key(config, key, convert(key, value))
    return Args(name, config, frozenset(overrides), known.workdir, known.mode, _hosts(known))


def _make_parser() -> _Parser:
    parser = _Parser(
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
    several = parser.add_argument_group("several processes, where SLURM, Open MPI or a TPU pod does not say so itself")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 runs, and a free port there")
    several.add_argument("--processes", type=_positive, metavar="N", help="number of processes, over all hosts")
    several.add_argument("--process", type=_natural, metavar="I", help="number of this one, from 0")
    several.add_argument(
        "--join-timeout",
        type=_positive,
        default=JOIN_TIMEOUT,
        metavar="SECONDS",
        help=f"to wait for the others at the start (default: {JOIN_TIMEOUT})",
    )
    return parser


def _hosts(known: argparse.Namespace) -> dict[str, Any]:
    """The flags of several processes, checked: all of them or none."""
    given = {"--coordinator": known.coordinator, "--processes": known.processes, "--process": known.process}
    missing = [flag for flag, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ConfigError(f"{', '.join(given)} belong together; {' and '.join(missing)} must be given, too")
    if not missing:
        host, colon, port = known.coordinator.rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"--coordinator={known.coordinator} must be HOST:PORT, such as 10.0.0.1:8476")
        if known.process >= known.processes:
            raise ConfigError(f"--process={known.process} must be less than --processes={known.processes}; it counts from 0")
    return {
        "coordinator": known.coordinator,
        "processes": known.processes,
        "process": known.process,
        "timeout": known.join_timeout,
    }


def _split_overrides(rest: list[str], parser: argparse.ArgumentParser) -> dict[str, str]:
    """`["--config.a.b=1", "--config.c", "2"]` as `{"a.b": "1", "c": "2"}`."""
    overrides = {}
    rest = list(rest)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--config."):
            _refuse(flag, parser)
        key, equals, value = flag.removeprefix("--config.").partition("=")
        if key not in keys():
            raise unknown_key(key)
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--config.{key} needs a value: --config.{key}=VALUE")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _refuse(flag: str, parser: argparse.ArgumentParser) -> NoReturn:
    if not flag.startswith("-"):
        raise ConfigError(f"unexpected argument {flag!r}; flags start with --, such as --config configs/resnet50.py")
    name = flag.partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    known += [f"--config.{key}" for key in keys()]
    near = difflib.get_close_matches(name, known, 1)
    raise ConfigError(f"there is no flag {name}" + (f"; did you mean {near[0]}?" if near else ""))


def parse_convert(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls convert`; errors as `parse`."""
    parser = _Parser(
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
    parser = _Parser("jaxcls classify", description="Classifies images, and those in folders (and folders in them).")
    parser.add_argument("--weights", required=True, metavar="PATH", help="a run, jaxcls weights or a PyTorch file")
    _add_weights_flags(parser)
    parser.add_argument("--labels", metavar="FILE", help="class names, a line each, or JSON (default: the weights' own)")
    parser.add_argument("--topk", type=_positive, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument("--batch", type=_positive, default=32, metavar="N", help="images at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("paths", nargs="+", metavar="IMAGE_OR_FOLDER")
    return parser.parse_args(argv[1:])


def parse_compare(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls compare`; errors as `parse`."""
    parser = _Parser(
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
    parser.add_argument("--count", type=_positive, default=4, metavar="N", help="images in a batch (default: 4)")
    parser.add_argument("--image-size", type=_positive, default=224, metavar="S", help="pixels (default: 224)")
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


def parse_benchmark(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls benchmark WHAT`; errors as `parse`."""
    parser = _Parser(
        "jaxcls benchmark",
        description="Measures. `data`: how fast training images below a folder can be read, decoded, cropped and resized.",
        epilog="example:\n  jaxcls benchmark data --path /data/imagenet/val --threads 2",
    )
    parser.add_argument("what", choices=("data",))
    parser.add_argument("--path", required=True, metavar="DIR", help="images, in any tree of folders")
    parser.add_argument("--threads", type=_positive, metavar="N", help="that decode (default: one a core)")
    parser.add_argument("--image-size", type=_positive, default=224, metavar="S", help="pixels (default: 224)")
    parser.add_argument(
        "--interpolation", choices=("bilinear", "bicubic", "linear"), default="bilinear", help="(default: bilinear)"
    )
    parser.add_argument("--most", type=_positive, default=500, metavar="N", help="images to take at most (default: 500)")
    parser.add_argument("--seconds", type=_positive, default=10, metavar="T", help="of each measurement (default: 10)")
    parser.add_argument(
        "--target", type=_positive, default=5500, metavar="N", help="images/s for the verdict (default: 5500, an H200's)"
    )
    parser.add_argument("--json", metavar="OUT", help="write all figures there")
    return parser.parse_args(argv[1:])


def parse_prepare(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `scripts/prepare_array_record`; errors as `parse`."""
    parser = _Parser(
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
    parser.add_argument("--shards", type=_positive, metavar="N", help="training files (default: one for 5000 images)")
    parser.add_argument(
        "--resize", type=_positive, metavar="S", help="shrink images to a shorter side of S pixels, as JPEG (default: keep)"
    )
    parser.add_argument("--quality", type=_positive, default=95, metavar="Q", help="of shrunk JPEG, 1 to 100 (default: 95)")
    parser.add_argument("--workers", type=_positive, metavar="N", help="images at a time (default: one for each core)")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that do not decode (default: refuse them)")
    parser.add_argument("--verify", action="store_true", help="at the end, read all files again and compare their checksums")
    args = parser.parse_args(argv[1:])
    if args.quality > 100:
        parser.error(f"argument --quality: {args.quality} must be between 1 and 100")
    return args


def parse_replay(argv: Sequence[str]) -> argparse.Namespace:
    """Parses `jaxcls replay`; errors as `parse`."""
    parser = _Parser(
        "jaxcls replay",
        description="Makes the batch of one step of a run again, augmented and mixed: a picture, and an .npz of its arrays.",
        epilog="example:\n  jaxcls replay runs/mine --step 1234 -o spike",
    )
    parser.add_argument("run", metavar="DIR", help="the run")
    parser.add_argument("--step", required=True, type=_positive, metavar="K", help="as in metrics.jsonl")
    parser.add_argument("-o", dest="out", metavar="OUT", help="writes OUT.npz and OUT.png (default: DIR/replay-K)")
    return parser.parse_args(argv[1:])


def _add_weights_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="NAME", help="the network, where the weights do not say (see jaxcls.list_models)")
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights of a run or of a PyTorch training checkpoint"
    )


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)


def load_config(path_and_argument: str) -> tuple[ml_collections.ConfigDict, str]:
    """Runs `get_config` of `FILE[:ARG]`.

    Returns:
      the ConfigDict and its name: the file's stem, and the argument if there is one.

    Raises:
      ConfigError: no such file, it has no `get_config`, or it failed (the message has the line).
    """
    file, _, argument = path_and_argument.partition(":")
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"there is no config file {file}" + _nearest_file(path))
    try:
        spec = importlib.util.spec_from_loader(path.stem, loader=None)
        module = importlib.util.module_from_spec(spec)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        if not hasattr(module, "get_config"):
            raise ConfigError(f"config file {file} has no function get_config")
        if argument and not inspect.signature(module.get_config).parameters:
            raise ConfigError(f"config file {file} takes no argument, but :{argument} was given")
        config = module.get_config(*([argument] if argument else []))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"config file {_place(error, path)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"config file {file}: get_config returned {type(config).__name__}, not a ConfigDict")
    return config, path.stem + (f"-{argument}" if argument else "")


def _nearest_file(path: Path) -> str:
    siblings = sorted(str(sibling) for sibling in path.parent.glob("*.py")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(str(path), siblings, 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f" (looked from {Path.cwd()})"


def _place(error: Exception, path: Path) -> str:
    """`file:line` where a config file failed."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
