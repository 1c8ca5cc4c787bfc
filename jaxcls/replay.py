"""`jaxcls replay`: the very batch of a step of a run, as the network saw it: what was in it when the loss jumped?"""

import json
import sys
from pathlib import Path

from jaxcls import command, flags
from jaxcls.errors import ConfigError, RunError

MOST_PICTURES = 256  # in the grid; the .npz holds all


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: replay(flags.parse_replay(argv)))


def replay(args) -> None:
    """Writes `OUT.npz` and `OUT.png` of the batch that step `args.step` of the run `args.run` took.

    The arrays: `image` uint8 `[B, S, S, 3]` as the pipeline made it, `label` `[B]`, `id` `[B]`, `input` float32
    `[B, S, S, 3]`, normalised and mixed, and `target` float32 `[B, C]`. The picture shows `input`, row by row.

    Raises:
      ConfigError: no such run, or no such step.
      DataError: the data has gone, or is not what it was.
      RunError: the files cannot be written.
    """
    import jax
    import numpy as np

    from jaxcls import runtime
    from jaxcls.data.constants import MEAN, STD
    from jaxcls.data.pipeline import steps_per_epoch, train_batches
    from jaxcls.data.sources import make_source
    from jaxcls.report.plots import picture_grid
    from jaxcls.train.augment import augment_batch, augment_of
    from jaxcls.workdir import compare_data, fingerprint

    config = _config_of(Path(args.run))
    out = Path(args.out) if args.out else Path(args.run) / f"replay-{args.step}"
    command.check_writable(f"{out}.npz")
    runtime.configure(config.precision.policy)
    source = make_source(config.data, "train", config.model.num_classes)
    if (noted := Path(args.run) / "data.json").exists():
        compare_data(noted, fingerprint(source))
    batch_size, classes = config.train.batch_size, len(source.classes)
    per_epoch = steps_per_epoch(len(source), batch_size)
    last = max(1, round(config.train.epochs * per_epoch))
    if not 1 <= args.step <= last:
        raise ConfigError(f"--step={args.step}: the run has steps 1 to {last}")
    before = args.step - 1  # steps taken before, which is what batches and keys go by
    (batch,) = train_batches(
        source, config.data, batch_size=batch_size, seed=config.seed, start_step=before, stop_step=args.step
    )
    make = jax.jit(augment_batch, static_argnames=("augment", "num_classes", "dtype"))
    inputs, targets = make(
        batch.image,
        batch.label,
        jax.random.key(config.seed + 1),
        before,
        augment=augment_of(config),
        num_classes=classes,
        dtype=np.dtype("float32"),
    )
    ids = [source.id(int(index)) for index in batch.index]
    shown = np.asarray(inputs[:MOST_PICTURES]) * np.array(STD, np.float32) + np.array(MEAN, np.float32)
    try:
        with open(f"{out}.npz", "wb") as file:
            np.savez_compressed(file, image=batch.image, label=batch.label, id=ids, input=inputs, target=targets)
        picture_grid(f"{out}.png", (shown * 255).round().clip(0, 255).astype(np.uint8))
    except OSError as error:
        raise RunError(f"{out}.npz and .png cannot be written ({error.strerror})") from error
    for record, reason in batch.bad:
        print(f"Replaced {record}, which cannot be used ({reason}), by the next record.")
    print(f"Step {args.step}, epoch {before / per_epoch:.2f}: {len(ids)} records, the first {', '.join(ids[:4])}.")
    print(f"Wrote {out}.npz and {out}.png.")


def _config_of(run: Path):
    from jaxcls.config import from_config_dict
    from jaxcls.resolve import validate

    path = run / "config.json"
    try:
        config = from_config_dict(json.loads(path.read_text()))
        validate(config)
    except ConfigError as error:
        raise ConfigError(f"{path} is not a run's config: {error}") from error
    except OSError as error:
        raise ConfigError(f"{run} is not a run: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error})") from error
    if config.data.source == "auto":
        raise ConfigError(f"{path} is not a run's config: data.source is not settled")
    return config


if __name__ == "__main__":
    sys.exit(main(sys.argv))
