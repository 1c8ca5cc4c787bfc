"""A data set that TFDS itself prepared, without TensorFlow, and read without it."""

import concurrent.futures
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from jaxcls.config import DataConfig
from jaxcls.data.sources import make_source
from jaxcls.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent.parent

PREPARE = """
import io, sys, tensorflow_datasets as tfds
from PIL import Image

class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small", version=VERSION, description="")]

    def _info(self):
        features = {"image": tfds.features.Image(encoding_format="png"), "file_name": tfds.features.Text(),
            sys.argv[3]: tfds.features.ClassLabel(names=["cat", "dog"])}
        return tfds.core.DatasetInfo(builder=self, description="", features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples(7), sys.argv[2]: self._generate_examples(3)}

    def _generate_examples(self, count):
        for index in range(count):
            image = io.BytesIO()
            Image.new("RGB", (8 + index, 8), (30 * index, 0, 0)).save(image, "PNG")
            image.seek(0)
            yield index, {"image": image, "file_name": str(index), sys.argv[3]: index % 2}

Toy(config="small", data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ = """
import pickle, sys
from jaxcls.config import DataConfig
from jaxcls.data.sources import make_source
source = make_source(DataConfig(source="tfds", name="toy/small", path=sys.argv[1]), "train")
again = pickle.loads(pickle.dumps(source))
assert [again[i] for i in range(7)] == [source[i] for i in range(7)]
print(len(source), source.classes)
"""


def python(program, *arguments, **environment):
    """Runs a program where TensorFlow is installed, but importing it fails."""
    with tempfile.TemporaryDirectory() as path:
        (Path(path) / "tensorflow.py").write_text("raise AssertionError('tensorflow was imported')")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([path, str(ROOT)])} | environment
        command = [sys.executable, "-c", program, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)


def prepare(root, second="validation", label="label"):
    made = python(PREPARE, root, second, label)
    assert made.returncode == 0, made.stderr
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def copy(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "copy") / "toy" / "small" / "1.2.0"


def source(root, split="train", name="toy/small"):
    return make_source(DataConfig(source="tfds", name=name, path=str(root)), split)


def red(record):
    """The red of a record's image, which is 30 times the number that it was made with, and the number that is its width."""
    image = Image.open(io.BytesIO(record["image"]))
    assert image.format == "PNG"
    return image.getpixel((0, 0))[0], image.width - 8


def test_records(prepared):
    train, val = source(prepared), source(prepared, "val")
    assert (len(train), len(val), train.classes) == (7, 3, ("cat", "dog"))
    found = sorted((*red(record), record["label"]) for record in (train[index] for index in range(7)))
    assert found == [(30 * number, number, number % 2) for number in range(7)]
    assert train[5]["id"] == train.id(5) == "toy/small/train/5" and val.id(0) == "toy/small/validation/0"


def test_without_tensorflow(prepared):
    found = python(READ, prepared)
    assert found.stdout.strip() == "7 ('cat', 'dog')", found.stderr
    assert "AssertionError: tensorflow was imported" in python("import tensorflow").stderr


def test_threads_read_after_pickling(prepared):
    train = source(prepared)
    copy = pickle.loads(pickle.dumps(train))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: copy[index % 7], range(140)))
    assert found == [train[index] for index in range(7)] * 20


def test_test_stands_in_for_validation(tmp_path):
    assert source(prepare(tmp_path, "test"), "val").id(2) == "toy/small/test/2"


def test_newest_version_and_a_named_one(copy):
    for version in ("1.10.0", "1.9.0"):
        newer = shutil.copytree(copy, copy.parent / version)
        info = newer / "dataset_info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"version": version}))
    for path in (copy.parent / "1.2.0").iterdir():  # what is left out is not opened
        path.unlink()
    root = copy.parents[2]
    assert len(source(root)) == len(source(root, name="toy/small:1.9.0")) == 7
    with pytest.raises(DataError, match=r"toy/small:1.2.0 is not prepared"):
        source(root, name="toy/small:1.2.0")


def test_default_directory_is_tfds_own(prepared):
    program = (
        "from jaxcls.config import DataConfig; from jaxcls.data.sources import make_source;"
        "print(len(make_source(DataConfig(source='tfds', name='toy/small'), 'val')))"
    )
    found = python(program, TFDS_DATA_DIR=str(prepared))
    assert found.stdout.strip() == "3", found.stderr


def test_what_is_not_prepared_has_its_command(tmp_path):
    with pytest.raises(DataError) as caught:
        source(tmp_path / "my data", name="imagenette/full-size-v2")
    assert str(caught.value) == (
        f"imagenette/full-size-v2 is not prepared in {tmp_path}/my data; prepare it (which needs TensorFlow, `pip install "
        f"'jaxcls[prepare]'`; training does not): tfds build imagenette/full-size-v2 --file_format=array_record "
        f"--data_dir='{tmp_path}/my data'"
    )


def test_configs_are_listed(prepared):
    with pytest.raises(DataError, match=r"holds the configs small; name one: data.name=toy/small"):
        source(prepared, name="toy")


@pytest.mark.parametrize("name", ["", "../x", "a/b/c", "a//b", "toy/small:../1.2.0"])
def test_names_that_are_none(prepared, name):
    with pytest.raises(ConfigError, match="is not NAME"):
        source(prepared, name=name)


def edit(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: next(d.glob("*train.array_record*")).unlink(), r"train.array_record-00000-of-00001 is missing"),
        (lambda d: edit(d / "dataset_info.json", '"array_record"', '"tfrecord"'), "is in tfrecord format, which needs"),
        (lambda d: edit(d / "dataset_info.json", '"validation"', '"extra"'), "has no split validation or test, only"),
        (lambda d: (d / "dataset_info.json").write_text("{"), "is damaged"),
        (lambda d: (d / "features.json").write_text("{"), "is damaged"),
    ],
)
def test_what_is_refused_at_opening(copy, damage, message):
    damage(copy)
    with pytest.raises(DataError, match=message) as caught:
        source(copy.parents[2], "val" if "no split" in message else "train")
    assert "\n" not in str(caught.value)


def test_other_features(tmp_path):
    with pytest.raises(DataError, match=r"features file_name \(Text\), image \(Image\), species \(ClassLabel\); image"):
        source(prepare(tmp_path, label="species"))


def test_a_damaged_record_fails_alone(copy):
    path = next(copy.glob("*train.array_record*"))
    victim = source(copy.parents[2])[3]["image"]
    content = bytearray(path.read_bytes())
    content[content.index(victim) + 20] ^= 255
    path.write_bytes(content)
    train = source(copy.parents[2])
    with pytest.raises(OSError, match="toy/small/train/3: .*hash mismatch"):
        train[3]
    assert len([train[index] for index in range(7) if index != 3]) == 6


def test_records_of_a_file_that_ends_early_cannot_be_read(copy):
    os.truncate(next(copy.glob("*train.array_record*")), 40_000)
    train = source(copy.parents[2])
    with pytest.raises(OSError, match="toy/small/train/0: "):
        train[0]
