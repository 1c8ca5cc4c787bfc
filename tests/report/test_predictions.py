import numpy as np
import pytest

from jaxcls.errors import RunError
from jaxcls.report import predictions
from jaxcls.report.predictions import Predictions


def make(label, prediction, confidence, classes="abc"):
    index = np.arange(len(label), dtype=np.int32)
    ids = np.array([f"val/{place}" for place in index], str)
    integers = (np.array(values, np.int32) for values in (label, prediction))
    return Predictions(index, ids, *integers, np.array(confidence, np.float32), np.array(list(classes), str))


FOUND = make([0, 0, 0, 1, 1], [0, 1, 1, 1, 2], [0.9, 0.5, 0.99, 0.6, 0.95])


def test_confusion():
    assert predictions.confusion(FOUND).tolist() == [[1, 2, 0], [0, 1, 1], [0, 0, 0]]


def test_the_worst_are_the_most_confident_mistakes():
    assert predictions.worst(FOUND, 2).tolist() == [2, 4]
    assert predictions.worst(make([0, 1], [0, 1], [1, 1]), 5).tolist() == []


def test_calibration_by_hand():
    """Of fifteen parts, 0.5 is in the eighth, 0.6 (as float32, just above its lower edge) in the tenth, 0.9 in the 14th."""
    found = predictions.calibration(FOUND)
    assert {place: count for place, count in enumerate(found.count.tolist()) if count} == {7: 1, 9: 1, 13: 1, 14: 2}
    assert found.accuracy[[7, 9, 13, 14]].tolist() == [0, 1, 1, 0] and np.isnan(found.accuracy[0])
    assert found.confidence[14] == pytest.approx(0.97)
    assert found.error == pytest.approx((0.5 + 0.4 + 0.1 + 2 * 0.97) / 5, abs=1e-6)
    assert predictions.calibration(make([], [], [])).error == 0


def test_answers_that_are_not_finite_are_none():
    found = FOUND._replace(confidence=np.array([np.nan, 0.5, np.inf, 0.6, np.nan], np.float32)).finite()
    assert found.id.tolist() == ["val/1", "val/3"] and found.right.tolist() == [False, True]
    assert len(found.classes) == 3


def test_saved_and_read_back(tmp_path):
    path = tmp_path / "predictions.npz"
    assert predictions.load(path) is None
    predictions.save(path, FOUND)
    for ours, theirs in zip(predictions.load(path), FOUND, strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]
    with pytest.raises(RunError, match=r"cannot be written \(No such file or directory\)"):
        predictions.save(tmp_path / "none" / "predictions.npz", FOUND)


@pytest.mark.parametrize("damage", ["cut", "empty", "no zip", "lengths", "classes"])
def test_what_is_damaged_is_a_value_error(tmp_path, damage):
    path = tmp_path / "predictions.npz"
    changed = {"lengths": FOUND._replace(label=FOUND.label[1:]), "classes": FOUND._replace(label=FOUND.label + 2)}
    predictions.save(path, changed.get(damage, FOUND))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-100], "empty": b"", "no zip": b"x" * 200}.get(damage, whole))
    with pytest.raises(ValueError):
        predictions.load(path)
