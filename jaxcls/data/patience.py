"""Waiting for what may never come."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jaxcls.errors import RunError

_END = object()


def patiently(items: Iterator[Any], seconds: float, why: Callable[[int], str]) -> Iterator[Any]:
    """The items, each of them asked for when it is wanted, and waited for so long at most.

    They are drawn in a thread of its own, since nothing else can leave a read that hangs.

    Args:
      seconds: to wait for an item; 0: for ever.
      why: says why the item of a number, from 0, may not have come.

    Raises:
      RunError: an item did not come in time.
    """
    if not seconds:
        yield from items
        return
    wanted, drawn = queue.SimpleQueue(), queue.SimpleQueue()
    threading.Thread(target=_draw, args=(items, wanted, drawn), name="draw batches", daemon=True).start()
    number = 0
    try:
        while True:
            wanted.put(True)
            item, error = drawn.get(timeout=seconds)
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
            number += 1
    except queue.Empty:
        raise RunError(why(number)) from None
    finally:
        wanted.put(False)


def _draw(items: Iterator[Any], wanted: queue.SimpleQueue, drawn: queue.SimpleQueue) -> None:
    while wanted.get():
        try:
            drawn.put((next(items, _END), None))
        except BaseException as error:  # noqa: BLE001 (raised again by who waits)
            drawn.put((None, error))
