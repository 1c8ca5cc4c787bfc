"""What tests of whole runs share: a small image folder, and looking into run directories."""

import json

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image


def make_folder(root, classes=("a", "b"), train=26, val=11):
    """Images whose colour tells the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for index in range(count):
            label = index % len(classes)
            path = root / split / classes[label] / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, size=(40, 36, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(path)
    return root


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_state(workdir, step):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())


def same_state(a, b, step):
    leaves = [jax.tree_util.tree_leaves_with_path(saved_state(workdir, step)) for workdir in (a, b)]
    assert len(leaves[0]) > 50
    return all(p == q and np.array_equal(x, y) for (p, x), (q, y) in zip(*leaves, strict=True))
