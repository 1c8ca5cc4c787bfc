"""Imports run downhill, and what training does not need is not imported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxcls"

# A file imports only from rows above its own, or from its own row's files listed before it.
ROWS = [
    ["__init__", "errors", "cache", "huge_pages", "launch", "machine", "memory", "versions", "xla"],
    [
        "config",
        "precision",
        "data/constants",
        "models/tiled",
        "models/winograd",
        "models/convolution",
        "models/initial",
        "report/console",
        "report/files",
        "report/timing",
        "report/tensorboard",
        "report/predictions",
        "report/published",
    ],
    ["report/collectives", "report/html", "report/run_log", "report/charts", "report/mistakes", "report/page"],
    ["report/plots", "report/comparison_plots", "report/comparison_table"],
    [
        "data/turbo",
        "data/patience",
        "data/decode",
        "data/policies",
        "data/transforms",
        "data/sources/__init__",
        "data/names",
        "data/folder_index",
        "labels",
    ],
    ["models/layers", "hosts"],
    ["interop/torch_files", "interop/torch_weights", "interop/torch_resnet", "interop/weights"],
    ["data/record_format", "data/shard_writer", "data/tar_folder"],
    ["data/sources/array_record", "data/sources/digits", "data/sources/image_folder", "data/sources/parquet"],
    ["data/sources/synthetic", "data/sources/tfds", "data/preparation", "models/resnet"],
    ["data/pipeline", "models/registry", "models/flops", "train/losses", "train/mixup"],
    ["train/augment", "train/metrics", "train/optim", "train/state"],
    ["train/signals", "train/steps", "train/checkpoints", "train/transfer", "workdir", "runtime", "resolve"],
    [
        "flags/parser",
        "flags/config_file",
        "flags/hosts",
        "flags/runs",
        "flags/benchmarks",
        "flags/data",
        "flags/reports",
        "flags/weights",
        "flags/__init__",
    ],
    [
        "data/measure",
        "models/measure",
        "train/measure",
        "train/serving",
        "train/agreement",
        "train/bad_records",
        "train/evaluation",
        "train/setup",
    ],
    ["train/progress", "train/nonfinite", "train/programs", "loading", "command", "pictures", "heatmaps"],
    ["interop/torch_side", "interop/jax_side", "interop/comparison"],
    ["train/evaluator", "train/gallery", "train/loop"],
    ["train/run"],
    ["main", "classify", "convert", "compare", "summary", "replay", "prepare", "reporting"],
    ["benchmark/data", "benchmark/layers", "benchmark/steps", "benchmark/__init__", "benchmark/__main__"],
    ["trial", "recorded", "proof", "verify_resume", "checkup", "doctor"],
    ["cli", "__main__"],
]
ORDER = [name for row in ROWS for name in row]


def imports(path):
    """Names of jaxcls's files that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            place = name.replace(".", "/").removeprefix("jaxcls/")
            for candidate in (place, f"{place}/__init__"):
                if name.startswith("jaxcls.") and (PACKAGE / f"{candidate}.py").exists():
                    yield candidate


def files():
    return sorted(str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py"))


def test_every_file_has_its_place():
    empty = {name for name in files() if name.endswith("__init__") and name not in ORDER}
    assert all(not list(imports(PACKAGE / f"{name}.py")) for name in empty)
    assert sorted(set(files()) - empty) == sorted(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_downhill(name):
    for imported in imports(PACKAGE / f"{name}.py"):
        if imported in ORDER:
            assert ORDER.index(imported) < ORDER.index(name), f"{name} imports {imported}"


def test_one_file_alone_uses_orbax_and_one_grain():
    users = {
        library: [name for name in files() if f"import {library}" in (PACKAGE / f"{name}.py").read_text()]
        for library in ("grain", "orbax")
    }
    assert users == {"grain": ["data/pipeline"], "orbax": ["train/checkpoints"]}


def test_training_imports_neither_tensorflow_nor_torch():
    program = "import sys, jaxcls.train.run, jaxcls.main; print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_refusing_a_wrong_flag_needs_no_jax():
    program = "import sys, jaxcls.main; print([m for m in ('jax', 'flax', 'grain') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
