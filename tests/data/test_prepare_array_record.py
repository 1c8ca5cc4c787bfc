"""Packing images into array_record files, and reading them back."""

import concurrent.futures
import errno
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from jaxcls import prepare
from jaxcls.config import DataConfig
from jaxcls.data import preparation, record_format, shard_writer
from jaxcls.data.sources import make_source
from jaxcls.errors import DataError


def picture(rng, width, height, format):
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(stream, format)
    return stream.getvalue()


@pytest.fixture
def images(tmp_path):
    """`{id: encoded}` of a folder `in`: 12 for training, 4 for evaluation, in two classes."""
    rng, found = np.random.default_rng(0), {}
    for split, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dög"):
            for index in range(count):
                suffix, format = (("png", "PNG"), ("jpg", "JPEG"))[index % 2]
                found[f"{split}/{name}/{index}.{suffix}"] = picture(rng, 40 + index, 30, format)
    for name, encoded in found.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded)
    return found


def run(tmp_path, *options, source="in", target="out"):
    return prepare.main(["prepare", str(tmp_path / source), str(tmp_path / target), *options])


def source(tmp_path, split="train", target="out"):
    return make_source(DataConfig(source="array_record", path=str(tmp_path / target)), split)


def files(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_record_byte_by_byte():
    record = struct.pack("<4siH", b"JXR1", 7, 4) + "a/ü".encode() + b"image"
    assert record_format.pack_record(7, "a/ü", b"image") == record
    assert record_format.unpack_record(record) == (7, "a/ü", b"image")
    for wrong in (b"", record[:9], b"x" + record[1:], record[:12]):
        with pytest.raises(ValueError, match="a record of"):
            record_format.unpack_record(wrong)
    with pytest.raises(DataError, match="has 70000 bytes"):
        record_format.pack_record(0, "x" * 70000, b"")


def test_there_and_back(tmp_path, images, capsys):
    assert run(tmp_path, "--shards", "3", "--verify") == 0
    out = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: 12 training images in 3 files and 4 evaluation images in 1 files, 2 classes." in out
    assert sorted(files(tmp_path / "out")) == [
        "metadata.json", "train-00000-of-00003.array_record", "train-00001-of-00003.array_record",
        "train-00002-of-00003.array_record", "train.index.npz", "val-00000-of-00001.array_record", "val.index.npz",
    ]  # fmt: skip
    for split, count in (("train", 12), ("val", 4)):
        read = source(tmp_path, split)
        assert len(read) == count and read.classes == ("cat", "dög")
        records = [read[index] for index in range(count)]
        expected = {name: encoded for name, encoded in images.items() if name.startswith(split)}
        assert {record["id"]: record["image"] for record in records} == expected
        assert [record["label"] for record in records] == [int("dög" in record["id"]) for record in records]
        assert [read.id(index) for index in range(count)] == [record["id"] for record in records]
        assert [record["id"] for record in records] != sorted(expected)


def test_threads_and_other_processes_read(tmp_path, images):
    run(tmp_path, "--shards", "3")
    read = source(tmp_path)
    expected = [read[index] for index in range(12)]
    copy = pickle.loads(pickle.dumps(read))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: copy[index % 12], range(240))) == expected * 20
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[5]['id'])"
    found = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(read), capture_output=True, check=True)
    assert found.stdout.decode().strip() == expected[5]["id"]


def test_a_tar_file_gives_the_same_bytes(tmp_path, images):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in sorted(images, reverse=True):
            tar.add(tmp_path / "in" / name, f"./{name}")
        tar.add(__file__, "train/cat/notes.txt")
    assert run(tmp_path, "--shards", "2", "--workers", "1") == 0
    assert run(tmp_path, "--shards", "2", "--workers", "3", source="in.tar", target="other") == 0
    assert files(tmp_path / "out") == files(tmp_path / "other")


def test_only_larger_images_are_shrunk(tmp_path):
    rng, originals = np.random.default_rng(1), {}
    for index, (width, height) in enumerate([(64, 32), (40, 90), (20, 70)]):
        originals[f"train/a/{index}.png"] = picture(rng, width, height, "PNG")
    originals["val/a/0.png"] = picture(rng, 8, 8, "PNG")
    for name, encoded in originals.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded)
    assert run(tmp_path, "--resize", "24", "--quality", "90") == 0
    read = source(tmp_path)
    found = {record["id"]: record["image"] for record in (read[index] for index in range(3))}
    assert found["train/a/2.png"] == originals["train/a/2.png"]
    for name, size in (("train/a/0.png", (48, 24)), ("train/a/1.png", (24, 54))):
        expected = io.BytesIO()
        Image.open(io.BytesIO(originals[name])).resize(size, Image.Resampling.BICUBIC).save(expected, "JPEG", quality=90)
        assert found[name] == expected.getvalue()


def test_bad_images_are_named_and_left_out_only_when_told(tmp_path, images, capsys):
    jpeg = images["train/cat/1.jpg"]
    (tmp_path / "in/train/cat/1.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (tmp_path / "in/val/cat/0.png").write_bytes(b"")
    assert run(tmp_path, "--shards", "3") == 3
    out, err = capsys.readouterr()
    assert "train/cat/1.jpg does not decode: " in out and "val/cat/0.png does not decode: an empty file" in out
    assert err.startswith("jaxcls: 2 of 16 images cannot be decoded") and err.count("\n") == 1 and "--skip-bad" in err
    assert not (tmp_path / "out" / "metadata.json").exists()
    with pytest.raises(DataError, match="preparing was not finished"):
        source(tmp_path)
    assert run(tmp_path, "--shards", "3", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert "Going on: 2 of 4 files are finished." in out and "; 2 left out." in out
    read = source(tmp_path)
    assert sorted(read.id(index) for index in range(11)) == sorted(
        name for name in images if name.startswith("train") and name != "train/cat/1.jpg"
    )
    assert [read[index]["id"] for index in range(11)] == [read.id(index) for index in range(11)]
    skipped = json.loads((tmp_path / "out/metadata.json").read_text())["skipped"]
    assert {image["id"] for image in skipped} == {"train/cat/1.jpg", "val/cat/0.png"}


def test_a_killed_run_makes_only_what_is_missing(tmp_path, images, monkeypatch):
    run(tmp_path, "--shards", "4", target="whole")
    write, written = shard_writer.write_shard, []

    def dies_in_the_third(source, indices, path, **options):
        written.append(path.name)
        if len(written) >= 3:
            path.with_name(path.name + ".tmp").write_bytes(b"half")
            raise MemoryError
        return write(source, indices, path, **options)

    monkeypatch.setattr(prepare, "write_shard", dies_in_the_third)
    with pytest.raises(MemoryError):
        run(tmp_path, "--shards", "4", "--workers", "1")
    with open(tmp_path / "out/progress.jsonl", "ab") as file:
        file.write(b'{"entry": {"file"')  # killed while it wrote a line
    first = files(tmp_path / "out")
    done = sorted(name for name in first if name.endswith(".array_record"))
    assert len(done) == 2
    (tmp_path / "out" / done[0]).write_bytes(first[done[0]][:-1])  # and the file system lost something
    written.clear()
    monkeypatch.setattr(prepare, "write_shard", lambda *a, **k: written.append(a[2].name) or write(*a, **k))
    assert run(tmp_path, "--shards", "4", "--workers", "1") == 0
    assert done[1] not in written and len(written) == 5  # of 4 + 2
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_finished_one_is_not_made_again(tmp_path, images, capsys, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(prepare, "write_shard", None)
    assert run(tmp_path, "--verify") == 0
    assert "is finished already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        (["--shards", "2"], None, "train shards: 1 there and 2 now"),
        (["--resize", "20"], None, "resize: None there and 20 now"),
        ([], "train/cat/more.png", "train images: 12 there and 13 now"),
    ],
)
def test_other_options_are_refused(tmp_path, images, capsys, options, change, message):
    run(tmp_path)
    if change:
        (tmp_path / "in" / change).write_bytes(images["train/cat/0.png"])
    assert run(tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_other_mistakes(tmp_path, images, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    (tmp_path / "no.tar").write_bytes(b"\x1f\x8b compressed" * 100)
    for arguments, code, message in (
        ((["--quality", "101"]), 2, "--quality"),
        ({"target": "mine"}, 2, "holds other files (thesis.txt)"),
        ({"target": "no.tar"}, 2, "no.tar cannot be made a directory"),
        ({"source": "gone"}, 3, "there is no data directory"),
        ({"source": "no.tar"}, 3, "no.tar is not a plain tar file"),
    ):
        given = {} if isinstance(arguments, list) else arguments
        assert run(tmp_path, *(arguments if isinstance(arguments, list) else []), **given) == code
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_a_tar_file_cut_short(tmp_path, images, capsys):
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in sorted(images):
            tar.add(tmp_path / "in" / name, name)
    whole = (tmp_path / "in.tar").read_bytes()
    last = whole.rindex(b"val/d")
    (tmp_path / "in.tar").write_bytes(whole[: last + 700])  # in the middle of the last image
    assert run(tmp_path, source="in.tar") == 3
    assert "in.tar ends early" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["cut at a header", "cut in a header", "a flipped bit", "zeros", "no end"])
def test_a_tar_file_damaged_between_images(tmp_path, images, capsys, damage):
    with tarfile.open(tmp_path / "in.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(images):
            tar.add(tmp_path / "in" / name, name)
        end = tar.offset
    content = bytearray((tmp_path / "in.tar").read_bytes())
    last = content.rindex(b"val/d")
    if damage == "a flipped bit":
        content[last + 2] ^= 4
    elif damage == "zeros":
        content[last : last + 512] = bytes(512)
    else:
        del content[{"cut at a header": last, "cut in a header": last + 100, "no end": end}[damage] :]
    (tmp_path / "in.tar").write_bytes(content)
    assert run(tmp_path, source="in.tar") == 3
    place = end if damage == "no end" else last
    assert f"in.tar is damaged at byte {place}, or ends early there; copy it again" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_in_a_tar_file_are_refused(tmp_path, images, capsys, kind):
    link = tarfile.TarInfo("train/cat/link.jpg")
    link.type, link.linkname = kind, "train/cat/1.jpg"
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name in sorted(images):
            tar.add(tmp_path / "in" / name, name)
        tar.addfile(link)
    assert run(tmp_path, source="in.tar") == 3
    assert "in.tar holds train/cat/link.jpg as a link; unpack it, and give the folder" in capsys.readouterr().err


def test_a_link_to_nothing_is_an_image_that_can_be_left_out(tmp_path, images, capsys):
    (tmp_path / "in" / "train" / "cat" / "9.jpg").symlink_to(tmp_path / "gone.jpg")
    assert run(tmp_path) == 3
    assert "train/cat/9.jpg does not decode: it is not there, or a link to nothing" in capsys.readouterr().out
    assert run(tmp_path, "--skip-bad") == 0 and len(source(tmp_path)) == 12


class FullDisk:
    """array_record's writer on a full disk."""

    def __init__(self, path, options):
        pass

    def write(self, record):
        pass

    def close(self):
        raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing x; at byte 0")


def test_a_full_disk_is_one_line(tmp_path, images, capfd, monkeypatch):
    from array_record.python import array_record_module

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", FullDisk)
    stdout = os.dup(1)  # the command gives its standard output up
    try:
        assert run(tmp_path) == 5
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    err = capfd.readouterr().err
    assert "no space left" in err and err.count("\n") == 1


def test_interrupted_and_gone_on(tmp_path, images):
    """Ctrl-C in the middle: one line, 75, and the same files in the end as without it."""
    run(tmp_path, "--shards", "4", target="whole")
    program = (
        "import signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from jaxcls import prepare; from jaxcls.data import shard_writer; encode = shard_writer.encode\n"
        "def slow(*a): print('working', flush=True); time.sleep(0.3); return encode(*a)\n"
        "shard_writer.encode = slow; sys.exit(prepare.main(sys.argv))"
    )
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--shards", "4", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for _ in range(5):
        assert process.stdout.readline() == "working\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75 and time.monotonic() - start < 5
    assert err == "jaxcls: interrupted; the same command goes on where it stopped\n"
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 1
    assert run(tmp_path, "--shards", "4") == 0
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def change(path, place, byte):
    content = bytearray(path.read_bytes())
    content[place] ^= byte
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda out: os.truncate(out / "train-00000-of-00001.array_record", 1000),
            "00001.array_record ends early: 1000 bytes",
        ),
        (
            lambda out: (out / "train-00000-of-00001.array_record").unlink(),
            "00001.array_record cannot be read: No such file",
        ),
        (lambda out: (out / "train.index.npz").unlink(), "train.index.npz cannot be read"),
        (lambda out: change(out / "train.index.npz", 300, 1), "train.index.npz is damaged"),
        (lambda out: (out / "metadata.json").unlink(), "metadata.json cannot be read"),
        (lambda out: os.truncate(out / "metadata.json", 100), "metadata.json is damaged"),
        (lambda out: (out / "metadata.json").write_text('{"format": 9}'), "is not of format 1"),
    ],
)
def test_damage_seen_at_opening(tmp_path, images, damage, message):
    run(tmp_path)
    damage(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        source(tmp_path)


def test_a_label_without_a_class(tmp_path, images):
    run(tmp_path)
    path = tmp_path / "out/metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": ["cat"]}))
    with pytest.raises(DataError, match=r"has label 1, but there are 1 classes"):
        source(tmp_path)


def test_a_damaged_record_fails_alone_and_verify_finds_it(tmp_path, images, capsys):
    run(tmp_path)
    read = source(tmp_path)
    victim, path = read[3], tmp_path / "out/train-00000-of-00001.array_record"
    change(path, path.read_bytes().index(victim["image"]) + 50, 255)
    read = source(tmp_path)
    with pytest.raises(OSError, match=r"record 3 of train-00000-of-00001.array_record: .*hash mismatch"):
        read[3]
    assert read.id(3) == victim["id"] and read[4]["id"] == read.id(4)
    capsys.readouterr()
    assert run(tmp_path) == 0 and run(tmp_path, "--verify") == 3
    assert "train-00000-of-00001.array_record is damaged: its SHA-256" in capsys.readouterr().err


def test_two_at_once(tmp_path, images, capsys):
    with preparation.claim(tmp_path / "out"):
        assert run(tmp_path) == 2
    assert "is being prepared by another process; wait for it" in capsys.readouterr().err
    assert run(tmp_path) == 0


def test_too_long_for_a_jpeg(tmp_path, images, capsys):
    Image.new("RGB", (70_000, 33)).save(tmp_path / "in" / "train" / "cat" / "long.png")
    assert run(tmp_path, "--resize", "32") == 3
    assert "train/cat/long.png" in capsys.readouterr().err
    assert run(tmp_path, "--resize", "32", "--skip-bad") == 0
    assert "its 67879 x 32 pixels cannot be written as JPEG" in capsys.readouterr().out
