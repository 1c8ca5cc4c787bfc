"""The pictures of `jaxcls benchmark infer --pictures`: speed as measured, accuracy as published."""

from collections.abc import Sequence
from pathlib import Path

from jaxcls import command
from jaxcls.errors import ConfigError
from jaxcls.models import flops
from jaxcls.models.registry import create_model
from jaxcls.report.comparison_plots import Accuracy, Speed, accuracy_by_work, throughput_by_latency
from jaxcls.report.published import CITATION, PUBLISHED

SPEED, ACCURACY = "latency-throughput", "accuracy-flops"
FORMATS = (".svg", ".png")
CLASSES, SIZE, EPOCHS = 1000, 224, (90, 250)  # of what is published on A100s


def make_folder(folder: Path) -> None:
    """Makes the folder of the pictures, before the work.

    Raises:
      ConfigError: it cannot be made, or the pictures cannot be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--pictures={folder} cannot be made a folder ({error.strerror})") from error
    for path in _files(folder, SPEED) + _files(folder, ACCURACY):
        command.check_writable(str(path))


def draw(rows: Sequence[dict], folder: Path) -> None:
    """Draws both pictures, each as SVG and PNG, the second one if anything is published of these networks, and says so.

    Args:
      rows: of `measure_steps`.
      folder: there.

    Raises:
      RunError: they cannot be written.
    """
    for path in _files(folder, SPEED):
        throughput_by_latency(path, speeds(rows), title=_title(rows))
        print(f"Wrote {path}.")
    names = list(dict.fromkeys(row["model"] for row in rows))
    dots = accuracies(names)
    if not dots:
        print(f"{ACCURACY} is not drawn: no accuracy of these networks is published.")
        return
    title, citation = f"Top-1 on ImageNet by work of an image, {SIZE} px", f"{CITATION} (A100, AMP)"
    for path in _files(folder, ACCURACY):
        accuracy_by_work(path, dots, networks=names, title=title, citation=citation)
        print(f"Wrote {path}.")


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{ending}" for ending in FORMATS]


def speeds(rows: Sequence[dict]) -> dict[tuple[str, str], list[Speed]]:
    """The points of each network and precision."""
    curves: dict[tuple[str, str], list[Speed]] = {}
    for row in rows:
        latency = row["step_ms"]
        point = Speed(row["batch"], latency["avg"], latency["p99"], row["images_per_second"])
        curves.setdefault((row["model"], row["precision"]), []).append(point)
    return curves


def accuracies(names: Sequence[str]) -> list[Accuracy]:
    """What is published of these networks, with their work and size at the image size of that, whatever was measured."""
    dots = []
    for name in names:
        if name not in PUBLISHED:
            continue
        sums = flops.total(flops.count_layers(create_model(name, num_classes=CLASSES), SIZE))
        for epochs in EPOCHS:
            top1 = PUBLISHED[name].top1[epochs]
            dots.append(Accuracy(name, f"{epochs} epochs", sums["flops"] / 1e9, top1, sums["parameters"], cited=True))
    return dots


def _title(rows: Sequence[dict]) -> str:
    precisions = " and ".join(dict.fromkeys(row["precision"] for row in rows))
    return f"Inference on {rows[0]['machine']}, {rows[0]['image_size']} px, {precisions}"
