"""`jaxcls convert`: weights from PyTorch to jaxcls and back."""

import sys
from pathlib import Path

from jaxcls import command, flags


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(lambda: convert(flags.parse_convert(argv)))


def convert(args) -> None:
    """Reads `args.source` and writes `args.target`, the direction being in their names.

    A PyTorch file gets a state dict that the reference loads with `strict=True`; see `flags.parse_convert`.
    """
    from jaxcls import labels, loading, runtime
    from jaxcls.interop import torch_files, torch_weights, weights

    runtime.configure("fp32")
    target = Path(args.target)
    variables, meta = loading.load_arrays(args.source, args.model, ema=args.ema)
    loading.say_found(args.source, meta)
    if args.labels:
        meta["classes"] = labels.read(args.labels, meta["model"]["num_classes"])
    if not torch_files.is_torch_file(target):
        weights.save(target, variables, meta)
    else:
        origin = meta["provenance"]
        naming = torch_weights.NAMINGS[args.names]
        state = torch_weights.to_torch(variables, naming, origin["batches_tracked"])
        facts = {"epoch": origin.get("epoch"), "best_prec1": origin.get("best_prec1")}
        torch_files.write(target, state, {name: value for name, value in facts.items() if value is not None})
    print(f"Wrote {target}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv))
