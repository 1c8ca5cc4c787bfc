"""`jaxcls.load` and `jaxcls.preprocess`."""

import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.datasets
from flax.traverse_util import flatten_dict
from PIL import Image

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

import jaxcls  # noqa: E402
from jaxcls.errors import CheckpointError, ConfigError, DataError  # noqa: E402
from jaxcls.interop import weights  # noqa: E402
from jaxcls.interop.torch_resnet import Architecture, TorchResNet, build  # noqa: E402
from jaxcls.interop.torch_weights import from_torch  # noqa: E402
from jaxcls.loading import load_arrays  # noqa: E402
from tests.torch_states import (  # noqa: E402
    CLASSES,
    as_published,
    as_timm,
    make_state,
    prefixed,
    with_convolutional_gates,
)
from tests.train.runs import configure, write_run  # noqa: E402


@pytest.fixture(scope="module")
def state():
    return make_state()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    """A PyTorch file with the reference's names."""
    return save(tmp_path_factory.mktemp("torch") / "weights.pth", state)


def save(path, state, entry=None, **facts):
    """Writes a state dict, by PyTorch."""
    state = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    (save_file if path.suffix == ".safetensors" else torch.save)({entry: state, **facts} if entry else state, path)
    return path


def refusal(path, model=None, **options):
    with pytest.raises(CheckpointError) as caught:
        jaxcls.load(path, model, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def assert_loaded(variables, state):
    """Every array of the reference's state dict is in the variables, laid out for JAX."""
    found = flatten_dict(variables, sep="/")
    by_hand = {
        "params/stem/conv/kernel": state["conv1.weight"].transpose(2, 3, 1, 0),
        "params/stem/bn/scale": state["bn1.weight"],
        "params/stage1/block0/conv2/kernel": state["layers.0.0.conv2.weight"].transpose(2, 3, 1, 0),
        "params/stage2/block1/bn3/bias": state["layers.1.1.bn3.bias"],
        "params/stage2/block0/shortcut/conv/kernel": state["layers.1.0.downsample.0.weight"].transpose(2, 3, 1, 0),
        "params/stage2/block1/se/squeeze/kernel": state["layers.1.1.squeeze.squeeze.weight"].T,
        "params/stage1/block0/se/expand/bias": state["layers.0.0.squeeze.expand.bias"],
        "params/head/kernel": state["fc.weight"].T,
        "params/head/bias": state["fc.bias"],
        "batch_stats/stage2/block1/bn2/mean": state["layers.1.1.bn2.running_mean"],
        "batch_stats/stage1/block0/shortcut/bn/var": state["layers.0.0.downsample.1.running_var"],
    }
    for name, expected in by_hand.items():
        np.testing.assert_array_equal(found[name], expected, name)
    assert len(found) == sum(not name.endswith("tracked") for name in state)
    assert sorted(map(np.sum, found.values())) == pytest.approx(
        sorted(array.sum() for name, array in state.items() if not name.endswith("tracked")), rel=1e-4
    )


VARIANTS = {
    "reference": lambda state: state,
    "published": as_published,
    "gates as convolutions": with_convolutional_gates,
    "published with gates as convolutions": lambda state: as_published(with_convolutional_gates(state)),
    "timm": as_timm,
    "distributed": prefixed,
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled and distributed timm": lambda state: prefixed(as_timm(state), "module._orig_mod."),
    "without counters": lambda state: {name: array for name, array in state.items() if not name.endswith("tracked")},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_are_detected(state, tmp_path, variant):
    path = save(tmp_path / "weights.pth", VARIANTS[variant](state))
    variables, meta = load_arrays(path)
    assert_loaded(variables, state)
    family = "timm" if "timm" in variant else "torchvision" if "published" in variant else "reference"
    assert meta["model"] == {"name": "tiny", "num_classes": CLASSES, "se_width": 16}
    assert meta["provenance"]["names"] == family and meta["provenance"]["warnings"] == []
    assert meta["provenance"]["found"] == f"weights with {family} names, tiny, 5 classes, float32"


@pytest.mark.parametrize("name", ["A.PTH", "weights.pth.tar", "a.pt", "weights.safetensors"])
def test_names_of_files(state, tmp_path, name):
    variables, meta = load_arrays(save(tmp_path / name, as_timm(state)))
    assert_loaded(variables, state)
    assert meta["provenance"]["source"] == str(tmp_path / name)


def test_a_training_checkpoint(state, tmp_path):
    averaged = make_state(seed=1)
    facts = {"epoch": 7, "best_prec1": torch.tensor(76.5), "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]}}
    ema = {name: torch.from_numpy(np.array(array)) for name, array in prefixed(averaged).items()}
    path = save(tmp_path / "checkpoint.pth.tar", prefixed(state), "state_dict", state_dict_ema=ema, **facts)
    _, variables, meta = jaxcls.load(path, "tiny")
    assert_loaded(variables, state)
    assert meta["provenance"]["found"] == (
        "a training checkpoint with reference names, tiny, 5 classes, float32; "
        "took state_dict, not state_dict_ema; epoch 7; best_prec1 76.5"
    )
    assert (meta["provenance"]["epoch"], meta["provenance"]["best_prec1"]) == (7, 76.5)
    _, variables, meta = jaxcls.load(path, "tiny", ema=True)
    assert_loaded(variables, averaged)
    assert "took state_dict_ema, not state_dict" in meta["provenance"]["found"]


def test_the_network_computes_what_pytorch_does(state, file):
    net = TorchResNet(Architecture((1, 2), 8, 2, groups=4, gated=True), CLASSES, 16)
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net.double().eval()(torch.from_numpy(images).double().permute(0, 3, 1, 2)).numpy()
    model, variables, meta = jaxcls.load(str(file))
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    assert meta["classes"] is None and meta["preprocessing"]["image_size"] == 224


def test_another_network_is_named(file):
    assert "these are the weights of tiny, not of resnet50; name that network" in refusal(file, "resnet50")
    with pytest.raises(ConfigError, match="no network is called 'resnet5'; did you mean 'resnet50'"):
        jaxcls.load(file, "resnet5")


def test_resnet50_and_its_v1_have_the_same_weights(tmp_path):
    """The first is the one in use; torchvision's file has its names."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build("resnet50", num_classes=3).state_dict().items()}
    path = save(
        tmp_path / "a.safetensors", as_published({name: np.zeros(shape, np.float16) for name, shape in shapes.items()})
    )
    assert load_arrays(path)[1]["model"]["name"] == "resnet50"
    assert load_arrays(path, "resnet50-v1")[1]["model"]["name"] == "resnet50-v1"
    assert "of resnet50 or resnet50-v1, not of resnext101-32x4d" in refusal(path, "resnext101-32x4d")


def test_a_network_that_is_not_known(state, tmp_path):
    deeper = state | {name.replace("1.1.", "1.2."): array for name, array in state.items() if name.startswith("layers.1.1")}
    path = save(tmp_path / "a.pth", deeper)
    message = refusal(path)
    assert (
        "a network that jaxcls has not (depths (1, 3), widths (8, 16), expansion 2, groups 4, squeeze_excite True)"
        in message
    )
    assert "it has resnet50" in message
    assert refusal(path, "tiny").count("unexpected layers.1.2.") == 22


def test_all_faults_are_listed_at_once(state, tmp_path):
    faulty = dict(state)
    del faulty["layers.0.0.conv1.weight"], faulty["bn1.running_var"], faulty["bn1.num_batches_tracked"]
    faulty["layers.1.1.bn4.weight"] = faulty["fc.scale"] = np.zeros(3, np.float32)
    faulty["layers.1.0.conv2.weight"] = np.zeros((16, 16, 3, 3), np.float32)
    faulty["layers.1.1.squeeze.expand.bias"] = np.zeros((3, 2), np.float32)
    message = refusal(save(tmp_path / "a.pth", prefixed(faulty), "state_dict"), "tiny")
    for fault in (
        "missing layers.0.0.conv1.weight",
        "missing bn1.running_var",
        "unexpected layers.1.1.bn4.weight",
        "unexpected fc.scale",
        "layers.1.0.conv2.weight has shape (16, 16, 3, 3), the network needs (16, 4, 3, 3)",
        "layers.1.1.squeeze.expand.bias has shape (3, 2), the network needs (32,)",
    ):
        assert fault in message
    assert message.count(";") == 5, "nothing else is wrong"


def test_what_is_missing_is_listed_without_a_name(state, tmp_path):
    del (partial := dict(state))["layers.0.0.conv1.weight"]
    message = refusal(save(tmp_path / "a.pth", partial))
    assert message.endswith("a network known here: missing layers.0.0.conv1.weight")


def test_a_backbone_without_its_classifier(state, tmp_path):
    backbone = {name: array for name, array in state.items() if not name.startswith("fc.")}
    assert refusal(save(tmp_path / "a.pth", backbone), "tiny").endswith("this network: missing fc.bias; missing fc.weight")


def test_weights_of_other_kinds_of_network(tmp_path):
    path = save(tmp_path / "vit.pth", {"blocks.0.attn.qkv.weight": np.zeros((3, 1), np.float32)})
    message = refusal(path, "tiny")
    assert "layers.0.0.conv1.weight (NVIDIA) or layer1.0.conv1.weight (torchvision, timm) is expected" in message
    assert message.endswith("not blocks.0.attn.qkv.weight")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(state, tmp_path, dtype, suffix):
    halves = {name: torch.from_numpy(array) for name, array in state.items()}
    halves = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in halves.items()}
    (save_file if suffix == ".safetensors" else torch.save)(halves, tmp_path / f"a{suffix}")
    variables, meta = load_arrays(tmp_path / f"a{suffix}")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    assert_loaded(variables, {name: tensor.float().numpy() for name, tensor in halves.items()})
    assert meta["provenance"]["found"].endswith(str(dtype).removeprefix("torch."))


def test_double_precision_is_kept_in_host_memory(tmp_path):
    doubles = make_state(dtype=np.float64)
    path = save(tmp_path / "a.pth", doubles)
    variables, meta = load_arrays(path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float64)}
    assert_loaded(variables, doubles)
    assert meta["provenance"]["dtypes"] == ["float64"]
    assert jaxcls.load(path)[1]["params"]["head"]["bias"].dtype == np.float32


def test_nan_is_told(state, tmp_path):
    broken = {name: array.copy() for name, array in state.items()}
    broken["fc.bias"][2], broken["layers.0.0.bn1.running_var"][0] = np.nan, np.inf
    variables, meta = load_arrays(save(tmp_path / "a.pth", broken))
    told = ["2 arrays hold NaN or infinity: batch_stats/stage1/block0/bn1/var, params/head/bias."]
    assert meta["provenance"]["warnings"] == told
    weights.save(tmp_path / "weights", variables, meta)
    assert load_arrays(tmp_path / "weights")[1]["provenance"]["warnings"] == told, "once"


def test_negative_variances_are_told(state, tmp_path):
    broken = state | {"layers.0.0.bn1.running_var": -state["layers.0.0.bn1.running_var"]}
    warnings = load_arrays(save(tmp_path / "a.pth", broken))[1]["provenance"]["warnings"]
    assert warnings == ["1 arrays hold negative variances: batch_stats/stage1/block0/bn1/var."]


def test_doubles_that_float32_cannot_hold_are_told(tmp_path):
    doubles = make_state(dtype=np.float64)
    doubles["fc.bias"][0] = 1e300
    warnings = load_arrays(save(tmp_path / "a.pth", doubles))[1]["provenance"]["warnings"]
    assert warnings == ["1 arrays hold NaN or infinity: params/head/bias."]


@pytest.mark.parametrize("dtype", [np.int8, np.complex64, np.bool_])
def test_weights_that_are_no_floats(state, tmp_path, dtype):
    path = save(tmp_path / "a.safetensors", state | {"fc.weight": state["fc.weight"].astype(dtype)})
    assert "params/head/kernel do not hold floating-point numbers; save them as float32" in refusal(path)


def test_a_classifier_of_no_classes(state, tmp_path):
    path = save(tmp_path / "a.pth", state | {"fc.weight": state["fc.weight"][:0], "fc.bias": state["fc.bias"][:0]})
    assert refusal(path).endswith("the classifier has no classes")


COUNTER = "layers.1.0.bn2.num_batches_tracked"


@pytest.mark.parametrize("count", [np.array([7]), np.float32(7), np.int32(7)])
def test_counters_of_other_kinds(state, tmp_path, count):
    meta = load_arrays(save(tmp_path / "a.pth", state | {COUNTER: np.asarray(count)}))[1]
    assert meta["provenance"]["batches_tracked"]["stage2/block0/bn2"] == 7


@pytest.mark.parametrize("count", [np.zeros(0), np.zeros(2), np.float32(0.5), np.float32(np.nan), np.complex64(1)])
def test_counters_that_count_nothing(state, tmp_path, count):
    assert f"{COUNTER} must be one whole number" in refusal(save(tmp_path / "a.pth", state | {COUNTER: np.asarray(count)}))


def test_own_weights(state, file, tmp_path):
    variables, meta = load_arrays(file)
    weights.save(tmp_path, variables, meta | {"classes": list("abcde")})
    model, again, found = jaxcls.load(tmp_path)
    assert_loaded(again, state)
    assert (model.num_classes, model.se_width) == (CLASSES, 16) and found["classes"] == list("abcde")
    assert found["preprocessing"] == meta["preprocessing"] and found["provenance"] == meta["provenance"]
    assert "holds the weights of tiny, not of resnet50; name that network" in refusal(tmp_path, "resnet50")
    assert "holds no averaged weights" in refusal(tmp_path, ema=True)


def test_own_weights_of_another_shape_than_they_say(file, tmp_path):
    variables, meta = load_arrays(file)
    weights.save(tmp_path, variables, meta | {"model": meta["model"] | {"num_classes": 6}})
    assert "holds other arrays than its metadata says" in refusal(tmp_path)


@pytest.fixture(scope="module")
def run_directory(state, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = configure("images", **{"model.bn_epsilon": 1e-3, "data.eval_resize": 40})
    best, last = (from_torch(make_state(classes=2, seed=seed)) for seed in (2, 3))
    write_run(workdir, config, ["ant", "bee"], {6: (best, 62.5), 9: (last, 60.0)})
    return workdir


def test_a_run(run_directory):
    """Its best checkpoint, here not the last; tests.train.test_fine_tuning loads a run that was trained."""
    before = sorted(run_directory.rglob("*"))
    model, variables, meta = jaxcls.load(run_directory, "tiny")
    assert_loaded(variables, make_state(classes=2, seed=2))
    assert (model.num_classes, model.se_width, model.bn_epsilon) == (2, 16, 1e-3)
    assert meta["classes"] == ["ant", "bee"]
    assert meta["preprocessing"]["image_size"] == 32 and meta["preprocessing"]["eval_resize"] == 40
    assert meta["provenance"]["found"] == "a run of tiny, step 6, top-1 62.50%"
    assert meta["provenance"]["epoch"] == 2 and meta["provenance"]["batches_tracked"] == 6
    assert sorted(run_directory.rglob("*")) == before, "nothing is written there"


def test_what_holds_no_weights(run_directory, tmp_path):
    assert "holds the weights of tiny, not of resnet50" in refusal(run_directory, "resnet50")
    assert "holds no averaged weights" in refusal(run_directory, ema=True)
    assert "is neither a run (with checkpoints/) nor weights (with metadata.json)" in refusal(tmp_path)
    assert "there is no file" in refusal(tmp_path / "weights.pth")
    shutil.copytree(run_directory, tmp_path / "run")
    for step in (tmp_path / "run" / "checkpoints").iterdir():
        shutil.rmtree(step)
    with pytest.raises(CheckpointError, match="holds no checkpoint; a run directory is expected"):
        jaxcls.load(tmp_path / "run")


PHOTOGRAPHS = [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]


def assert_pixels(found, expected):
    """Normalised `found` are the uint8 `expected`, but that Pillow rounds twice, which now and then is one level off."""
    levels = (found.astype(np.float64) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]) * 255
    np.testing.assert_allclose(levels, levels.round(), atol=1e-4)
    difference = np.abs(levels.round() - expected)
    assert difference.max() <= 1 and difference.mean() < 0.2


def test_photographs_are_prepared_as_for_the_reference(file, tmp_path):
    """Shorter side to 256, the middle 224, and ImageNet's statistics; both photographs are 640 by 427."""
    meta = jaxcls.load(file)[2]
    upright = tmp_path / "upright.png"
    Image.open(PHOTOGRAPHS[0]).transpose(Image.Transpose.ROTATE_90).save(upright)
    found = jaxcls.preprocess([*PHOTOGRAPHS, str(upright)], meta)
    assert found.shape == (3, 224, 224, 3) and found.dtype == np.float32
    for image, path in zip(found, (*PHOTOGRAPHS, upright), strict=True):
        picture = Image.open(path)
        # 256 * 640 / 427 = 383.7, cut off; (383 - 224) / 2 = 79.5, to the even one; (256 - 224) / 2 = 16.
        landscape = picture.size == (640, 427)
        assert landscape or picture.size == (427, 640)
        pixels = np.asarray(picture.resize((383, 256) if landscape else (256, 383), Image.Resampling.BILINEAR))
        pixels = pixels[16:240, 80:304] if landscape else pixels[80:304, 16:240]
        assert_pixels(image, pixels)


def test_preprocessing_of_a_run(run_directory):
    """640 by 427 to 40 pixels, 59 wide, of which the middle 32."""
    found = jaxcls.preprocess(PHOTOGRAPHS[:1], jaxcls.load(run_directory)[2])
    pixels = np.asarray(Image.open(PHOTOGRAPHS[0]).resize((59, 40), Image.Resampling.BILINEAR))[4:36, 14:46]
    assert_pixels(found[0], pixels)


def test_images_that_cannot_be_used(file, tmp_path):
    meta = load_arrays(file)[1]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(PHOTOGRAPHS[0].read_bytes()[:1000])
    for path in (broken, tmp_path / "none.jpg", tmp_path):
        with pytest.raises(DataError, match=f"image {path} cannot be used: ."):
            jaxcls.preprocess([PHOTOGRAPHS[0], path], meta)
