import dataclasses
import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcls.config import DataConfig
from jaxcls.data.sources import image_folder, make_source
from jaxcls.errors import DataError


def folder(root, tree):
    """`{"train/cat": ["a.jpg", ...], ...}` as small images."""
    for place, names in tree.items():
        (root / place).mkdir(parents=True)
        for index, name in enumerate(names):
            Image.new("RGB", (8, 8), (index, 0, 0)).save(root / place / name)
    return DataConfig(source="image_folder", path=str(root))


def test_image_folder(tmp_path):
    config = folder(
        tmp_path,
        {
            "train/dog": ["b.JPEG", "a.png"],
            "train/cat": ["x.WebP", "y.JPG", "z.jpeg"],
            "val/cat": ["v.jpg"],
            "val/dog": ["w.PNG"],
        },
    )
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_text("")
    (tmp_path / "train" / ".cache").mkdir()
    source = make_source(config, "train")
    assert source.classes == ("cat", "dog")
    records = [source[index] for index in range(len(source))]
    assert [r["id"] for r in records] == [
        "train/cat/x.WebP", "train/cat/y.JPG", "train/cat/z.jpeg", "train/dog/a.png", "train/dog/b.JPEG",
    ]  # fmt: skip
    assert [r["label"] for r in records] == [0, 0, 0, 1, 1]
    assert records[3]["image"] == (tmp_path / "train/dog/a.png").read_bytes()
    assert pickle.loads(pickle.dumps(source)).id(4) == "train/dog/b.JPEG"
    assert [make_source(config, "val").id(i) for i in range(2)] == ["val/cat/v.jpg", "val/dog/w.PNG"]


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "has no folder train/"),
        ({"val/cat": ["a.jpg"]}, "has no folder train/"),
        ({"train/cat": ["a.jpg"]}, "has no folder val/"),
        ({"train": ["a.jpg"], "val/cat": ["a.jpg"]}, "holds no class folders"),
        ({"train/cat": ["a.jpg"], "train/dog": [], "val/cat": ["a.jpg"], "val/dog": ["a.jpg"]}, "train/dog holds no image"),
        ({"train/cat": ["a.jpg"], "val/dog": ["a.jpg"]}, "train/cat, val/dog have no counterpart"),
    ],
)
def test_folders_that_are_not_in_order(tmp_path, tree, message):
    config = folder(tmp_path, tree)
    with pytest.raises(DataError, match=message):
        make_source(config, "train")


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match="there is no data directory"):
        make_source(DataConfig(source="image_folder", path=str(tmp_path / "gone")), "train")


@pytest.mark.parametrize("name", ["image_folder", "parquet", "tfds", "array_record"])
def test_a_folder_that_cannot_be_looked_at(tmp_path, monkeypatch, name):
    config = DataConfig(source=name, path=str(tmp_path / "data" / ("a" * 300)), name="mnist")
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="a(/mnist)? cannot be read: File name too long"):
        make_source(config, "train")

    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(DataError, match=r"data.* cannot be read: Permission denied"):
        make_source(dataclasses.replace(config, path=str(tmp_path / "data")), "train")


def test_images_of_linked_folders_are_found_once(tmp_path):
    for name in ("a/x.jpg", "a/b/y.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "data" / "a")
    (tmp_path / "data" / "a" / "round").symlink_to(tmp_path / "data")
    assert [path.name for path in image_folder.find_images(tmp_path / "linked")] == ["y.png", "x.jpg"]
    with pytest.raises(DataError, match="there is no folder"):
        image_folder.find_images(tmp_path / "gone")


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    reference = load_digits()
    config = DataConfig(source="digits", image_size=32)
    train, val = make_source(config, "train"), make_source(config, "val")
    indices = [[int(s.id(i).split("/")[1]) for i in range(len(s))] for s in (train, val)]
    assert sorted(indices[0] + indices[1]) == list(range(1797))
    assert len(val) == pytest.approx(1797 / 5, abs=1)
    for source, own in zip((train, val), indices, strict=True):
        labels = [source[i]["label"] for i in range(len(source))]
        assert labels == reference.target[own].tolist()
        shares = np.bincount(labels) / np.bincount(reference.target)
        assert np.ptp(shares) < 0.01  # stratified
    small = DataConfig(source="digits", image_size=8)
    image = make_source(small, "train")[5]["image"]
    expected = np.round(reference.images[indices[0][5]] * 255 / 16).astype(np.uint8)
    assert image.shape == (8, 8, 3)
    np.testing.assert_array_equal(image[..., 1], expected)
    assert train[0]["image"].shape == (32, 32, 3)


def test_synthetic():
    source = make_source(DataConfig(source="synthetic", image_size=40), "val", 7)
    assert len(source) == 1000 and source[9]["label"] == 2 and source[9]["image"].shape == (40, 40, 3)
    assert not np.array_equal(source[0]["image"], source[1]["image"])
    assert len(make_source(DataConfig(source="synthetic"), "train").classes) == 1000


def test_a_cached_source_reads_each_image_once(tmp_path):
    config = folder(tmp_path, {"train/cat": ["a.png", "b.png"], "val/cat": ["v.png"]})
    plain = make_source(config, "train")
    cached = make_source(dataclasses.replace(config, cache=True), "train")
    assert (len(cached), cached.classes, cached.id(1), cached.root) == (2, plain.classes, plain.id(1), plain.root)
    first = cached[1]
    assert first == plain[1]
    (tmp_path / "train/cat/b.png").unlink()
    assert cached[1] == first
    (tmp_path / "train/cat/a.png").unlink()
    with pytest.raises(OSError):
        cached[0]
