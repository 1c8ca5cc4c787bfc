"""`jaxcls compare`: what it prints, writes and refuses. Its figures are tested in tests/interop/test_parity.py."""

import json

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from jaxcls import compare  # noqa: E402
from jaxcls.interop import torch_resnet  # noqa: E402
from tests.torch_states import make_state  # noqa: E402

SMALL = ("--model", "tiny", "--image-size", "32", "--count", "2")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The PyTorch half of the tests' network."""
    architecture = torch_resnet.Architecture((1, 2), 8, 2, groups=4, gated=True)
    monkeypatch.setitem(torch_resnet.ARCHITECTURES, "tiny", architecture)


def run(capsys, *arguments):
    code = compare.main(["jaxcls compare", *map(str, arguments)])
    return code, capsys.readouterr()


@pytest.mark.long
def test_random_weights(capsys, tmp_path):
    code, (out, _) = run(capsys, *SMALL, "--train-steps", 3, "--json", tmp_path / "a.json", "--picture", tmp_path / "a.svg")
    assert code == 0
    assert "First divergence: none, all 36 layers are equal up to rounding." in out
    assert "Known differences: none;" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["logits"]["max_rel"] <= 1e-12 and found["logits"]["top1_agreement"] == 100
    assert found["logits"]["float32"]["ratio"] == found["logits"]["float32"]["jax"] / found["logits"]["float32"]["torch"]
    assert found["activations"][0]["name"] == "stem/conv" and found["activations"][-1]["name"] == "logits"
    assert found["first_divergence"] is None and found["input"] is None
    assert found["gradients"]["max_rel"] == max(found["gradients"]["parameters"].values()) <= 1e-8
    assert found["gradients"]["parameters"][found["gradients"]["worst"]] == found["gradients"]["max_rel"]
    assert len(found["steps"]) == 3 and {"loss_torch", "loss_jax", "lr_torch", "lr_jax"} < found["steps"][0].keys()
    assert "<svg" in (tmp_path / "a.svg").read_text()


@pytest.mark.long
def test_differences_asked_for_are_reported(capsys):
    code, (out, _) = run(capsys, *SMALL, "--train-steps", 1, "--decay-bn", "none", "--every", "step")
    assert code == 0
    assert "Known differences: decay_bn=none" in out and "Known differences: every=step" in out


def test_a_checkpoint_and_photographs(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(256, size=(50 + index, 61, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((200, 160), Image.Resampling.BICUBIC).save(tmp_path / f"{index}.jpg")
    state = make_state()
    torch.save({f"module.{name}": torch.from_numpy(array) for name, array in state.items()}, tmp_path / "w.pth")
    code, (out, _) = run(capsys, *SMALL, "--torch", tmp_path / "w.pth", "--images", tmp_path, "--json", tmp_path / "a.json")
    assert code == 0 and "w.pth (reference names), 2 photographs" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["first_divergence"] is None
    assert 0 < found["input"]["mean_abs"] < 0.5 and found["input"]["max_abs"] <= 3


def test_a_module_of_the_users_own_with_a_difference_in_it(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(
        "from jaxcls.interop import torch_resnet\n"
        "def lenient():\n"
        "    net = torch_resnet.build('tiny', 5)\n"
        "    torch_resnet.randomize(net, 0)\n"
        "    net.layers[1][0].bn2.eps = 1e-3\n"
        "    return net\n"
        "def number():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    code, (out, _) = run(capsys, *SMALL, "--torch-module", "my_networks:lenient", "--json", tmp_path / "a.json")
    assert code == 0 and "First divergence: stage2/block0/bn2." in out and "<- first divergence" in out
    assert json.loads((tmp_path / "a.json").read_text())["first_divergence"] == "stage2/block0/bn2"
    code, (_, err) = run(capsys, *SMALL, "--torch-module", "my_networks:number")
    assert code == 2 and "made a int, not a torch.nn.Module" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "resnet51"), 2, "did you mean 'resnet50'?"),
        ((*SMALL, "--torch-module", "nowhere:f"), 2, "--torch-module=nowhere:f cannot be made (ModuleNotFoundError"),
        ((*SMALL, "--torch", "nothing.pth"), 4, "there is no file nothing.pth"),
        ((*SMALL, "--images", "nowhere"), 3, "there is no folder nowhere"),
        ((*SMALL, "--picture", "a.jpeg"), 2, "a picture is .svg or .png"),
        ((*SMALL, "--count", "0"), 2, "at least 1"),
        ((*SMALL, "--train-steps", "-1"), 2, "--train-steps"),
        ((*SMALL[:2], "--image-size", "16"), 2, "--image-size"),
        ((*SMALL, "--json", "no/such/place/a.json"), 2, "no/such/place"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, code, message):
    found, (_, err) = run(capsys, *arguments)
    assert found == code
    (line,) = err.splitlines()
    assert line.startswith("jaxcls: ") and message in line
