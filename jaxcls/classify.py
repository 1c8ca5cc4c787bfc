"""`jaxcls classify`: what is on these images?"""

import concurrent.futures
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from jaxcls import command, flags
from jaxcls.errors import CheckpointError, ConfigError, DataError
from jaxcls.report.console import printable

LONGEST_STEM = 200  # bytes of a picture's name that a heatmap's name has


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: classify(flags.parse_classify(argv)))


def classify(args) -> None:
    """Prints the likeliest classes of each image, in the order given; see `flags.parse_classify`.

    An image that cannot be used is reported in its place, and the rest go on.

    Raises:
      DataError: a folder without images, or not one image that can be used.
    """
    from jaxcls import runtime

    runtime.configure("fp32")
    from jaxcls import labels, loading
    from jaxcls.data.sources.image_folder import find_images

    paths = [image for path in map(Path, args.paths) for image in (find_images(path) if path.is_dir() else [path])]
    model, variables, meta = loading.load(args.weights, args.model, ema=args.ema)
    loading.say_found(args.weights, meta)
    if warnings := meta["provenance"]["warnings"]:
        raise CheckpointError(f"{args.weights} cannot classify: {' '.join(warnings)}")
    count = model.num_classes
    names = labels.read(args.labels, count) if args.labels else meta["classes"] or list(map(str, range(count)))
    draw = _Heatmaps(Path(args.heatmaps), model, variables) if args.heatmaps else None
    show, usable = (_Json if args.json else _Text)(), 0
    first_fault = ""
    bar = tqdm(total=len(paths), unit="image", disable=None if len(paths) > args.batch else True, leave=False)
    with bar, contextlib.closing(show):  # also when interrupted, so that the JSON is whole
        for path, found in _predict(paths, model, variables, meta, min(args.topk, count), args.batch, draw):
            usable += isinstance(found, list)
            with bar.external_write_mode():
                if isinstance(found, str):
                    first_fault = first_fault or f"{path}: {found}"
                    show(path, found)
                else:
                    show(path, [{"index": i, "label": names[i], "probability": p} for i, p in found])
            bar.update()
    if not usable:
        raise DataError(f"none of the images ({len(paths)}) could be used; the first is {first_fault}")


def _predict(
    paths, model, variables, meta, topk: int, batch: int, draw: "_Heatmaps | None"
) -> Iterator[tuple[Path, list[tuple[int, float]] | str]]:
    """`(path, [(class, probability), ...])`, or `(path, why not)`, in order; images are read ahead in threads."""
    import numpy as np

    from jaxcls.train.steps import make_predict

    predict = make_predict(model, topk)
    batch = min(batch, len(paths))
    size = meta["preprocessing"]["image_size"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        chunks = [paths[start : start + batch] for start in range(0, len(paths), batch)]
        read = [[pool.submit(_read, path, meta) for path in chunk] for chunk in chunks[:2]]
        for index, chunk in enumerate(chunks):
            results = [future.result() for future in read[index]]
            read[index] = None
            if index + 2 < len(chunks):
                read.append([pool.submit(_read, path, meta) for path in chunks[index + 2]])
            images = np.zeros((batch, size, size, 3), np.uint8)  # always as many, so that it compiles once
            for place, result in enumerate(results):
                if not isinstance(result, str):
                    images[place] = result
            probabilities, classes = map(np.asarray, predict(variables, images))
            if draw:
                draw(index * batch, chunk, results, images, classes[:, 0])
            for place, (path, result) in enumerate(zip(chunk, results, strict=True)):
                found = list(zip(classes[place].tolist(), probabilities[place].tolist(), strict=True))
                if not np.isfinite(probabilities[place]).all():
                    found = "the network answers with NaN: its weights are damaged, or too large for float32"
                yield path, result if isinstance(result, str) else found


def _read(path: Path, meta: dict):
    """The image, uint8 `[S, S, 3]`, or why there is none."""
    from jaxcls import loading
    from jaxcls.data.decode import DecodeError

    try:
        return loading.prepare(path.read_bytes(), meta["preprocessing"])
    except OSError as error:
        return error.strerror or str(error)
    except DecodeError as error:
        return str(error)


class _Heatmaps:
    """Draws where in each image the likeliest class is seen."""

    def __init__(self, folder: Path, model, variables):
        from jaxcls.heatmaps import make_grad_cam

        self._folder, self._variables, self._grad_cam = folder, variables, make_grad_cam(model)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--heatmaps={folder} cannot be made ({error.strerror}); give a folder") from error

    def __call__(self, first: int, paths: list[Path], results: list, images, classes) -> None:
        """Of a batch: `first` is the number of its first image; `results` has text in place of those that cannot be used."""
        import numpy as np

        from jaxcls.heatmaps import save_heatmap

        heat = np.asarray(self._grad_cam(self._variables, images, classes))
        for place, (path, result) in enumerate(zip(paths, results, strict=True)):
            if not isinstance(result, str):
                stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST_STEM])
                save_heatmap(self._folder / f"{first + place + 1:05}-{stem}.jpg", images[place], heat[place])


class _Text:
    def __call__(self, path: Path, found: list[dict] | str) -> None:
        print(path)
        if isinstance(found, str):
            print(f"  cannot be used: {found}")
            return
        for one in found:
            print(f"  {one['probability']:7.2%}  {one['label']} ({one['index']})")

    def close(self) -> None:
        sys.stdout.flush()


class _Json:
    """A list, printed as it grows."""

    def __init__(self):
        self._before = "["

    def __call__(self, path: Path, found: list[dict] | str) -> None:
        key = "error" if isinstance(found, str) else "predictions"
        text = printable(json.dumps({"path": str(path), key: found}, ensure_ascii=False))  # JSON's own escape, too
        print(f"{self._before}\n  {text}", end="")
        self._before = ","

    def close(self) -> None:
        print("[\n]" if self._before == "[" else "\n]", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
