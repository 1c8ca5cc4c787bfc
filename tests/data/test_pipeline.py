import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import numpy as np
import pytest
from PIL import Image

from jaxcls.config import DataConfig
from jaxcls.data.pipeline import eval_batches, steps_per_epoch, train_batches
from jaxcls.data.sources import make_source
from jaxcls.errors import DataError, RunError
from jaxcls.train.evaluation import batch_digest

RECORDS, SIZE = 22, 32


@pytest.fixture
def config(tmp_path):
    """An image folder of 22 training and 11 evaluation images in two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", RECORDS), ("val", 11)):
        for index in range(count):
            path = tmp_path / split / "ab"[index % 2] / f"{index:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(256, size=(5, 6, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 40)).save(path, quality=95)
    return DataConfig(source="image_folder", path=str(tmp_path), image_size=SIZE, eval_resize=SIZE + 4)


def train(config, batch_size=4, seed=0, start=0, stop=12, **hosts):
    source = make_source(config, "train")
    return list(train_batches(source, config, batch_size=batch_size, seed=seed, start_step=start, stop_step=stop, **hosts))


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a.bad == b.bad


def test_batches_do_not_depend_on_the_workers(config):
    expected = train(config)
    for workers in (1, 2, 4):
        found = train(dataclasses.replace(config, workers=workers))
        assert all(map(equal, found, expected)) and len(found) == len(expected)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_global_batch(config, hosts):
    parts = [train(config, process_index=i, process_count=hosts) for i in range(hosts)]
    for step, whole in enumerate(train(config)):
        for field in range(4):
            np.testing.assert_array_equal(np.concatenate([part[step][field] for part in parts]), whole[field])


def test_a_run_can_start_at_any_step(config):
    whole = train(config)
    for start in (1, 5, 7, 12):
        assert all(map(equal, train(config, start=start), whole[start:]))


def test_epochs_are_different_permutations(config):
    per_epoch = steps_per_epoch(RECORDS, 4)
    assert per_epoch == 5  # the last two records are dropped
    indices = np.concatenate([batch.index for batch in train(config, stop=3 * per_epoch)]).reshape(3, 20)
    for epoch in indices:
        assert len(set(epoch)) == 20
    assert not np.array_equal(indices[0], indices[1]) and not np.array_equal(indices[1], indices[2])
    assert not np.array_equal(indices[0], np.concatenate([b.index for b in train(config, seed=1, stop=per_epoch)]))


def test_augmentation_depends_on_seed_epoch_and_record_alone(config):
    def pictures(batch_size, seed=0):
        steps = 2 * steps_per_epoch(RECORDS, batch_size)
        result = {}
        for step, batch in enumerate(train(config, batch_size, seed, stop=steps)):
            for index, image in zip(batch.index, batch.image, strict=True):
                result[step // (steps // 2), int(index)] = image
        return result

    by_two, by_eleven = pictures(2), pictures(11)
    assert by_two.keys() == by_eleven.keys() and len(by_two) == 2 * RECORDS
    assert all(np.array_equal(by_two[key], by_eleven[key]) for key in by_two)
    assert not np.array_equal(by_two[0, 3], by_two[1, 3])
    assert not np.array_equal(by_two[0, 3], pictures(2, seed=1)[0, 3])


def test_a_bad_training_record_is_replaced_by_the_next_in_shuffled_order(config, tmp_path):
    order = grain.MapDataset.range(RECORDS).seed(0).shuffle().repeat()
    # The last two records of the first epoch's fifth batch: the one after the last is the first that was dropped.
    bad = [order[18], order[19]]
    source = make_source(config, "train")
    before = train(config, stop=10)
    (tmp_path / source.id(bad[0])).write_bytes(b"")
    path = tmp_path / source.id(bad[1])
    path.write_bytes(path.read_bytes()[:-200])
    after = train(config, stop=10)
    assert after[4].index.tolist() == [order[16], order[17], order[20], order[20]]
    assert [name for name, _ in after[4].bad] == [source.id(bad[0]), source.id(bad[1]), source.id(bad[1])]
    assert after[4].bad[0][1] == "an empty file" and "truncated" in after[4].bad[1][1]
    for a, b in zip(before, after, strict=True):
        if not set(b.index) & set(bad) and a is not before[4]:
            assert b.image.any((1, 2, 3)).all()  # no black picture
            good = a.index == b.index
            np.testing.assert_array_equal(a.image[good], b.image[good])
    with pytest.raises(DataError, match=f"{source.id(bad[0])} cannot be used: an empty file"):
        train(dataclasses.replace(config, on_error="fail"), stop=10)


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_records_is_an_error(config, tmp_path, workers):
    for path in (tmp_path / "train").glob("*/*"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be used: not an image"):
        train(dataclasses.replace(config, workers=workers))


@pytest.mark.parametrize(("batch_size", "hosts"), [(1, 1), (4, 1), (4, 2), (8, 4), (11, 1), (16, 1), (32, 4)])
def test_evaluation_has_every_record_once(config, batch_size, hosts):
    source = make_source(config, "val")
    seen, labels = [], []
    shapes = set()
    for host in range(hosts):
        for batch in eval_batches(source, config, batch_size=batch_size, process_index=host, process_count=hosts):
            shapes.add(batch.image.shape)
            seen += batch.index[batch.mask > 0].tolist()
            labels += batch.label[batch.mask > 0].tolist()
    assert sorted(seen) == list(range(11))
    assert labels == [source[index]["label"] for index in seen]
    assert shapes == {(batch_size // hosts, SIZE, SIZE, 3)}


def test_the_digest_of_an_evaluation_depends_on_its_records_alone(config, tmp_path):
    source = make_source(config, "val")

    def digest(source, batch_size=4, hosts=1):
        shares = [{"process_index": index, "process_count": hosts} for index in range(hosts)]
        batches = [batch for share in shares for batch in eval_batches(source, config, batch_size=batch_size, **share)]
        return sum(batch_digest(batch, source) for batch in batches) % 2**64

    # Four devices of two hosts and two of four hosts take the same batches: a host splits its share among its devices.
    whole = digest(source)
    assert {digest(source, *shape) for shape in [(1, 1), (11, 1), (16, 1), (4, 2), (8, 4), (32, 4)]} == {whole}

    class Changed:
        classes = source.classes

        def __init__(self, indices):
            self.indices = indices

        def __len__(self):
            return len(self.indices)

        def __getitem__(self, index):
            return source[self.indices[index]]

        def id(self, index):
            return source.id(self.indices[index])

    everything = list(range(11))
    assert digest(Changed(everything[::-1])) == whole, "the order does not matter"
    changed = [digest(Changed(everything[:-1])), digest(Changed([*everything, 3])), digest(Changed([*everything[:-1], 0]))]
    assert len({whole, *changed}) == 4, "one dropped, one doubled, one in place of another"


def test_a_bad_evaluation_record_is_refused_or_skipped(config, tmp_path):
    source = make_source(config, "val")
    (tmp_path / source.id(6)).write_bytes(b"broken")
    with pytest.raises(DataError, match=f"evaluation image .*{source.id(6)} cannot be used: not an image; .*on_error=skip"):
        list(eval_batches(source, config, batch_size=4))
    batches = list(eval_batches(source, dataclasses.replace(config, on_error="skip"), batch_size=4))
    assert [name for batch in batches for name, _ in batch.bad] == [source.id(6)]
    assert sum(batch.mask.sum() for batch in batches) == 10


def test_the_reason_is_that_of_the_very_transform(config, tmp_path):
    """These decode, and are too thin to be resized."""
    for split in ("train", "val"):
        Image.new("RGB", (1, 6000)).save(tmp_path / split / "a" / "00.png")
        (tmp_path / split / "a" / "00.jpg").unlink()
    config = dataclasses.replace(config, image_size=224, eval_resize=256)
    bad = {reason for batch in train(dataclasses.replace(config, augment="none")) for _, reason in batch.bad}
    assert bad == {"1 x 6000 pixels are too thin for a shorter side of 256"}
    with pytest.raises(DataError, match=r"00.png cannot be used: 1 x 6000 pixels are too thin"):
        list(eval_batches(make_source(config, "val"), config, batch_size=4))


def test_a_vanished_file_is_a_bad_record(config, tmp_path):
    source = make_source(config, "val")
    (tmp_path / source.id(2)).unlink()
    with pytest.raises(DataError, match="No such file"):
        list(eval_batches(source, config, batch_size=4))


def test_labels_out_of_range_are_named(config):
    class Source:
        classes = ("a", "b")

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"image": np.zeros((40, 40, 3), np.uint8), "label": index, "id": self.id(index)}

        def id(self, index):
            return f"record {index}"

    with pytest.raises(DataError, match="record 2 has label 2, but there are 2 classes"):
        list(eval_batches(Source(), config, batch_size=4))


def test_too_few_records_for_a_batch():
    with pytest.raises(DataError, match="3 training images cannot fill one batch of 4"):
        steps_per_epoch(3, 4)


def test_a_killed_worker_ends_the_run_with_a_message(config):
    source, config = make_source(config, "train"), dataclasses.replace(config, workers=2)
    batches = train_batches(source, config, batch_size=4, seed=0, start_step=0, stop_step=10**6)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(RunError, match="a data worker died .*run the same command to resume"):
        for _ in range(1000):
            next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_abandoned_pipeline_leaves_nothing_running(config, workers):
    threads = threading.active_count()
    source = make_source(config, "train")
    batches = train_batches(
        source, dataclasses.replace(config, workers=workers), batch_size=4, seed=0, start_step=0, stop_step=10**6
    )
    next(batches)
    batches.close()
    assert multiprocessing.active_children() == []
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= threads


def test_shared_memory_that_is_held_to_the_end_is_nobodys_news(config):
    program = (
        "import ctypes; from jaxcls.config import DataConfig; from jaxcls.data.pipeline import train_batches\n"
        "from jaxcls.data.sources import make_source\n"
        "if __name__ == '__main__':\n"
        f"    config = DataConfig(source='image_folder', path={config.path!r}, image_size=64, workers=1)\n"
        "    source = make_source(config, 'train')\n"
        "    batches = train_batches(source, config, batch_size=4, seed=0, start_step=0, stop_step=9)\n"
        "    held = next(batches).image; batches.close(); print(held.shape)\n"
        "    ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))\n"
    )
    script = Path(config.path) / "program.py"
    script.write_text(program)
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert found.stdout == "(4, 64, 64, 3)\n" and found.stderr == ""


@pytest.mark.parametrize("end", ["killed", "failed"])
def test_workers_end_with_the_process_that_started_them(config, end):
    program = (
        "import multiprocessing, os, time; from jaxcls import command, errors; from jaxcls.config import DataConfig\n"
        "from jaxcls.data.pipeline import train_batches; from jaxcls.data.sources import make_source\n"
        "def body():\n"
        f"    config = DataConfig(source='image_folder', path={config.path!r}, image_size=64, workers=2)\n"
        "    source = make_source(config, 'train')\n"
        "    batches = train_batches(source, config, batch_size=4, seed=0, start_step=0, stop_step=9999)\n"
        "    next(batches); print(*(child.pid for child in multiprocessing.active_children()), flush=True)\n"
        f"    time.sleep(60 * {end == 'killed'})\n"
        "    raise errors.RunError('failed')\n"
        "if __name__ == '__main__':\n"
        "    command.run(body)\n"
    )
    script = Path(config.path) / "program.py"
    script.write_text(program)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        if end == "killed":
            process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
