#!/usr/bin/env python3
"""Training images per second, beside NVIDIA DALI and Pillow: scripts/bench_input.py DIR [--json OUT]. See docs/input.md.

DIR holds folders of photographs. Peers that are not installed (`pip install nvidia-dali-cuda120`) are left out.
One core: read, decode, random resized crop to 224, flip; the process is bound to that core. Two cores: batches of 64
through the whole pipeline, onto the device. All contestants take turns; figures are medians of the rounds, ratios too.
With --memory nothing else is measured: the memory that the process occupies while it makes so many batches.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from jaxcls.config import DataConfig
from jaxcls.data import transforms, turbo
from jaxcls.data.decode import open_image
from jaxcls.data.measure import Files
from jaxcls.data.pipeline import train_batches
from jaxcls.data.sources.image_folder import find_images

BATCH, SIZE = 64, 224
TURBO = turbo.LIBRARY


def jaxcls_one(paths, interpolation, partial):
    """Yields after each batch, made on this thread."""
    batch = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    for number, path in enumerate(itertools.cycle(paths)):
        turbo.LIBRARY = TURBO if partial else None
        rng = transforms.generator_for(0, 0, number)
        picture = open_image(path.read_bytes())
        batch[number % BATCH] = transforms.train_transform(picture, SIZE, "crop_flip", interpolation, rng)
        if number % BATCH == BATCH - 1:
            yield


def pillow_one(paths):
    """As the reference's PyTorch loader."""
    batch = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
    for number, path in enumerate(itertools.cycle(paths)):
        rng = np.random.default_rng((0, 0, number))
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        box = transforms.sample_crop(image.height, image.width, rng)
        image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        batch[number % BATCH] = np.asarray(image)
        if number % BATCH == BATCH - 1:
            yield


def jaxcls_pipeline(paths, partial, **options):
    """The whole pipeline, onto the device."""
    turbo.LIBRARY = TURBO if partial else None
    config = DataConfig(image_size=SIZE, **options)
    source = Files(paths, BATCH * 1_000_000)
    batches = train_batches(source, config, batch_size=BATCH, seed=0, start_step=0, stop_step=1_000_000)
    with contextlib.closing(batches):
        for batch in batches:
            put(batch.image)
            yield


def dali(paths, fused, threads, put=lambda batch: batch):
    """DALI on the CPU: its decode-and-crop in one (`fused`), or the reference's operators."""
    from nvidia.dali import fn, pipeline_def, types

    options = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2)
    def pipeline():
        encoded, _ = fn.readers.file(files=[str(path) for path in paths], labels=[0] * len(paths))
        linear = {"interp_type": types.INTERP_LINEAR, "antialias": False}
        if fused:
            images = fn.decoders.image_random_crop(encoded, device="cpu", num_attempts=100, **options)
            images = fn.resize(images, size=[SIZE, SIZE], **linear)
        else:
            images = fn.decoders.image(encoded, device="cpu")
            images = fn.random_resized_crop(images, size=SIZE, num_attempts=100, **options, **linear)
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipe = pipeline()
    pipe.build()
    while True:
        (images,) = pipe.run()
        put(images.as_array())
        yield


def memory(paths, batches):
    """Prints the MB that the process occupies after each tenth of the batches, of two images."""
    source = Files(paths, 2 * batches)
    made = train_batches(source, DataConfig(image_size=SIZE), batch_size=2, seed=0, start_step=0, stop_step=batches)
    for number, batch in enumerate(made, 1):
        put(batch.image)
        if number % (batches // 10) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            print(f"{number:8,} batches {resident / 1e6:8.1f} MB", flush=True)


def put(batch):
    """Onto the device."""
    jax.block_until_ready(jax.device_put(batch))


def rates(contestants, rounds, seconds):
    """images/s of each in each round; the first round warms up and is left out."""
    found = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, make in contestants.items():
            running = make()
            for _ in range(3):
                next(running)
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                next(running)
                count += BATCH
            elapsed = time.perf_counter() - began
            running.close()
            if number:
                found[name].append(count / elapsed)
    return found


def table(title, found, base):
    rows = {}
    print(f"\n{title}\n{'':44}images/s   of DALI fused")
    for name, values in found.items():
        ratio = statistics.median(a / b for a, b in zip(values, found[base], strict=True)) if base in found else None
        rows[name] = {"images_per_second": statistics.median(values), "ratio": ratio, "rounds": values}
        print(f"{name:44}{rows[name]['images_per_second']:8,.0f}" + (f"{ratio:12.2f}" if ratio else ""))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="DIR")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each contestant in each round")
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--memory", type=int, metavar="BATCHES")
    args = parser.parse_args()
    paths = find_images(Path(args.path))
    put(np.zeros(1))
    if args.memory:
        memory(paths, args.memory)
        return
    peers = {}
    with contextlib.suppress(ImportError):
        import nvidia.dali  # noqa: F401

        peers = {"DALI fused": True, "DALI decode, then crop": False}

    one = {name: lambda fused=fused: dali(paths, fused, 1) for name, fused in peers.items()}
    one["Pillow, as the reference's loader"] = lambda: pillow_one(paths)
    decoders = {"simplejpeg": False} | ({"libjpeg-turbo 3": True} if TURBO is not None else {})
    for decoder, partial in decoders.items():
        for interpolation in ("linear", "bilinear"):
            one[f"jaxcls, {interpolation}, {decoder}"] = lambda i=interpolation, p=partial: jaxcls_one(paths, i, p)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    report = {"one core": table("One core", rates(one, args.rounds, args.seconds), "DALI fused")}
    os.sched_setaffinity(0, cores[:2])

    two = {name: lambda fused=fused: dali(paths, fused, 2, put) for name, fused in peers.items()}
    for decoder, partial in decoders.items():
        for interpolation in ("linear", "bilinear"):
            two[f"jaxcls, {interpolation}, {decoder}, 2 threads"] = lambda i=interpolation, p=partial: jaxcls_pipeline(
                paths, p, interpolation=i, threads=2
            )
    two["jaxcls, linear, 2 processes"] = lambda: jaxcls_pipeline(paths, True, interpolation="linear", workers=2)
    report["two cores"] = table("Two cores, the whole pipeline", rates(two, args.rounds, args.seconds), "DALI fused")
    if args.json:
        Path(args.json).write_text(json.dumps({"images": len(paths), **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
