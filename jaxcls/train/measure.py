"""How long a step of training or inference takes, on synthetic images that are already on the device."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcls.config import OptimConfig
from jaxcls.errors import ConfigError
from jaxcls.machine import describe
from jaxcls.memory import compile_tidily, free_bytes, program_bytes
from jaxcls.models import flops
from jaxcls.models.registry import create_model
from jaxcls.models.resnet import ResNet
from jaxcls.precision import POLICIES, make_loss_scale
from jaxcls.report.timing import spread, step_milliseconds
from jaxcls.train import steps
from jaxcls.train.optim import make_optimizer

CLASSES, SMOOTHING, RATE = 1000, 0.1, 0.01
OPTIMIZER = OptimConfig(weight_decay=2**-15)
BACKWARD = 2  # times the forward pass's work: gradients of the inputs and of the kernels


def measure_steps(
    kind: str,
    name: str,
    *,
    batch: int,
    precision: str,
    image_size: int,
    count: int,
    warmup: int,
    peak: float,
    remat: bool = False,
) -> tuple[dict[str, Any], Callable]:
    """Times `count` steps, after `warmup` more; training over all devices, inference on the first.

    A training step is timed from one step's metrics to those of the next, the next one having been dispatched, as the
    training loop does; inference from the call to the result.

    Args:
      kind: `train` or `infer`.
      name: of the network.
      batch: images of a step, over all devices.
      precision: a policy.
      image_size: pixels.
      count, warmup: steps, at least 1.
      peak: FLOPs a second of a device's matrix product.
      remat: of `ResNet`; what it computes again does not count as work.

    Returns:
      a row, and the step, of `prepare_training` or `prepare_inference`. In the row are `model`, `batch`, `precision`,
      `image_size`, `remat`, `images_per_second` (of the median step), `step_ms` (`avg`, `p50`, `p90`, `p95`, `p99`),
      `spread` (of the steps, `(p90 - p50) / p50`), `compile_seconds` (tracing included), `first_step_seconds` (from there
      to the end of the first step), `peak_memory_bytes` (of one device's program), `flops_per_image`, `flops_per_second`,
      `peak_fraction`, `device`, `devices`, `machine`.

    Raises:
      ConfigError: a batch that the devices do not divide, or that does not fit in memory.
    """
    policy = POLICIES[precision]
    model = create_model(name, num_classes=CLASSES, remat=remat, dtype=policy.compute_dtype, param_dtype=policy.param_dtype)
    devices = jax.devices() if kind == "train" else jax.devices()[:1]
    if batch % len(devices):
        near = max(batch // len(devices), 1) * len(devices)
        raise ConfigError(f"--batch {batch} cannot be split over {len(devices)} devices; {near} could")
    noise = 2 * batch * image_size**2 * 3  # bytes: of NumPy's copy and the device's
    if noise > (free := free_bytes(devices[0])):
        raise ConfigError(
            f"--batch {batch} of {image_size} px needs {noise / 2**30:.1f} GiB for the images alone, {free / 2**30:.1f} GiB "
            f"are free; {_would_fit(batch, free / noise, len(devices))}"
        )
    prepare = prepare_training if kind == "train" else prepare_inference
    program, call = prepare(model, batch, image_size, precision, devices)
    began = time.perf_counter()
    compiled = program()
    compile_seconds = time.perf_counter() - began
    memory = program_bytes(compiled)
    _check_fits(name, batch, memory, devices)
    jax.block_until_ready(call())
    first = time.perf_counter() - began
    for _ in range(warmup):
        ready = call()
    jax.block_until_ready(ready)
    seconds = intervals(call, count) if kind == "train" else [_once(call) for _ in range(count)]
    work = flops.total(flops.count_layers(model, image_size))["flops"] * (1 + BACKWARD * (kind == "train"))
    rate = batch / float(np.median(seconds))
    latency = step_milliseconds(seconds)
    row = {
        "model": name,
        "batch": batch,
        "precision": precision,
        "image_size": image_size,
        "remat": remat,
        "images_per_second": rate,
        "step_ms": latency,
        "spread": spread(latency),
        "compile_seconds": compile_seconds,
        "first_step_seconds": first,
        "peak_memory_bytes": sum(memory.values()),
        "flops_per_image": work,
        "flops_per_second": rate * work,
        "peak_fraction": rate * work / (peak * len(devices)),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "machine": describe(devices[0].device_kind, len(devices)),
    }
    return row, call


def prepare_training(
    model: ResNet, batch: int, size: int, precision: str, devices: list[jax.Device]
) -> tuple[Callable[[], jax.stages.Compiled], Callable]:
    """A training step of the recipe on noise, as `(compile, call)`: call the one, then the other, over and over."""
    mesh = steps.make_mesh(devices)
    optimizer = make_optimizer(OPTIMIZER, lambda step: RATE)
    key = jax.device_put(jax.random.key(0), jax.sharding.NamedSharding(mesh, steps.REPLICATED))
    state = steps.init_state(model, optimizer, mesh, 0, loss_scale=make_loss_scale(precision, 0.0))
    images, labels = jax.device_put(synthetic_batch(batch, size), steps.batch_sharding(mesh))
    step = steps.make_train_step(model, optimizer, lambda step: RATE, mesh, label_smoothing=SMOOTHING)

    def compile_step():
        nonlocal step
        step = compile_tidily(step.lower(state, images, labels, key))
        return step

    def call():
        nonlocal state
        state, metrics = step(state, images, labels, key)
        return metrics

    return compile_step, call


def prepare_inference(
    model: ResNet, batch: int, size: int, precision: str, devices: list[jax.Device]
) -> tuple[Callable[[], jax.stages.Compiled], Callable]:
    """As `prepare_training`, of the five likeliest classes of noise, or of the images that the call is given (uint8, on the
    device), on the first device."""
    mesh = steps.make_mesh(devices[:1])
    variables = steps.init_state(model, make_optimizer(OPTIMIZER, lambda step: RATE), mesh, 0).variables
    images = jax.device_put(synthetic_batch(batch, size)[0], devices[0])
    predict = steps.make_predict(model, 5)

    def compile_predict():
        nonlocal predict
        predict = compile_tidily(predict.lower(variables, images))
        return predict

    return compile_predict, lambda images=images: predict(variables, images)


def synthetic_batch(batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise: uint8 `[batch, size, size, 3]` and int32 labels `[batch]`."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(batch, size, size, 3), dtype=np.uint8)
    return images, rng.integers(CLASSES, size=batch, dtype=np.int32)


def _once(call: Callable) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def intervals(call: Callable, count: int) -> list[float]:
    """Seconds from each result to the next, each call being made before the result of the one before is waited for."""
    seconds, before = [], call()
    jax.block_until_ready(before)
    last = time.perf_counter()
    before = call()
    for _ in range(count):
        after = call()
        jax.block_until_ready(before)
        now = time.perf_counter()
        seconds.append(now - last)
        before, last = after, now
    return seconds


def _check_fits(name: str, batch: int, memory: dict[str, int], devices: list[jax.Device]) -> None:
    """Raises ConfigError, with a batch that would fit, if the working memory does not; the arguments are there already."""
    sharing = len(devices) if devices[0].platform == "cpu" else 1  # the machine's memory is that of all its devices
    free, working = free_bytes(devices[0]), sharing * memory["working"]
    if working <= free:
        return
    needed = sharing * sum(memory.values()) / 2**30
    raise ConfigError(
        f"--batch {batch} of {name} needs about {needed:.1f} GiB, {free / 2**30:.1f} GiB are free beside the weights; "
        f"{_would_fit(batch, free / working, len(devices))}"
    )


def _would_fit(batch: int, share: float, devices: int) -> str:
    """The advice to a batch of which a share fits."""
    fits = int(batch * share) // devices * devices
    return f"about {fits} would fit" if fits else "not even 1 would fit" if devices == 1 else f"not even {devices} would fit"
