"""What devices exchange in a compiled program, read from its text."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}

_OPERATION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One exchange among devices.

    Attributes:
      kind: one of `KINDS`.
      bytes: of its results on one device.
    """

    kind: str
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The exchanges in a compiled program, `compiled.as_text()`; one in a loop is listed once."""
    found = []
    for line in program.splitlines():
        if match := _OPERATION.search(line):
            arrays = _ARRAY.findall(match["result"])
            sizes = (BYTES.get(dtype, 8) * math.prod(int(n) for n in dims.split(",") if n) for dtype, dims in arrays)
            found.append(Collective(match["kind"], sum(sizes)))
    return found
