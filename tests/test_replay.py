import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxcls import replay
from jaxcls.config import to_dict
from jaxcls.errors import DataError
from jaxcls.train import loop
from tests.train.runs import configure, make_folder, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"))


def run(*arguments):
    return replay.main(["jaxcls replay", *map(str, arguments)])


def test_the_batch_that_the_step_took(folder, tmp_path, monkeypatch, capsys):
    """Against what a run, four steps long, put on its four devices, and mixed in the compiled step."""
    taken, put = [], loop.Trainer._put

    def watched(self, *arrays):
        taken.append(arrays)
        return put(self, *arrays)

    monkeypatch.setattr(loop.Trainer, "_put", watched)
    changes = {
        "train.mixup_alpha": 0.4,
        "train.max_steps": 4,
        "train.batch_size": 8,
        "data.color_jitter": (0.4, 0.4, 0.4, 0.1),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcls.train.setup.block_size", lambda batch: 2)
        patch.setattr("jaxcls.train.augment.block_size", lambda batch: 2)
        train(tmp_path / "run", configure(folder, **changes))
        assert run(tmp_path / "run", "--step", 4, "-o", tmp_path / "spike") == 0
    found = np.load(tmp_path / "spike.npz")
    images, labels = next(arrays for number, arrays in enumerate(a for a in taken if len(a) == 2) if number == 3)
    np.testing.assert_array_equal(found["image"], images)
    np.testing.assert_array_equal(found["label"], labels)
    assert all(name.startswith(f"train/{'ab'[label]}/") for name, label in zip(found["id"], labels, strict=True))
    assert found["input"].shape == (8, 32, 32, 3) and found["input"].dtype == np.float32
    np.testing.assert_allclose(found["target"].sum(1), 1, rtol=1e-6)
    assert ((found["target"] > 0) & (found["target"] < 1)).any(), "mixed"
    assert Image.open(tmp_path / "spike.png").size == (3 * 34 - 2, 3 * 34 - 2)
    assert "Wrote" in capsys.readouterr().out


def test_other_data_is_refused(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    config = configure(data, **{"train.max_steps": 4})
    train(tmp_path / "run", config)
    assert run(tmp_path / "run", "--step", 2) == 0
    moved = (data / "train" / "a" / "06.png").rename(tmp_path / "06.png")
    assert run(tmp_path / "run", "--step", 2) == 3
    assert "training data is not what the run" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"began with \(26 images then, 25 now\)"):
        train(tmp_path / "run", configure(data))
    moved.rename(data / "train" / "a" / "06x.png")  # as many, but one has another name
    with pytest.raises(DataError, match="training data is not what"):
        train(tmp_path / "run", configure(data))
    (data / "train" / "a" / "06x.png").rename(data / "train" / "a" / "06.png")
    assert train(tmp_path / "run", configure(data))["steps"] == 9


def test_nothing_mixed_is_the_batch_normalised(folder, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(configure(folder))))
    assert run(tmp_path, "--step", 2) == 0
    found = np.load(tmp_path / "replay-2.npz")
    expected = (found["image"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found["input"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["target"], np.eye(2)[found["label"]])
    grid = np.asarray(Image.open(tmp_path / "replay-2.png"))
    np.testing.assert_array_equal(grid[:32, :32], found["image"][0])
    np.testing.assert_array_equal(grid[34:66, 34:66], found["image"][4])


@pytest.mark.parametrize(
    ("step", "where", "message"),
    [(10, ".", "--step=10: the run has steps 1 to 9"), (0, ".", "at least 1"), (1, "nothing", "is not a run: ")],
)
def test_mistakes(folder, tmp_path, capsys, step, where, message):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(configure(folder))))
    assert run(tmp_path / where, "--step", step) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "is not a run's config: data.source is not settled"),
        ("[]", "is not a run's config: "),
        ('{"data": {"source": "foo"}}', "is not a run's config: data.source='foo' is not among"),
        ('{"train": {"batch_size": 0}, "data": {"source": "digits"}}', "is not a run's config: train.batch_size=0 must be"),
    ],
)
def test_a_config_that_is_none(tmp_path, capsys, content, message):
    (tmp_path / "config.json").write_text(content)
    assert run(tmp_path, "--step", 1) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/config.json {message}" in line
