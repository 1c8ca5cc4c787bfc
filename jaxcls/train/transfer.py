"""Starting from weights: what of a loaded tree fits a fresh network."""

from typing import Any

import jax

from jaxcls import hosts
from jaxcls.errors import CheckpointError

HEAD = "params/head/"  # may be replaced when the number of classes differs


def transfer(fresh: dict, loaded: dict, origin: str) -> tuple[dict, list[str]]:
    """Puts loaded weights into a fresh network's variables.

    Everything must be there and fit, except the classifier, which stays fresh when the number of classes differs.

    Args:
      fresh: `{"params", "batch_stats"}` of the network, initialised.
      loaded: the same tree from elsewhere.
      origin: where it came from, for messages.

    Returns:
      the variables, with the fresh ones' dtypes and shardings, and lines that say what was loaded, reshaped and skipped.

    Raises:
      CheckpointError: names every array that is missing, unexpected or of another shape, at once.
    """
    wanted, given = _flatten(fresh), _flatten(loaded)
    new_head = any(wanted[k].shape != given[k].shape for k in wanted if k.startswith(HEAD) and k in given)
    replaced = {k for k in wanted if new_head and k.startswith(HEAD)}
    problems = [f"{k} is missing" for k in sorted(wanted.keys() - given.keys())]
    problems += [f"{k} is not in the network" for k in sorted(given.keys() - wanted.keys())]
    problems += [
        f"{k} has shape {given[k].shape}, the network needs {wanted[k].shape}"
        for k in sorted(wanted.keys() & given.keys() - replaced)
        if wanted[k].shape != given[k].shape
    ]
    if problems:
        raise CheckpointError(f"weights from {origin} do not fit the network: " + "; ".join(problems))
    taken = {k: v for k, v in given.items() if k not in replaced}
    lines = [f"Loaded {len(taken)} arrays ({sum(v.size for v in taken.values()):,} values) from {origin}."]
    lines += [f"New: {k} {wanted[k].shape}, in place of {given[k].shape}." for k in sorted(replaced)]

    def pick(path, leaf):
        name = _name(path)
        return hosts.replicate(taken[name].astype(leaf.dtype), leaf.sharding) if name in taken else leaf

    return jax.tree_util.tree_map_with_path(pick, fresh), lines


def _flatten(tree: dict) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
    return "/".join(entry.key for entry in path)
