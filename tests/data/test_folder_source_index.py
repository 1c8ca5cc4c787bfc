"""The cached index of class folders: when it holds, when it must not, and that damage is harmless."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from jaxcls.data import folder_index
from jaxcls.data.names import Names, check_labels, pack
from jaxcls.errors import DataError

CLASSES = ("cat", "dog")
LONG_AGO = 1_000_000_000_000_000_000


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_index, "WORTH_CACHING", 1)
    for name, files in (("cat", ["b.jpg", "a.PNG"]), ("dog", ["ü.webp"])):
        (tmp_path / "train" / name).mkdir(parents=True)
        for file in files:
            (tmp_path / "train" / name / file).touch()
    settle(tmp_path / "train")
    return tmp_path / "train"


def settle(folder, when=LONG_AGO):
    for name in CLASSES:
        os.utime(folder / name, ns=(when, when))


def find(folder):
    index = folder_index.find(folder, CLASSES, folder.parent / "cache")
    return list(index.names), index.starts.tolist()


def listings(monkeypatch):
    """Counts how often a folder is listed."""
    seen, listdir = [], os.listdir
    monkeypatch.setattr(folder_index.os, "listdir", lambda path: seen.append(path) or listdir(path))
    return seen


FOUND = (["a.PNG", "b.jpg", "ü.webp"], [0, 2, 3])


def test_second_start_lists_nothing(folder, monkeypatch):
    seen = listings(monkeypatch)
    assert find(folder) == FOUND and len(seen) == 2
    assert find(folder) == FOUND and len(seen) == 2


def test_an_added_removed_or_renamed_image_is_noticed(folder):
    find(folder)
    (folder / "dog" / "new.jpg").touch()
    assert find(folder) == (["a.PNG", "b.jpg", "new.jpg", "ü.webp"], [0, 2, 4])
    settle(folder, LONG_AGO + 1)
    find(folder)
    (folder / "cat" / "a.PNG").unlink()
    (folder / "cat" / "b.jpg").rename(folder / "cat" / "c.jpg")
    assert find(folder) == (["c.jpg", "new.jpg", "ü.webp"], [0, 1, 3])


def test_folders_that_have_just_changed_are_listed_again(folder, monkeypatch):
    """A further change could leave the modification time as it is."""
    (folder / "dog" / "x.jpg").touch()
    find(folder)
    seen = listings(monkeypatch)
    find(folder)
    assert len(seen) == 2


def test_other_class_names_with_the_same_folders_behind_them(folder, monkeypatch):
    find(folder)
    (folder / "dog").rename(folder / "eel")
    os.utime(folder / "eel", ns=(LONG_AGO, LONG_AGO))
    seen = listings(monkeypatch)
    index = folder_index.find(folder, ("cat", "eel"), folder.parent / "cache")
    assert list(index.names) == FOUND[0] and len(seen) == 2


def planted(path):
    """An npz whose `names` would run code if it were unpickled."""

    class Planted:
        def __reduce__(self):
            return os.mkdir, (str(path.parent / "executed"),)

    with np.load(path) as saved:
        arrays = dict(saved)
    np.savez(path, **arrays | {"names": np.array([Planted()], object)})


def encrypted(path):
    """One flipped bit of the zip's directory says so."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        encrypted,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a zip"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes().replace("ü".encode(), b"zz")),  # the zip's checksum
        lambda path: np.savez(path, version=folder_index.VERSION),
        planted,
    ],
    ids=["encrypted", "empty", "text", "truncated", "changed byte", "arrays missing", "pickle"],
)
def test_a_damaged_cache_is_made_anew(folder, damage):
    find(folder)
    (file,) = (folder.parent / "cache").iterdir()
    whole = file.read_bytes()
    damage(file)
    assert file.read_bytes() != whole
    assert find(folder) == FOUND
    assert not (file.parent / "executed").exists()
    with zipfile.ZipFile(file) as mended:
        assert mended.testzip() is None and "names.npy" in mended.namelist()
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # nothing half-written is left


def test_a_cache_that_cannot_be_written_does_not_matter(folder):
    (folder.parent / "cache").write_text("a file where the directory would be")
    assert find(folder) == FOUND


def test_a_folder_that_is_gone_is_one_line(folder):
    with pytest.raises(DataError, match=r"train/eel cannot be listed: No such file"):
        folder_index.find(folder, ("cat", "eel"), folder.parent / "cache")


def test_names_there_and_back():
    odd = os.fsdecode(b"latin-\xe4.jpg")  # not UTF-8
    names = pickle.loads(pickle.dumps(pack([["a", ""], [], ["ü", odd]])))
    assert list(names) == ["a", "", "ü", odd] and names.offsets.tolist() == [0, 1, 1, 3, 14]
    with pytest.raises(IndexError):
        names[4]
    with pytest.raises(ValueError, match="do not fit"):
        Names(names.text[1:], names.offsets)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 2, 3], "record 2 of x has label 3, but there are 3"), ([-1], "label -1")]
)
def test_labels_out_of_range(labels, message):
    check_labels(np.array([0, 2]), 3, "x")
    with pytest.raises(DataError, match=message):
        check_labels(np.array(labels), 3, "x")
