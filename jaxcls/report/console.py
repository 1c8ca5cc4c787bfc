"""The terminal: a progress bar where there is one, plain lines elsewhere."""

import sys
import time

from tqdm import tqdm

PLAIN_LINE_SECONDS = 10.0  # at most one progress line in this time when the output is not a terminal


def printable(value: object) -> str:
    """Text of which every character can be written as UTF-8: others, in names of files in another encoding, as `\\udcXX`."""
    return str(value).encode(errors="backslashreplace").decode()


class Console:
    """Progress of a run on standard error; what is worth keeping goes to standard output through `say`."""

    def __init__(self, *, silent: bool = False):
        """`silent`: show nothing, as of all processes but the first."""
        self._silent = silent
        self._bar: tqdm | None = None
        self._total = self._shown_step = 0
        self._shown_time = -PLAIN_LINE_SECONDS

    def say(self, text: str) -> None:
        """Prints a line, above the bar if one is shown."""
        if self._silent:
            return
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def begin(self, what: str, done: int, total: int, unit: str) -> None:
        """Starts to show progress from `done` to `total`; nested progress is not shown."""
        self._total, self._what, self._unit = total, what, unit
        self._shown_time = time.monotonic()
        self._timed_from: tuple[float, int] | None = None  # the first update: what came before it is mostly the compiler
        if sys.stderr.isatty() and not self._silent:
            self._bar = tqdm(desc=what, initial=done, total=total, unit=unit, dynamic_ncols=True, leave=False)

    def update(self, done: int, facts: dict[str, str]) -> None:
        """Shows that `done` units are done, with a few named figures."""
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        began, began_at = self._timed_from = self._timed_from or (now, done)
        if now - self._shown_time >= PLAIN_LINE_SECONDS:
            self._shown_time = now
            figures = [f"{name} {value}" for name, value in facts.items()]
            if done > began_at:
                figures.append(f"{_clock((now - began) / (done - began_at) * (self._total - done))} left")
            self.say(f"{self._what}: {self._unit} {done}/{self._total}, {', '.join(figures)}")

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
