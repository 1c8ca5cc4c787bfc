"""A report of runs: one HTML file that needs nothing else, no network and no script."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxcls.report.charts import Line, chart
from jaxcls.report.files import whole
from jaxcls.report.html import STYLE, duration, number, percent, table, text
from jaxcls.report.mistakes import mistakes
from jaxcls.report.run_log import RunLog

MOST_ROWS = 100  # of a table of bad records
# Parts of a run's time: the summary's names, and what they are called here.
TIMES = {
    "startup": "start and compiler",
    "step": "training steps",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "saving": "saving",
    "other": "other",
}


def write_report(path: Path, runs: Sequence[RunLog], *, refresh: int | None = None) -> None:
    """Writes the page whole or not at all.

    Args:
      refresh: seconds after which a browser loads it again.

    Raises:
      RunError: it cannot be written.
    """
    page = make_page(runs, refresh=refresh)
    with whole(path, "report ") as part:
        part.write_text(page, encoding="utf-8")


def make_page(runs: Sequence[RunLog], *, refresh: int | None = None) -> str:
    """The page's text; every name and text of the runs is escaped."""
    names = run_names(runs)
    title = f"{names[0]}: {_network(runs[0])}" if len(runs) == 1 else f"{len(runs)} runs"
    body = [
        f"<h1>{text(title)}</h1>",
        _cards(names, runs),
        _remarks(names, runs),
        *_section(
            "Curves", '<div class="charts">' + "".join(f"<figure>{svg}</figure>" for svg in _charts(names, runs)) + "</div>"
        ),
        *_section("Where the time went", _times(names, runs)),
        *_section("What it gets wrong", "".join(map(mistakes, names, runs))),
        *_section("What differs in the configs", _differences(names, runs)),
        *_section("Records that could not be used", _bad(names, runs)),
        *_section("Environment and data", _environment(names, runs)),
        *_section("Configs", "".join(_config(name, run) for name, run in zip(names, runs, strict=True))),
    ]
    again = f'<meta http-equiv="refresh" content="{refresh}">' if refresh else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def run_names(runs: Sequence[RunLog]) -> list[str]:
    """Short names that tell the runs apart: what their paths do not have in common, at least the last part."""
    paths = [run.path.absolute() for run in runs]
    if len(set(paths)) < 2:
        return [path.name or str(path) for path in paths]
    common = Path(os.path.commonpath(paths))
    return [str(path.relative_to(common)) if path != common else path.name for path in paths]


def _section(title: str, content: str) -> list[str]:
    return [f"<section><h2>{title}</h2>{content}</section>"] if content else []


def _cards(names: list[str], runs: Sequence[RunLog]) -> str:
    return (
        '<div class="cards">' + "".join(_card(i, *pair) for i, pair in enumerate(zip(names, runs, strict=True))) + "</div>"
    )


def _card(index: int, name: str, run: RunLog) -> str:
    summary = run.summary
    best, final, ema = summary.get("best_top1"), summary.get("final_top1"), (summary.get("ema") or {}).get("top1")
    best = _finite_max(run, "val.top1") if best is None else best
    final = run.last("val.top1") if final is None else final
    rows = [
        ("network", _network(run)),
        ("state", _state(run)),
        ("top-1", percent(final) + (f" (best {percent(best)})" if best is not None else "")),
        ("top-5", percent(summary.get("top5", run.last("val.top5")))),
        ("top-1 of the averaged weights", percent(ema)),
        ("loss", number(summary.get("loss", run.last("val.loss")), 4)),
        ("images/s", number(summary.get("images_per_second"), 1)),
        ("time", duration(summary.get("wall_seconds"))),
        ("steps left out", summary.get("nonfinite_steps") or None),
    ]
    items = "".join(f"<dt>{label}</dt><dd>{text(value)}</dd>" for label, value in rows if value not in (None, "", "-"))
    color = f"border-left-color: var(--series{index % 8})"
    return f'<article class="card" style="{color}"><h2>{text(name)}</h2><dl>{items}</dl></article>'


def _state(run: RunLog) -> str:
    step = max((int(curve.steps[-1]) for curve in run.curves.values() if curve.steps.size), default=0)
    epoch = run.last("epoch")
    reached = f"step {step:,}" + (f", epoch {epoch:.4g}" if epoch is not None else "")
    if not run.summary:
        return f"not finished; {reached}" if step else "nothing logged yet"
    early = ", stopped early" if run.summary.get("stopped_early") else ""
    return f"finished at {reached}{early}"


def _remarks(names: list[str], runs: Sequence[RunLog]) -> str:
    remarks = [f"<li>{text(name)}: {text(r)}</li>" for name, run in zip(names, runs, strict=True) for r in run.remarks[:20]]
    return f'<ul class="remarks">{"".join(remarks)}</ul>' if remarks else ""


def _charts(names: list[str], runs: Sequence[RunLog]) -> Iterable[str]:
    def lines(metrics: dict[str, str]) -> list[Line]:
        """A line for each run that has the metric; `metrics` has what each is called."""
        found = []
        for color, (name, run) in enumerate(zip(names, runs, strict=True)):
            for dash, (metric, what) in enumerate(metrics.items()):
                if metric in run.curves:
                    label = ", ".join(part for part in (name if len(runs) > 1 else "", what) if part)
                    found.append(Line(label or None, run.curves[metric], color if len(runs) > 1 else dash, dash))
        return found

    for title, unit, metrics, options in (
        ("Loss", "loss", {"train.loss": "training", "val.loss": "evaluation", "val_ema.loss": "averaged weights"}, {}),
        ("Top-1", "percent", {"val.top1": "", "val_ema.top1": "averaged weights"}, {}),
        ("Learning rate", "learning rate", {"train.lr": ""}, {"floor": 0}),
        ("Throughput", "images/s", {"train.total_ips": ""}, {"floor": 0}),
        (
            "Time of a step",
            "seconds",
            {"train.compute_time": "computing", "train.data_time": "waiting for data"},
            {"floor": 0},
        ),
    ):
        if found := lines(metrics):
            yield chart(found, title=title, unit=unit, **options)
    scaled = [run for run in runs if (run.config.get("precision") or {}).get("policy") == "fp16"]
    if scaled and (found := lines({"train.grad_scale": ""})):
        yield chart(found, title="Scale of the loss (fp16)", unit="factor", log=True)


def _times(names: list[str], runs: Sequence[RunLog]) -> str:
    return "".join(
        _time_bar(name, run.summary["seconds"]) for name, run in zip(names, runs, strict=True) if "seconds" in run.summary
    )


def _time_bar(name: str, seconds: dict[str, float]) -> str:
    parts = {part: max(float(seconds.get(part) or 0), 0.0) for part in TIMES}
    total = sum(parts.values()) or 1.0
    bar = "".join(
        f'<span style="flex: {value:.3f} 0 0; background: var(--series{index})" title="{TIMES[part]}"></span>'
        for index, (part, value) in enumerate(parts.items())
        if value > 0
    )
    legend = "".join(
        f'<li><i style="background: var(--series{index})"></i>{TIMES[part]} {duration(value)} ({value / total:.1%})</li>'
        for index, (part, value) in enumerate(parts.items())
    )
    lost = float(seconds.get("lost") or 0)
    legend += f"<li>done again after a start that was killed: {duration(lost)}</li>" if lost else ""
    good = parts["step"] / (total + lost)
    return (
        f"<h3>{text(name)}: {good:.1%} of {duration(total + lost)} were training steps</h3>"
        f'<div class="bar">{bar}</div><ul class="legend">{legend}</ul>'
    )


def _differences(names: list[str], runs: Sequence[RunLog]) -> str:
    flat = [_flatten(run.config) for run in runs]
    keys = [
        key for key in dict.fromkeys(key for one in flat for key in one) if len({repr(one.get(key)) for one in flat}) > 1
    ]
    if len(runs) < 2:
        return ""
    if not keys:
        return "<p>Nothing: the configs are the same.</p>"
    return table(["key", *names], [[key, *(_value(one.get(key)) for one in flat)] for key in keys])


def _bad(names: list[str], runs: Sequence[RunLog]) -> str:
    rows = [
        [name, record.get("step"), record.get("split"), record.get("id"), record.get("reason")]
        for name, run in zip(names, runs, strict=True)
        for record in run.bad
    ]
    count = sum(run.bad_count for run in runs)
    more = f"<p>{count - MOST_ROWS:,} more are in bad_records.jsonl.</p>" if count > MOST_ROWS else ""
    return table(["run", "step", "split", "record", "reason"], rows[:MOST_ROWS]) + more if rows else ""


def _environment(names: list[str], runs: Sequence[RunLog]) -> str:
    facts = []
    for run in runs:
        summary = run.summary
        told = {"device": summary.get("device"), **(summary.get("versions") or {})}
        told |= {"evaluated images": summary.get("eval_count"), "their digest": summary.get("eval_digest")}
        told |= {"training images": run.data.get("records"), "digest of their ids": run.data.get("sampled_ids")}
        facts.append(told | {"finished at": summary.get("finished_at"), "directory": str(run.path.absolute())})
    keys = [
        key for key in dict.fromkeys(key for one in facts for key in one) if any(one.get(key) is not None for one in facts)
    ]
    return table(["", *names], [[key, *(_value(one.get(key)) for one in facts)] for key in keys])


def _config(name: str, run: RunLog) -> str:
    config = json.dumps(run.config, indent=2, ensure_ascii=False)
    return f"<details><summary>{text(name)}</summary><pre>{text(config)}</pre></details>" if run.config else ""


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _network(run: RunLog) -> str:
    model, data, precision = (run.config.get(part) or {} for part in ("model", "data", "precision"))
    size, policy = data.get("image_size"), precision.get("policy")
    parts = [model.get("name") or run.summary.get("model") or "unknown network", f"{size} px" if size else "", policy]
    return ", ".join(str(part) for part in parts if part)


def _finite_max(run: RunLog, name: str) -> float | None:
    values = [value for value in run.curves[name].values.tolist() if value == value] if name in run.curves else []
    return max(values, default=None)


def _value(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)
