import dataclasses
import re
from pathlib import Path

import pytest

from jaxcls import config as config_lib
from jaxcls.config import (
    Config,
    default_config,
    digest,
    first_difference,
    from_config_dict,
    to_dict,
)
from jaxcls.errors import ConfigError
from jaxcls.flags import load_config, parse
from jaxcls.resolve import BOUNDS, CHOICES, resolve

CONFIGS = Path(__file__).parent.parent / "configs"


def parsed(*arguments, file="resnet50.py"):
    args = parse(["main", "--config", str(CONFIGS / file), *arguments])
    return args, *resolve(args.config, args.overridden)


def test_defaults_survive_the_trip_through_a_config_dict():
    assert from_config_dict(default_config()) == Config()


def test_bounds_and_choices_name_real_keys():
    assert set(BOUNDS) | set(CHOICES) | set(config_lib.OPERATIONAL) | set(config_lib.DIGITS_PRESET) <= set(config_lib.keys())


@pytest.mark.parametrize(
    ("argument", "section", "name", "value"),
    [
        ("train.epochs=1", "train", "epochs", 1.0),
        ("train.epochs=1.5", "train", "epochs", 1.5),
        ("train.batch_size=64", "train", "batch_size", 64),
        ("train.batch_size=1e3", "train", "batch_size", 1000),
        ("train.max_steps=7", "train", "max_steps", 7),
        ("train.max_steps=none", "train", "max_steps", None),
        ("model.num_classes=10", "model", "num_classes", 10),
        ("optim.weight_decay=5e-5", "optim", "weight_decay", 5e-5),
        ("optim.nesterov=true", "optim", "nesterov", True),
        ("optim.nesterov=False", "optim", "nesterov", False),
        ("schedule.boundaries=10,20", "schedule", "boundaries", (10.0, 20.0)),
        ("schedule.boundaries=(10, 20)", "schedule", "boundaries", (10.0, 20.0)),
        ("schedule.boundaries=7", "schedule", "boundaries", (7.0,)),
        ("checkpoint.init_from=runs/a,b", "checkpoint", "init_from", "runs/a,b"),
        ("optim.decay_bn=none", "optim", "decay_bn", "none"),
    ],
)
def test_values_from_the_command_line(argument, section, name, value):
    for arguments in ([f"--config.{argument}"], f"--config.{argument}".split("=", 1)):
        found = getattr(getattr(parsed(*arguments)[1], section), name)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.batch_sise=3"], "no config key train.batch_sise; did you mean train.batch_size?"),
        (["--config.batch_size=3"], "no config key batch_size; did you mean train.batch_size?"),
        (["--config.train.batch_size=1.2"], "train.batch_size=1.2 is not a valid value; a whole number is expected"),
        (["--config.train.batch_size=many"], "a whole number is expected"),
        (["--config.train.batch_size="], "a whole number is expected"),
        (["--config.train.batch_size"], "--config.train.batch_size needs a value"),
        (["--config.train.batch_size=none"], "train.batch_size cannot be unset"),
        (["--config.train.epochs=nan"], "a number is expected"),
        (["--config.optim.nesterov=maybe"], "true or false"),
        (["--config.train.batch_size=0"], "train.batch_size=0 must be between 1 and 16777216"),
        (["--config.optim.momentum=2"], "optim.momentum=2.0 must be between 0 and 1"),
        (["--config.schedule.name=cosin"], "schedule.name='cosin' is not among cosine, step, linear"),
        (["--config.schedule.boundaries=30,10"], "must increase"),
        (["--config.schedule.warmup_epochs=100"], "is longer than train.epochs=15"),
        (["--config.train.mixup_alpha=0.2", "--config.train.batch_size=33"], "mixup needs an even train.batch_size"),
        (["--config.train.cutmix_alpha=1", "--config.train.batch_size=33"], "CutMix needs an even train.batch_size, not 33"),
        (["--config.train.cutmix_alpha=-1"], "train.cutmix_alpha=-1.0 must be between 0 and 1000"),
        (["--config.data.random_erasing=1.5"], "data.random_erasing=1.5 must be between 0 and 1"),
        (["--config.data.color_jitter=0.4,0.4"], "data.color_jitter=0.4,0.4 must be four numbers (brightness, contrast,"),
        (["--config.data.color_jitter=0.4,0.4,-1,0"], "data.color_jitter=0.4,0.4,-1,0 must be between 0 and 100"),
        (["--config.data.color_jitter=1e39,0,0,0"], "data.color_jitter=1e+39,0,0,0 must be between 0 and 100"),
        (["--config.data.timeout_seconds=1e10"], "data.timeout_seconds=10000000000.0 must be between 0 and 1000000.0"),
        (["--config.train.mixup_alpha=1e300"], "train.mixup_alpha=1e+300 must be between 0 and 1000"),
        (["--config.train.batch_size=1e30"], "must be between 1 and 16777216"),
        (["--config.data.color_jitter=0,0,0,0.6"], "the hue's, at most 0.5 turns"),
        (["--config.data.augment=auto"], "is not among crop_flip, autoaugment, randaugment, trivialaugment, affine, none"),
        (["--config.data.source=image_folder"], "needs data.path"),
        (["--config.data.source=digits", "--config.data.path=x"], "data.source=digits takes no data.path"),
        (["--config.data.source=array_record"], "data.source=array_record needs data.path"),
        (["--config.data.source=parquet"], "data.source=parquet needs data.path"),
        (["--config.data.source=synthetic", "--config.data.name=mnist"], "data.name=mnist is for data.source=tfds"),
        (
            ["--config.data.cache=true", "--config.data.workers=2"],
            "where 2 data.workers would not find them; set data.workers=0",
        ),
        (["--config.precision.loss_scale=64"], "is for precision.policy=fp16, not for fp32; leave it out"),
        (["--config.model.bn_group=2"], "model.bn_group=2 needs model.bn_sync=group, not local"),
        (["--config.train.ema_decay=1"], "train.ema_decay=1.0 must be between 0 and 0.999999"),
        (["--config.data.source=synthetic", "--config.data.eval_resize=100"], "must be at least data.image_size=224"),
        (["--wrokdir=x"], "there is no flag --wrokdir; did you mean --workdir?"),
        (["--mode=test"], "choose from"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_one_line_that_says_what_would_be_right(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parsed(*arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_mistakes_in_config_files(tmp_path):
    def load(text, suffix=""):
        (tmp_path / "mine.py").write_text(text)
        return load_config(f"{tmp_path / 'mine.py'}{suffix}")

    ok = "from jaxcls.config import default_config as get_config"
    assert load(ok)[1] == "mine"
    for text, suffix, message in [
        ("x = 1", "", "has no function get_config"),
        ("def get_config():\n    return 1 / 0", "", "mine.py:2: ZeroDivisionError: division by zero"),
        ("def get_config(:", "", "mine.py:1: SyntaxError"),
        ("def get_config():\n    return {}", "", "returned dict, not a ConfigDict"),
        (ok, ":50ep", "takes no argument, but :50ep was given"),
        (ok + "\nimport no_such_module", "", "mine.py:2: ModuleNotFoundError"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            load(text, suffix)
    with pytest.raises(ConfigError, match=r"no config file .*configs/resnet5\.py; did you mean .*configs/resnet50\.py"):
        load_config(str(CONFIGS / "resnet5.py"))
    with pytest.raises(ConfigError, match=r"no recipe :30ep; there are :50ep, :90ep, :250ep"):
        load_config(f"{CONFIGS / 'resnet50.py'}:30ep")
    with pytest.raises(ConfigError, match="required: --config"):
        parse(["main"])


def test_a_config_file_may_not_invent_keys():
    config = default_config()
    config.train.batch_sizes = 3
    with pytest.raises(ConfigError, match=r"no config key train\.batch_sizes; did you mean train\.batch_size\?"):
        resolve(config)


def test_no_data_means_digits_with_their_preset_and_a_note():
    _, config, notes = parsed("--config.train.epochs=5", "--config.optim.momentum=0.9", "--config.data.augment=none")
    assert (config.data.source, config.data.image_size, config.train.batch_size) == ("digits", 32, 32)
    assert (config.train.epochs, config.optim.momentum, config.data.augment) == (5, 0.9, "none")  # what the user set stays
    assert config.schedule.warmup_epochs == 1.0
    assert len(notes) == 1 and "IMAGENET_DIR" in notes[0] and "--config.data.path" in notes[0]
    assert parsed(file="resnet50.py:250ep")[1].train.mixup_alpha == 0
    assert parsed("--config.data.source=digits")[1].train.batch_size == 32
    assert parsed("--config.data.source=digits")[2] == []


def test_data_that_is_configured_is_used():
    args, config, notes = parsed("--config.data.path=somewhere")
    assert (config.data.source, config.data.path, config.train.batch_size, notes) == ("image_folder", "somewhere", 256, [])
    config, notes = resolve(parsed()[0].config, imagenet_dir="/data")
    assert (config.data.source, config.data.path, notes) == ("image_folder", "/data", [])
    assert resolve(args.config, args.overridden, imagenet_dir="/data")[0].data.path == "somewhere"


def test_an_empty_path_is_a_mistake():
    args = parsed()[0]
    with pytest.raises(ConfigError, match="data.path is empty"):
        resolve(args.config, {"data.path"})
    with pytest.raises(ConfigError, match="--workdir is empty"):
        parse(["main", "--config", "configs/resnet50.py", "--workdir="])


def test_several_processes_never_fall_back_to_digits():
    args = parsed()[0]
    with pytest.raises(ConfigError, match="several processes"):
        resolve(args.config, process_count=2)


@pytest.mark.parametrize(("batch", "decay", "warmup"), [(256, 1 / 16384, 0), (512, 1 / 16384, 8), (2048, 1 / 32768, 8)])
def test_what_the_batch_size_decides(batch, decay, warmup):
    config = parsed("--config.data.source=synthetic", f"--config.train.batch_size={batch}")[1]
    assert (config.optim.weight_decay, config.schedule.warmup_epochs) == (decay, warmup)


@pytest.mark.parametrize(
    ("file", "model", "batch", "epochs", "mixup"),
    [
        ("resnet50.py", "resnet50", 256, 90, 0),
        ("resnet50.py:50ep", "resnet50", 256, 50, 0),
        ("resnext101_32x4d.py:250ep", "resnext101-32x4d", 128, 250, 0.2),
        ("se_resnext101_32x4d.py", "se-resnext101-32x4d", 128, 90, 0),
        ("digits.py:resnext101-32x4d", "resnext101-32x4d", 32, 15, 0),
    ],
)
def test_the_config_files(file, model, batch, epochs, mixup):
    arguments = [] if "digits" in file else ["--config.data.path=imagenet"]
    args, config, _ = parsed(*arguments, file=file)
    assert args.config_name == file.replace(".py", "").replace(":", "-")
    assert (config.model.name, config.train.batch_size) == (model, batch)
    assert (config.train.epochs, config.train.mixup_alpha) == (epochs, mixup)


def test_the_digest_names_what_is_computed():
    base = parsed()[1]
    for argument in ("data.workers=3", "train.max_steps=5", "checkpoint.keep=9", "log.every_steps=7", "data.cache=true"):
        same = parsed(f"--config.{argument}")[1]
        assert digest(same) == digest(base) and first_difference(to_dict(base), same) is None
    other = parsed("--config.optim.momentum=0.9")[1]
    assert digest(other) != digest(base)
    assert first_difference(to_dict(base), other) == "optim.momentum is 0.875 there and 0.9 here"


def test_a_key_that_is_new_in_jaxcls_renames_no_run(monkeypatch):
    base = parsed()[1]
    before = digest(base)
    newer = dataclasses.make_dataclass("NewConfig", [("new", int, 7)], bases=(config_lib.Config,), frozen=True)
    monkeypatch.setattr(config_lib, "Config", newer)
    assert digest(newer(**{f.name: getattr(base, f.name) for f in dataclasses.fields(base)})) == before


def test_configs_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed()[1].train.batch_size = 3


def test_tfds_without_a_name_is_imagenet():
    given = "--config.data.source=tfds"
    assert parsed(given)[1].data.name == "imagenet2012"
    assert parsed(given, "--config.data.name=mnist")[1].data.name == "mnist"
    assert parsed(file="imagenette.py")[1].data.name == "imagenette/full-size-v2"
