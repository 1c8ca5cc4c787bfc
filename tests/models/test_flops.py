import json

import jax
import pytest

import jaxcls
from jaxcls import summary
from jaxcls.errors import ConfigError
from jaxcls.models import convolution
from jaxcls.models.flops import Layer, count_layers, total
from jaxcls.models.initial import variable_shapes

# Multiply-adds of one image of 224 px, as these networks are known.
KNOWN = {"resnet50": 4.09e9, "resnext101-32x4d": 7.97e9, "se-resnext101-32x4d": 7.97e9}


@pytest.mark.parametrize("name", KNOWN)
def test_totals_are_the_known_ones(name):
    model = jaxcls.create_model(name, num_classes=1000)
    sums = total(count_layers(model))
    assert sums["macs"] == pytest.approx(KNOWN[name], rel=0.01)
    assert sums["flops"] == 2 * sums["macs"]
    assert sums["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(model)["params"]))


@pytest.mark.parametrize("name", KNOWN)
def test_pytorchs_layers_count_the_same(name):
    """The independent build, its layers watched while they run without data."""
    torch = pytest.importorskip("torch")
    from jaxcls.interop.torch_resnet import build

    macs = activations = 0

    def watch(module, inputs, output):
        nonlocal macs, activations
        macs += output.numel() * module.weight[0].numel()
        activations += output.numel()

    with torch.device("meta"):
        net = build(name).eval()
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
                module.register_forward_hook(watch)
        net(torch.empty(1, 3, 224, 224))
    sums = total(count_layers(jaxcls.create_model(name, num_classes=1000)))
    assert (sums["macs"], sums["activations"]) == (macs, activations)


def test_layers_by_hand():
    layers = {layer.name: layer for layer in count_layers(jaxcls.create_model("se-resnext101-32x4d", num_classes=7), 64)}
    windows = 2 * 3 * 3 * (256 // 32) * 256  # FLOPs of a place: of 32 groups, each its own eighth of the inputs
    assert layers["stage2/block0/conv2"] == Layer(
        "stage2/block0/conv2", (8, 8, 256), 3 * 3 * 8 * 256, 64 * windows, 64 * 256
    )
    assert layers["stage2/block0/bn2"] == Layer("stage2/block0/bn2", (8, 8, 256), 2 * 256, 0, 0)
    squeeze = layers["stage1/block0/se/squeeze"]
    assert squeeze == Layer("stage1/block0/se/squeeze", (16,), 256 * 16 + 16, 2 * 256 * 16, 16)
    assert layers["head"] == Layer("head", (7,), 2048 * 7 + 7, 2 * 2048 * 7, 7)
    assert [*layers][:: len(layers) - 1] == ["stem/conv", "head"]
    at = [*layers].index("stage1/block0/bn3")
    assert [*layers][at + 1 : at + 3] == ["stage1/block0/se/squeeze", "stage1/block0/se/expand"]


@pytest.mark.parametrize("name", KNOWN)
def test_the_program_does_the_work_that_is_counted(name, monkeypatch):
    # As on accelerators: on a CPU, packed groups are multiplied with zeros, too.
    monkeypatch.setattr(convolution, "choose_plan", lambda *args: convolution.Plan("lax", "lax", "lax"))
    model = jaxcls.create_model(name, num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), model.dtype)
    program = jax.jit(lambda variables, x: model.apply(variables, x, train=False)).lower(variable_shapes(model), image)
    assert program.cost_analysis()["flops"] == pytest.approx(total(count_layers(model))["flops"], rel=0.05)


def test_images_too_small():
    with pytest.raises(ConfigError, match="image size 31 is too small"):
        count_layers(jaxcls.create_model("resnet50", num_classes=10), 31)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "summary.json"
    assert summary.main(["jaxcls summary", "--model", "resnet50", "--image-size", "64", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    for name in ("parameters", "flops", "activations"):
        assert report[name] == sum(layer[name] for layer in report["layers"])
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("stage") and "/" in line for line in printed) == len(report["layers"]) - 3  # stem and head
    total_row = next(line for line in printed if line.startswith("total")).split()
    assert total_row[1:] == ["25,557,032", f"{report['flops'] / 1e6:,.1f}", "100.0%", f"{report['activations']:,}"]
    assert summary.main(["jaxcls summary", "--model", "resnet51"]) == 2
    assert summary.main(["jaxcls summary", "--model", "resnet50", "--json", str(tmp_path)]) == 2
