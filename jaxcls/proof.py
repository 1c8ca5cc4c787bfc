"""Are two finished runs the same run? Their states, metrics and records, compared to the bit."""

import collections
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcls.recorded import RECORDS, RESTORED, STATES
from jaxcls.train.checkpoints import read_state

# Fields of the state by the names that people know them by.
NAMES = {"params": "weights", "batch_stats": "BN statistics", "opt_state": "optimizer state", "ema": "averaged weights"}


class Check(NamedTuple):
    """One thing compared."""

    name: str
    found: str
    ok: bool


def compare_runs(whole: Path, other: Path, *, same_devices: bool = True, resumed_at: int = 0) -> list[Check]:
    """Compares `other`, a run that was killed and resumed, with `whole`, one that nothing happened to.

    Args:
      whole: workdir of a run by `jaxcls.recorded`, as `other`'s.
      same_devices: whether both had as many devices all the time; if not, weights and losses may differ after
        `resumed_at`. What `other` then resumed with must be, to the bit, what `whole` had at that step.
      resumed_at: step from which `other` may differ in that case.
    """
    last = [json.loads((workdir / "summary.json").read_text())["steps"] for workdir in (whole, other)]
    checks = [Check("steps", f"{last[1]} of {last[0]}", last[0] == last[1])]
    if last[0] == last[1]:
        checks += _compare_states(*(read_state(path / "checkpoints", last[0]) for path in (whole, other)), same_devices)
    if (other / RESTORED).exists():
        checks.append(_compare_restored(whole, other, same_devices))
    checks.append(_compare_losses(whole, other, last[0], last[0] if same_devices else resumed_at))
    checks.append(_compare_records(whole, other, last[0]))
    if same_devices:
        checks.append(_compare_evaluations(whole, other))
    return checks


def table(checks: list[Check]) -> str:
    """The checks as lines of text."""
    wide = max(len(check.name) for check in checks)
    return "\n".join(f"  {check.name:{wide}}  {'ok ' if check.ok else 'NOT'}  {check.found}" for check in checks)


def _compare_states(whole: dict[str, np.ndarray], other: dict[str, np.ndarray], exact: bool) -> list[Check]:
    groups = collections.defaultdict(list)
    for name in whole.keys() | other.keys():
        groups[name.partition("/")[0]].append(name)
    return [
        _compare_group(NAMES.get(group, group.replace("_", " ")), sorted(groups[group]), whole, other, exact)
        for group in sorted(groups, key=lambda group: [*NAMES, group].index(group))
    ]


def _compare_group(title: str, names: list[str], whole: dict, other: dict, exact: bool) -> Check:
    numbers = sum(whole[name].size for name in names if name in whole)
    size = f"{len(names)} arrays, {numbers:,} numbers" if numbers > 1 else f"{whole.get(names[0])}"
    alone = [name for name in names if name not in whole or name not in other]
    different = [name for name in names if name not in alone and not _same_bits(whole[name], other[name])]
    if alone:
        return Check(title, f"{size}; {alone[0]} is in one of the runs only", False)
    if not different:
        return Check(title, f"{size}: bit-identical", True)
    if not exact:
        wrong = [name for name in different if not np.isfinite(np.asarray(other[name], np.float64)).all()]
        return Check(title, f"{size}: {f'{wrong[0]} is not finite' if wrong else 'finite'}", not wrong)
    return Check(title, f"{size}: {len(different)} differ, the first {different[0]}", False)


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _compare_restored(whole: Path, other: Path, same_devices: bool) -> Check:
    title, state = "restored state", json.loads((other / RESTORED).read_text())
    step, restored = state["step"], state["restored"]
    saved = {line["step"]: line["saved"] for line in _lines(whole / STATES)}.get(step)
    if saved is None:
        return Check(
            title, f"that of step {step}, which the whole run did not save: nothing to compare it with", same_devices
        )
    different = [NAMES.get(part, part) for part in saved | restored if saved.get(part) != restored.get(part)]
    if different:
        return Check(title, f"{', '.join(different)} of step {step} are not those that the whole run had", False)
    parts = ", ".join(NAMES.get(part, part.replace("_", " ")) for part in saved)
    return Check(title, f"that of step {step} ({parts}): bit-identical to the whole run's", True)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _each_once(found: list[int], last: int) -> str | None:
    """What is wrong with a list of steps that should be 1, 2, ..., last."""
    missing = sorted(set(range(1, last + 1)) - set(found))
    doubled = sorted(step for step, times in collections.Counter(found).items() if times > 1)
    if missing or doubled or found != sorted(found):
        return f"missing steps {missing[:5]}, doubled {doubled[:5]}"
    return None


def _compare_losses(whole: Path, other: Path, last: int, equal_until: int) -> Check:
    ours, theirs = ({line["step"]: line["train.loss"] for line in _lines(path / "metrics.jsonl")} for path in (other, whole))
    wrong = _each_once([line["step"] for line in _lines(other / "metrics.jsonl")], last)
    if wrong:
        return Check("metrics.jsonl", wrong, False)
    different = [step for step in range(1, last + 1) if ours[step] != theirs.get(step)]
    if different and different[0] <= equal_until:
        step = different[0]
        return Check("metrics.jsonl", f"the loss of step {step} is {ours[step]}, not {theirs.get(step)}", False)
    distances = [abs(ours[step] - theirs[step]) for step in different if None not in (ours[step], theirs[step])]
    apart = f"; after it they differ by up to {max(distances):.1e}" if distances else ""
    until = f"{equal_until} steps up to the resumption" if different else f"{last} steps"
    return Check("metrics.jsonl", f"{last} steps, each once; the losses of {until} are equal{apart}", True)


def _compare_records(whole: Path, other: Path, last: int) -> Check:
    ours, theirs = (_lines(path / RECORDS) for path in (other, whole))
    wrong = _each_once([line["step"] for line in ours], last)
    if wrong:
        return Check("records", wrong, False)
    for a, b in zip(ours, theirs, strict=False):
        if a != b:
            lost, new = set(b["records"]) - set(a["records"]), set(a["records"]) - set(b["records"])
            return Check("records", f"step {a['step']} lacks {sorted(lost)[:5]} and has {sorted(new)[:5]}", False)
    count = sum(len(line["records"]) for line in ours)
    return Check("records", f"{count:,} consumed, each step's the same in the same order; none lost, none repeated", True)


def _compare_evaluations(whole: Path, other: Path) -> Check:
    names = ("final_top1", "loss", "eval_count", "eval_digest")
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (other, whole))
    different = [name for name in names if ours[name] != theirs[name]]
    found = f"{different[0]} is {ours[different[0]]}, not {theirs[different[0]]}" if different else None
    return Check(
        "evaluation", found or f"top-1 {ours['final_top1']:.2f}%, {ours['eval_count']} records: equal", not different
    )
