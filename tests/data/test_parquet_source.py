"""Parquet files as Hugging Face's, written with pyarrow."""

import ast
import concurrent.futures
import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxcls.config import DataConfig
from jaxcls.data.sources import make_source, parquet
from jaxcls.errors import DataError


def write(path, labels, names=None, group=3, first=0, kind=None):
    """Rows `image {bytes: b"image <n>", path}` and `label`; `names` as Hugging Face's ClassLabel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": b"image %d" % (first + row), "path": f"{row}.jpg"} for row in range(len(labels))]
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", kind or pa.int64())]
    )
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.table({"image": images, "label": labels}, schema=schema), path, row_group_size=group)


def source(root, split="train"):
    return make_source(DataConfig(source="parquet", path=str(root)), split)


@pytest.fixture
def root(tmp_path):
    """Ten and four rows of training in groups of three; three of evaluation."""
    names = ["tench", "a, b"]
    write(tmp_path / "data/train-00000-of-00002.parquet", [0, 1] * 5, names)
    write(tmp_path / "data/train-00001-of-00002.parquet", [1, 1, 0, 0], names, first=10)
    write(tmp_path / "data/validation-00000-of-00001-0a1b2c.parquet", [1, 0, 1], names)
    return tmp_path


def test_every_row(root):
    train = source(root)
    assert len(train) == 14 and train.classes == ("tench", "a, b")
    assert [train[index]["image"] for index in range(14)] == [b"image %d" % index for index in range(14)]
    assert [train[index]["label"] for index in range(14)] == [0, 1] * 5 + [1, 1, 0, 0]
    assert train.id(9) == "train-00000-of-00002.parquet/9" and train.id(10) == "train-00001-of-00002.parquet/0"
    assert train[13]["id"] == "train-00001-of-00002.parquet/3"
    assert [source(root, "val")[index]["label"] for index in range(3)] == [1, 0, 1]
    with pytest.raises(IndexError):
        train[14]


def test_threads_and_other_processes_read(root):
    train = source(root)
    order = np.random.default_rng(0).integers(14, size=300).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda index: train[index]["image"], order)) == [b"image %d" % index for index in order]
    pickled = pickle.dumps(train)
    assert b"image 1" not in pickled
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[12])"
    found = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True)
    assert ast.literal_eval(found.stdout.decode()) == train[12]


def test_only_the_last_row_groups_are_kept(root, monkeypatch):
    train, read, original = source(root), [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **k: read.append(group) or original(self, group, **k)
    )
    for index in (0, 1, 3, 2, 6, 0, 4):  # groups 0 0 1 0 2 0 1, of which the last two are kept
        train[index]
    assert read == [0, 1, 2, 1]


def test_text_labels(tmp_path):
    write(tmp_path / "train-0.parquet", ["dog", "ant", "dog"], kind=pa.string())
    write(tmp_path / "test-0.parquet", ["ant", "dog"], kind=pa.string())
    train, val = source(tmp_path), source(tmp_path, "val")
    assert train.classes == val.classes == ("ant", "dog")
    assert [train[index]["label"] for index in range(3)] == [1, 0, 1] and val[0]["label"] == 0


def test_numbers_without_names(tmp_path):
    write(tmp_path / "train-0.parquet", [0, 1], kind=pa.int32())
    write(tmp_path / "val-0.parquet", [2, 0])
    write(tmp_path / "test-0.parquet", [5])  # not looked at: val comes first
    assert source(tmp_path).classes == source(tmp_path, "val").classes == ("0", "1", "2")


def test_a_row_without_bytes(root):
    path = root / "data/train-00001-of-00002.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[1]["bytes"] = None
    pq.write_table(
        table.set_column(0, table.schema.field("image"), pa.array(images, table.schema.field("image").type)), path
    )
    with pytest.raises(OSError, match="train-00001-of-00002.parquet/1 holds no image bytes"):
        source(root)[11]


def test_a_damaged_row_group_fails_alone(root):
    path = root / "data/train-00000-of-00002.parquet"
    footer = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[footer.dictionary_page_offset or footer.data_page_offset] ^= 255
    path.write_bytes(content)
    train = source(root)
    with pytest.raises(OSError, match="row group 1 of train-00000-of-00002.parquet cannot be read"):
        train[3]
    assert train[0]["image"] == b"image 0" and train[6]["image"] == b"image 6"


def other_columns(path):
    pq.write_table(pa.table({"img": [b""], "label": [0]}), path)


def twice(path):
    images = pa.array([{"bytes": b""}])
    pq.write_table(pa.Table.from_arrays([images, images, pa.array([0])], ["image", "image", "label"]), path)


def numbers(path):
    pq.write_table(pa.table({"image": [{"bytes": 1}], "label": [0]}), path)


NAMES = ["tench", "a, b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda train, val: train.unlink(), "holds 1 of 2 files train-00000-of-00002.parquet"),
        (lambda train, val: train.rename(train.with_name("train-00000-of-00001.parquet")), "files of more than one set"),
        (lambda train, val: train.rename(train.with_name("train-00000-of-00002-b.parquet")), "files of more than one set"),
        (lambda train, val: train.rename(train.with_name("train-b.parquet")), "files of more than one set"),
        (lambda train, val: twice(train), "one image .struct with binary bytes. and one label are expected"),
        (lambda train, val: numbers(train), "one image .struct with binary bytes. and one label are expected"),
        (lambda train, val: val.unlink(), r"holds no validation-\*.parquet or val-"),
        (lambda train, val: train.write_bytes(b"PAR1" * 9), "train-00001-of-00002.parquet is damaged or no"),
        (lambda train, val: other_columns(train), r"has columns img \(binary\), label \(int64\); one image"),
        (lambda train, val: write(train, [0], ["tench", "x"]), "name different classes"),
        (lambda train, val: write(val, [0], ["tench"]), "differ between train-00000"),
        (lambda train, val: write(train, [0, -1], NAMES), "record 11 of the train files .* label -1"),
        (lambda train, val: write(train, [0, None], NAMES), "1 rows without a label"),
        (lambda train, val: write(train, [0.5], NAMES, kind=pa.float32()), "labels of type float"),
    ],
)
def test_what_is_refused_at_opening(root, change, message):
    change(root / "data/train-00001-of-00002.parquet", root / "data/validation-00000-of-00001-0a1b2c.parquet")
    with pytest.raises(DataError, match=message) as caught:
        source(root)
    assert "\n" not in str(caught.value)


def test_text_labels_that_differ(tmp_path):
    write(tmp_path / "train-0.parquet", ["dog", "ant"], kind=pa.string())
    write(tmp_path / "val-0.parquet", ["ant", "bee"], kind=pa.string())
    with pytest.raises(DataError, match=r"differ: bee, dog are in one split only"):
        source(tmp_path)


def test_no_such_directory(tmp_path):
    with pytest.raises(DataError, match="there is no data directory"):
        source(tmp_path / "gone")
    assert parquet.KEPT == 2  # what the test of kept row groups counts on


def test_a_number_too_large_to_be_a_class(tmp_path):
    write(tmp_path / "train-0.parquet", [0, 10**9, 1])
    write(tmp_path / "val-0.parquet", [1])
    with pytest.raises(DataError, match="label 1000000000 in .* is too large"):
        source(tmp_path)
