"""`tests.tiny_main` that notes which records its process draws for each step, in `$RECORDS/<process>.jsonl`."""

import json
import os
import sys
from pathlib import Path

import jax

from jaxcls.train import loop
from tests.tiny_main import main

draw = loop.train_batches


def noting(source, config, *, start_step, **rest):
    """`train_batches`, with a line for each batch."""
    with open(Path(os.environ["RECORDS"]) / f"{jax.process_index()}.jsonl", "a", buffering=1) as file:
        for step, batch in enumerate(draw(source, config, start_step=start_step, **rest), start_step + 1):
            print(json.dumps([step, [source.id(int(index)) for index in batch.index]]), file=file)
            yield batch


def drawn(directory):
    """The ids of each step's batch, all processes' shares in order, by step."""
    steps = {}
    for path in sorted(directory.glob("*.jsonl"), key=lambda path: int(path.stem)):
        for line in path.read_text().splitlines():
            step, ids = json.loads(line)
            steps.setdefault(step, []).extend(ids)
    return steps


if __name__ == "__main__":
    loop.train_batches = noting
    sys.exit(main())
