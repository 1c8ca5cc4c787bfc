"""Names and layouts of PyTorch weights, without PyTorch but for the last test."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcls import flags
from jaxcls.errors import CheckpointError
from jaxcls.interop.torch_weights import (
    NAMINGS,
    Outline,
    batches_tracked,
    detect_naming,
    from_torch,
    outline,
    strip_prefixes,
    to_torch,
)
from tests import torch_states
from tests.torch_states import BN, as_published, as_timm, assert_same_states, prefixed


def block(stage, index, inputs, outputs, *, shortcut=False, gate=False):
    """Name and shape of a block's weights in the reference, with two channels inside."""
    name = f"layers.{stage}.{index}"
    shapes = {
        f"{name}.conv1.weight": (2, inputs, 1, 1),
        f"{name}.conv2.weight": (2, 1, 3, 3),
        f"{name}.conv3.weight": (outputs, 2, 1, 1),
    }
    for bn, channels in (("bn1", 2), ("bn2", 2), ("bn3", outputs)):
        shapes |= {f"{name}.{bn}.{leaf}": (channels,) for leaf in BN}
    if gate:
        shapes |= {f"{name}.squeeze.squeeze.weight": (3, outputs), f"{name}.squeeze.squeeze.bias": (3,)}
        shapes |= {f"{name}.squeeze.expand.weight": (outputs, 3), f"{name}.squeeze.expand.bias": (outputs,)}
    if shortcut:
        shapes |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1)}
        shapes |= {f"{name}.downsample.1.{leaf}": (outputs,) for leaf in BN}
    return shapes


@pytest.fixture
def state():
    """A state dict of the reference's kind, small: two stages, a second block, gates, every value different."""
    shapes = {"conv1.weight": (4, 3, 7, 7)} | {f"bn1.{leaf}": (4,) for leaf in BN}
    shapes |= block(0, 0, 4, 8, shortcut=True, gate=True) | block(0, 1, 8, 8, gate=True)
    shapes |= block(1, 0, 8, 16, shortcut=True, gate=True)
    shapes |= {"fc.weight": (5, 16), "fc.bias": (5,)}
    state, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        state[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return state


def test_round_trip_bit_for_bit(state):
    state["layers.1.0.bn2.bias"][:] = [np.nan, -0.0]
    assert_same_states(to_torch(from_torch(state)), state)


def test_where_each_kind_of_weight_goes(state):
    variables = from_torch(state)
    params, stats = variables["params"], variables["batch_stats"]
    stem = params["stem"]["conv"]["kernel"]
    assert stem.shape == (7, 7, 3, 4) and stem[5, 2, 1, 3] == state["conv1.weight"][3, 1, 5, 2]
    head = params["head"]["kernel"]
    assert head.shape == (16, 5) and head[9, 2] == state["fc.weight"][2, 9]
    np.testing.assert_array_equal(params["head"]["bias"], state["fc.bias"])
    np.testing.assert_array_equal(params["stem"]["bn"]["scale"], state["bn1.weight"])
    block1, block0 = params["stage1"]["block1"], params["stage2"]["block0"]
    np.testing.assert_array_equal(block1["conv1"]["kernel"][0, 0].T, state["layers.0.1.conv1.weight"][:, :, 0, 0])
    np.testing.assert_array_equal(block0["bn3"]["bias"], state["layers.1.0.bn3.bias"])
    np.testing.assert_array_equal(block0["se"]["squeeze"]["kernel"], state["layers.1.0.squeeze.squeeze.weight"].T)
    np.testing.assert_array_equal(block0["se"]["expand"]["bias"], state["layers.1.0.squeeze.expand.bias"])
    np.testing.assert_array_equal(block0["shortcut"]["bn"]["scale"], state["layers.1.0.downsample.1.weight"])
    stats = stats["stage2"]["block0"]
    np.testing.assert_array_equal(stats["shortcut"]["bn"]["var"], state["layers.1.0.downsample.1.running_var"])
    np.testing.assert_array_equal(stats["bn2"]["mean"], state["layers.1.0.bn2.running_mean"])
    assert "shortcut" not in block1 and "se" in block1


def test_module_prefix_and_missing_counters(state):
    prefixed = {f"module.{name}": array for name, array in state.items() if "num_batches" not in name}
    assert_same_states(to_torch(from_torch(prefixed)), state)


def test_gates_stored_as_convolutions(state):
    gates = {name: array[:, :, None, None] for name, array in state.items() if ".squeeze." in name and array.ndim == 2}
    assert len(gates) == 6
    assert_same_states(to_torch(from_torch(state | gates)), state)


def test_dtypes_are_kept(state):
    halves = {name: array.astype(np.float16) for name, array in state.items() if array.dtype == np.float32}
    back = to_torch(from_torch(halves))
    assert {array.dtype for name, array in back.items() if "num_batches" not in name} == {np.dtype(np.float16)}


def test_all_faults_are_listed_at_once(state):
    state["epoch"] = np.array(3)
    state["layers.0.0.conv4.weight"] = np.zeros((1, 1, 1, 1))
    state["conv1.bias"] = np.zeros(4)
    state["layers.0.1.conv2.weight"] = np.zeros((2, 2))
    state["layers.1.0.squeeze.expand.weight"] = np.zeros((16, 3, 3, 3))
    state["fc.bias"] = np.zeros((5, 1))
    del state["layers.1.0.bn2.running_var"], state["bn1.weight"]
    with pytest.raises(CheckpointError) as caught:
        from_torch(state)
    message = str(caught.value)
    assert "\n" not in message
    for fault in (
        "unexpected epoch",
        "unexpected layers.0.0.conv4.weight",
        "unexpected conv1.bias",
        "missing layers.1.0.bn2.running_var",
        "missing bn1.weight",
        "layers.0.1.conv2.weight has shape (2, 2) in place of 4 dimensions",
        "layers.1.0.squeeze.expand.weight has shape (16, 3, 3, 3) in place of 2 dimensions",
        "fc.bias has shape (5, 1) in place of 1 dimension",
    ):
        assert fault in message
    assert message.count(";") == 7, "nothing else is wrong"


def test_half_prefixed_and_empty_states_are_refused(state):
    state["module.fc.bias"] = state["fc.bias"]
    with pytest.raises(CheckpointError, match="unexpected module.fc.bias$"):
        from_torch(state)
    with pytest.raises(CheckpointError, match="missing conv1.weight"):
        from_torch({})


def test_export_lists_all_faults_at_once(state):
    variables = from_torch(state)
    variables["params"]["tail"] = {"kernel": np.zeros((2, 2))}
    variables["params"]["stem"]["conv"]["kernel"] = np.zeros((7, 7, 3))
    del variables["batch_stats"]["stage1"]["block1"]["bn1"]["mean"]
    with pytest.raises(CheckpointError) as caught:
        to_torch(variables)
    message = str(caught.value)
    assert "unexpected params/tail/kernel" in message
    assert "missing batch_stats/stage1/block1/bn1/mean" in message
    assert "params/stem/conv/kernel has shape (7, 7, 3) in place of 4 dimensions" in message
    assert message.count(";") == 2


FAMILIES = {"reference": lambda state: state, "torchvision": as_published, "timm": as_timm}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_and_the_way_back(family):
    """Counts of batches, which differ from layer to layer, included."""
    reference, naming = torch_states.make_state(), NAMINGS[family]
    state = FAMILIES[family](reference)
    assert detect_naming(state) == family
    variables, expected = from_torch(state, naming), from_torch(reference)
    for path, array in flatten_dict(expected).items():
        assert flatten_dict(variables)[path].tobytes() == array.tobytes(), path
    assert_same_states(to_torch(variables, naming, batches_tracked(state, naming)), state)


def test_the_command_line_offers_every_family():
    assert flags.NAMES == tuple(NAMINGS) == tuple(FAMILIES)


@pytest.mark.parametrize(
    "names", [[], ["fc.weight"], ["blocks.0.conv1.weight"], ["layer0.0.conv1.weight"], ["layers.0.weight"]]
)
def test_names_of_no_family(names):
    with pytest.raises(CheckpointError, match=f"not {', '.join(names) or 'nothing'}$"):
        detect_naming(names)


def test_prefixes_go_only_if_every_name_has_them():
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."):
        assert strip_prefixes(prefixed({"a": 1, "b.module.c": 2}, prefix)) == {"a": 1, "b.module.c": 2}
    assert strip_prefixes({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert strip_prefixes({}) == {}


def test_counts_of_batches(state):
    reference = NAMINGS["reference"]
    assert batches_tracked(state, reference) == 0
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    same = state | dict.fromkeys(counters, np.array(123))
    assert batches_tracked(same, reference) == 123
    assert batches_tracked({name: array for name, array in state.items() if name not in counters}, reference) == 0
    del same["layers.0.1.bn2.num_batches_tracked"]
    same["layers.1.0.downsample.1.num_batches_tracked"] = np.array(7)
    found = batches_tracked(same, reference)
    assert len(found) == len(counters)
    assert found.pop("stage1/block1/bn2") == 0 and found.pop("stage2/block0/shortcut/bn") == 7
    assert set(found.values()) == {123}
    assert to_torch(from_torch(state), batches_tracked=5)["bn1.num_batches_tracked"] == 5


def test_an_outline_by_hand():
    state = torch_states.make_state(classes=3)
    reference = NAMINGS["reference"]
    expected = Outline((1, 2), (8, 16), expansion=2, groups=4, squeeze_excite=True, num_classes=3, se_width=16)
    assert outline(state, reference) == expected
    for family, rename in FAMILIES.items():
        assert outline(rename(state), NAMINGS[family]) == expected
    narrow = {}
    for name, array in state.items():  # a sixteenth of 16 and of 32 channels
        channels = 1 if name.startswith("layers.0") else 2
        rows = name.endswith(("squeeze.squeeze.weight", "squeeze.squeeze.bias"))
        narrow[name] = array[:channels] if rows else array[:, :channels] if name.endswith("expand.weight") else array
    assert outline(narrow, reference) == expected._replace(se_width=0)
    plain = {name: array for name, array in state.items() if ".squeeze." not in name}
    assert outline(plain, reference) == expected._replace(squeeze_excite=False)
    for missing in ("fc.weight", "layers.0.0.conv2.weight", "layers.1.0.conv1.weight", "layers.1.1.conv3.weight"):
        assert outline({name: array for name, array in state.items() if name != missing}, reference) is None
    assert outline({}, reference) is None


@pytest.mark.parametrize("name", ["resnet50", "resnext101-32x4d", "se-resnext101-32x4d"])
def test_outlines_of_the_networks(name):
    torch = pytest.importorskip("torch")
    from jaxcls.interop.torch_resnet import build
    from jaxcls.models.registry import MODELS

    with torch.device("meta"):
        found = outline(build(name, num_classes=7, se_width=0).state_dict(), NAMINGS["reference"])
    for field in ("depths", "widths", "expansion", "groups", "squeeze_excite"):
        assert getattr(found, field) == getattr(MODELS[name], field)
    assert found.num_classes == 7 and found.se_width == (0 if MODELS[name].squeeze_excite else 16)


@pytest.mark.parametrize("name", ["resnet50", "resnet50-v1", "resnext101-32x4d", "se-resnext101-32x4d"])
def test_exported_names_and_shapes_are_those_of_the_network(name):
    """jaxcls's own variables, exported, load strictly into the independent PyTorch build."""
    torch = pytest.importorskip("torch")
    import jax

    import jaxcls
    from jaxcls.interop.torch_resnet import build

    model = jaxcls.create_model(name, num_classes=7)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), image)
    state = to_torch(jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes))
    with torch.device("meta"):
        expected = build(name, num_classes=7).state_dict()
    assert {key: array.shape for key, array in state.items()} == {key: tuple(t.shape) for key, t in expected.items()}
