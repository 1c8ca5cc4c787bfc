#!/usr/bin/env python3
"""Accuracy of the digits run under each precision policy: mean over seeds, and its distance from fp32's.

    scripts/bench_precision.py OUT [--policies fp32 bf16 fp16] [--seeds 0 1 2] [--config FILE] [--config.KEY=VALUE ...]

Each run is a `python -m jaxcls.main` in OUT/POLICY-SEED, so the same command goes on where it was stopped. On a CPU, which
computes fp32 alone by itself, bf16 takes several times as long. The results are printed and left in OUT/precision.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--policies", nargs="+", default=["fp32", "bf16", "fp16"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--config", default="configs/resnet50.py")
    args, overrides = parser.parse_known_args()
    found: dict[str, list[dict]] = {policy: [] for policy in args.policies}
    for seed in args.seeds:
        for policy in args.policies:
            summary = train(args.out / f"{policy}-{seed}", args.config, policy, seed, overrides)
            found[policy].append(summary)
            print(f"{policy}, seed {seed}: top-1 {summary['final_top1']:.2f}%, {summary['steps']} steps", flush=True)
    table = {policy: describe(summaries) for policy, summaries in found.items()}
    (args.out / "precision.json").write_text(json.dumps(table, indent=2) + "\n")
    first = table[args.policies[0]]["mean_top1"]
    print(f"\n| policy | top-1, seeds {', '.join(map(str, args.seeds))} | mean | from {args.policies[0]} | steps left out |")
    print("|---|---|---|---|---|")
    for policy, row in table.items():
        each = ", ".join(f"{top1:.2f}" for top1 in row["top1"])
        print(
            f"| {policy} | {each} | {row['mean_top1']:.2f}% | {row['mean_top1'] - first:+.2f} | {row['nonfinite_steps']} |"
        )
    return 0


def train(workdir: Path, config: str, policy: str, seed: int, overrides: list[str]) -> dict:
    """Runs to the end; the summary."""
    flags = [f"--config.precision.policy={policy}", f"--config.seed={seed}", *overrides]
    command = [sys.executable, "-m", "jaxcls.main", "--config", config, "--workdir", str(workdir), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((workdir / "summary.json").read_text())


def describe(summaries: list[dict]) -> dict:
    top1 = [summary["final_top1"] for summary in summaries]
    return {
        "top1": top1,
        "mean_top1": statistics.mean(top1),
        "nonfinite_steps": sum(summary["nonfinite_steps"] for summary in summaries),
        "images_per_second": statistics.median(summary["images_per_second"] for summary in summaries),
        "device": summaries[0]["device"],
        "versions": summaries[0]["versions"],
    }


if __name__ == "__main__":
    sys.exit(main())
