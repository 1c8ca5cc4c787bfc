"""What tests of whole runs share: a small image folder, runs on it, and looking into run directories."""

import dataclasses
import json
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from jaxcls.config import default_config, set_key, to_dict
from jaxcls.resolve import resolve
from jaxcls.train import run
from jaxcls.train.checkpoints import Checkpoints
from jaxcls.train.progress import Progress


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


def configure(folder, **changes):
    """The config of a run of `tiny`: four devices, 32 px, batches of 8."""
    config = default_config()
    defaults = {
        "model.name": "tiny",
        "data.path": str(folder),
        "data.image_size": 32,
        "train.batch_size": 8,
        "train.epochs": 3.0,
        "schedule.every": "step",
    }
    for key, value in (defaults | changes).items():
        set_key(config, key, value)
    return resolve(config)[0]


def train(workdir, config, page=False):
    """Trains; returns the summary. Pictures and page, which take longer than such a run, only if they are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        if not page:
            patch.setattr(run, "_write_report", lambda *_: None)
        run.train(config, workdir, started=time.perf_counter())
    return json.loads((workdir / "summary.json").read_text())


def write_run(workdir, config, classes, checkpoints):
    """A run directory without the training: `checkpoints` is `{step: (variables, top1)}`."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=len(classes)))
    writer = Checkpoints(workdir / "checkpoints", keep=3)
    for step, (variables, top1) in checkpoints.items():
        progress = dataclasses.asdict(Progress(step=step, evaluation={"top1": top1}))
        metadata = {"progress": progress, "config": to_dict(config), "classes": classes, "steps_per_epoch": 3}
        writer.save(step, variables, metadata, top1)
    writer.close()


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved_state(workdir, step):
    with ocp.PyTreeCheckpointer() as reader:
        return reader.restore((workdir / "checkpoints" / str(step) / "state").absolute())


def same_state(a, b, step):
    leaves = [jax.tree_util.tree_leaves_with_path(saved_state(workdir, step)) for workdir in (a, b)]
    assert len(leaves[0]) > 50
    return all(p == q and np.array_equal(x, y) for (p, x), (q, y) in zip(*leaves, strict=True))
