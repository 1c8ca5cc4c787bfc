"""SIGTERM and Ctrl-C ask a run to stop; the loop looks at this between steps."""

import os
import signal
import time
from collections.abc import Callable


class StopSignal:
    """While entered, the first SIGTERM or SIGINT sets `requested`; a second one ends the process at once."""

    def __init__(self, say: Callable[[str], None]):
        self.requested: str | None = None  # the signal's name
        self.requested_at = 0.0  # time.monotonic()
        self._say = say

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.requested:
            os._exit(128 + number)
        self.requested_at = time.monotonic()
        self.requested = signal.Signals(number).name
        self._say(f"{self.requested}: saving at the next step; once more to stop at once.")
