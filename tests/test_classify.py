"""`jaxcls classify`."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import jaxcls
from jaxcls import classify, labels, loading
from jaxcls.config import DataConfig
from jaxcls.errors import ConfigError
from jaxcls.interop import weights
from jaxcls.interop.torch_weights import from_torch
from tests.torch_states import CLASSES, make_state
from tests.train.runs import configure, write_run

NAMES = ["Ameise", "Bär", "Chamäleon", "Dachs", "Emu"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Weights for 32 px that name their classes."""
    directory = tmp_path_factory.mktemp("weights")
    metadata = {
        "model": {"name": "tiny", "num_classes": CLASSES, "se_width": 16},
        "preprocessing": loading.preprocessing(DataConfig(image_size=32)),
        "classes": NAMES,
        "provenance": {"source": "here", "found": "weights", "warnings": []},
    }
    state = make_state()
    state["fc.bias"] -= np.float32([-5, 16, -2.5, -1, -4])  # the mean logits: now the image decides
    weights.save(directory, from_torch(state), metadata)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven images in folders, each of another size."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index, name in enumerate(["b/2.png", "b/10.PNG", "a/x.jpg", "a/deeper/y.jpeg", "a.webp", "z.png", "B.JPEG"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((40 + 3 * index, 70 - 4 * index)).save(path)
    (root / "a" / "notes.txt").write_text("not an image")
    return root


# Of text, capitals come before small letters, and a folder's name before a longer one.
ORDER = ["B.JPEG", "a/deeper/y.jpeg", "a/x.jpg", "a.webp", "b/10.PNG", "b/2.png", "z.png"]


@pytest.fixture
def run(capsys, directory):
    """Runs the command; exit code, standard output, and standard error's last line."""

    def run(*arguments, weights=directory):
        code = classify.main(["jaxcls classify", "--weights", str(weights), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def probabilities(directory, folder):
    """`{path: [classes]}`, of the network itself."""
    model, variables, meta = jaxcls.load(directory)
    paths = [folder / name for name in ORDER]
    logits = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, jaxcls.preprocess(paths, meta)))
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    found = exponentials / exponentials.sum(1, keepdims=True)
    assert found.max() < 0.99 and len(set(found.argmax(1))) > 2, "nothing is certain, and the images differ"
    return dict(zip(map(str, paths), found, strict=True))


@pytest.mark.parametrize("batch", [3, 32])
def test_json_has_what_the_network_says(run, folder, probabilities, batch):
    code, out, _ = run("--json", "--batch", batch, folder)
    found = json.loads(out)
    assert code == 0 and [one["path"] for one in found] == [str(folder / name) for name in ORDER]
    for one in found:
        expected = probabilities[one["path"]]
        best = np.argsort(-expected)
        assert [guess["index"] for guess in one["predictions"]] == best.tolist()
        assert [guess["label"] for guess in one["predictions"]] == [NAMES[index] for index in best]
        np.testing.assert_allclose([guess["probability"] for guess in one["predictions"]], expected[best], rtol=1e-4)


def test_more_classes_than_there_are(run, folder):
    code, out, _ = run("--json", "--topk", 99, folder / "z.png")
    (one,) = json.loads(out)
    assert code == 0 and sorted(guess["index"] for guess in one["predictions"]) == list(range(CLASSES))
    assert sum(guess["probability"] for guess in one["predictions"]) == pytest.approx(1, abs=1e-6)
    assert len(json.loads(run("--json", folder / "z.png")[1])[0]["predictions"]) == 5, "the default"


def test_text(run, directory, folder, probabilities):
    paths = [folder / "z.png", folder / "a" / "x.jpg"]
    code, out, err = run("--topk", 3, *paths)
    expected = []
    for path in map(str, paths):  # in the order given
        best = np.argsort(-probabilities[path])[:3]
        expected += [path, *(f"  {probabilities[path][i]:7.2%}  {NAMES[i]} ({i})" for i in best)]
    assert code == 0 and out.splitlines() == expected
    assert err == f"{directory}: of here, weights."


@pytest.fixture
def damaged(folder, tmp_path):
    """A good image, a truncated one, an empty one, one that is not there, a text, and a good one."""
    whole = (folder / "z.png").read_bytes()
    contents = {"1.png": whole, "2.png": whole[:200], "3.png": b"", "4.png": None, "5.png": b"text", "6.png": whole}
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


def test_a_broken_image_is_reported_in_its_place(run, damaged):
    code, out, _ = run("--json", "--batch", 4, *damaged)
    found = json.loads(out)
    assert code == 0 and [one["path"] for one in found] == list(map(str, damaged))
    assert [one.keys() - {"path"} for one in found] == [{"predictions"}, *[{"error"}] * 4, {"predictions"}]
    assert found[0]["predictions"] == found[5]["predictions"]
    assert [one["error"] for one in found[2:5]] == ["an empty file", "No such file or directory", "not an image"]
    code, out, _ = run("--batch", 4, *damaged)
    assert code == 0 and out.count("cannot be used: ") == 4
    assert f"{damaged[3]}\n  cannot be used: No such file or directory\n" in out


def test_nothing_but_broken_images(run, damaged):
    code, out, err = run("--json", *damaged[1:5])
    why = f"{damaged[1]}: image file is truncated"
    assert (code, err) == (3, f"jaxcls: none of the images (4) could be used; the first is {why}")
    assert len(json.loads(out)) == 4


def test_a_network_that_answers_with_nan(run, directory, folder, tmp_path):
    _, variables, meta = jaxcls.load(directory)
    variables["params"]["head"]["kernel"] = np.full_like(variables["params"]["head"]["kernel"], 3e38)
    weights.save(tmp_path / "weights", variables, meta)
    code, out, err = run("--json", folder / "z.png", weights=tmp_path / "weights")
    assert code == 3 and "answers with NaN" in err and "answers with NaN" in json.loads(out)[0]["error"]


def test_a_name_that_is_not_text(run, folder, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.png")
    path.write_bytes((folder / "z.png").read_bytes())
    code, out, _ = run("--json", path)
    assert code == 0 and json.loads(out)[0]["path"] == str(path)


def test_a_folder_without_images(run, folder, tmp_path):
    (tmp_path / "notes.txt").touch()
    code, out, err = run(folder, tmp_path)
    assert code == 3 and not out and err.startswith(f"jaxcls: folder {tmp_path} holds no image (")


LABELS = {
    "lines": "ant\n bee \ncat\ndog\nemu\n",
    "lines within": "ant\x85\nbee\ncat\ndog\nemu",
    "windows": "\ufeffant\r\nbee\r\ncat\r\ndog\r\nemu",
    "list": '["ant", "bee", "cat", "dog", "emu"]',
    "dict": '{"1": "bee", "0": "ant", "2": "cat", "4": "emu", "3": "dog"}',
    "imagenet": '{"0": ["n1", "ant"], "1": ["n2", "bee"], "2": ["n3", "cat"], "3": ["n4", "dog"], "4": ["n5", "emu"]}',
}


@pytest.mark.parametrize("kind", LABELS)
def test_files_of_class_names(tmp_path, kind):
    (tmp_path / "names").write_text(LABELS[kind], encoding="utf-8", newline="")
    assert labels.read(str(tmp_path / "names"), 5) == ["ant", "bee", "cat", "dog", "emu"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds 0 class names, and the network has 5 classes"),
        (b"ant\nbee\n", "holds 2 class names"),
        (b'["ant", "bee"', "are neither a name a line nor JSON (JSONDecodeError"),
        (b'{"0": "ant", "2": "bee"}', "are neither a name a line nor JSON (KeyError: '1')"),
        (b'{"0": []}', "are neither a name a line nor JSON (IndexError"),
        (b'["ant", 3]', "are neither a name a line nor JSON (ValueError: 3 is not a name)"),
        (b'["\\ud800"]', "are neither a name a line nor JSON (UnicodeEncodeError"),
        (b"[" * 100_000, "are neither a name a line nor JSON (RecursionError"),
        (b"\xff\xfe\x00", "are neither a name a line nor JSON (UnicodeDecodeError"),
    ],
)
def test_wrong_files_of_class_names(tmp_path, content, reason):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        labels.read(str(tmp_path / "names"), 5)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_given_names_come_before_the_weights_own(run, folder, tmp_path):
    (tmp_path / "names").write_text(LABELS["imagenet"])
    own, given = (json.loads(run("--json", *flags, folder / "z.png")[1]) for flags in ([], ["--labels", tmp_path / "names"]))
    for ours, theirs in zip(own[0]["predictions"], given[0]["predictions"], strict=True):
        assert theirs == ours | {"label": ["ant", "bee", "cat", "dog", "emu"][ours["index"]]}


def test_classes_of_a_run_and_of_weights_without_names(run, folder, directory, tmp_path):
    variables, meta = weights.load(directory)
    write_run(tmp_path / "run", configure("images", **{"data.image_size": 32}), list("vwxyz"), {3: (variables, 40.0)})
    weights.save(tmp_path / "weights", variables, meta | {"classes": None})
    guesses = [json.loads(run("--json", folder, weights=tmp_path / name)[1]) for name in ("run", "weights")]
    for named, numbered in zip(*guesses, strict=True):
        assert [guess["label"] for guess in named["predictions"]] == ["vwxyz"[g["index"]] for g in named["predictions"]]
        assert [guess["label"] for guess in numbered["predictions"]] == [str(g["index"]) for g in numbered["predictions"]]
        assert [g["probability"] for g in named["predictions"]] == [g["probability"] for g in numbered["predictions"]]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--topk", "0"], 2, "argument --topk: 0 must be a whole number of at least 1"),
        (["--batch", "two"], 2, "argument --batch: two must be a whole number of at least 1"),
        (["--labels", "none.txt"], 2, "class names none.txt cannot be read"),
        (["--labels", __file__], 2, "class names, and the network has 5 classes"),
        (["--model", "resnet"], 2, "no network is called 'resnet'"),
        (["--model", "resnet50"], 4, "holds the weights of tiny, not of resnet50"),
        (["--ema"], 4, "holds no averaged weights"),
        (["--weights", "none.pth"], 4, "there is no file none.pth"),
    ],
)
def test_wrong_commands(run, folder, arguments, code, reason):
    found, out, err = run(*arguments, folder / "z.png")
    assert found == code and not out and err.startswith("jaxcls: ") and reason in err


def test_heatmaps_are_drawn_of_the_images_that_can_be_used(run, folder, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "heat"
    code, _, _ = run("--heatmaps", out, "--batch", "2", folder / "z.png", tmp_path / "broken.jpg", folder / "b")
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["00001-z.jpg", "00003-10.jpg", "00004-2.jpg"]
    (tmp_path / "long").mkdir()
    shutil.copy(folder / "z.png", tmp_path / "long" / ("ü" * 125 + ".png"))
    assert run("--heatmaps", tmp_path / "more", tmp_path / "long")[0] == 0
    assert [path.name for path in (tmp_path / "more").iterdir()] == [f"00001-{'ü' * 100}.jpg"]
    assert Image.open(out / "00003-10.jpg").size == (64, 32)
    code, _, err = run("--heatmaps", folder / "z.png", folder / "b")
    assert code == 2 and "cannot be made (File exists); give a folder" in err
