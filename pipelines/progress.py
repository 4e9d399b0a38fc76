"""How far a long piece of work has come, for a person at a terminal and for a log file."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Prints `<name>: 1200/5000 images, 85.2 images/s, 45 s left, 3 actors`.

    On a terminal the line is rewritten in place; elsewhere there is one line per `interval` seconds, and one at the
    end.  What was found done already counts as done but not as speed.
    """

    def __init__(
        self, name: str, total: int, unit: str = "images", interval: float = 10.0, stream: TextIO | None = None
    ) -> None:
        self._name, self._total, self._unit, self._interval = name, total, unit, interval
        self._actors = 0
        self._stream = stream or sys.stdout
        self._in_place = self._stream.isatty()
        self._done = self._found = 0
        self._started = self._printed = time.monotonic()

    def add(self, count: int, found: bool = False) -> None:
        """Count `count` more; `found` ones took no work."""
        self._done += count
        self._found += count if found else 0
        now = time.monotonic()
        if now - self._printed >= (0.2 if self._in_place else self._interval):
            self._print(now)

    def note_actors(self, count: int) -> None:
        """Show from now on that so many actors are at work; 0: it is not actors that work."""
        self._actors = count

    def close(self) -> None:
        """Print the last line."""
        self._print(time.monotonic())
        if self._in_place:
            print(file=self._stream, flush=True)

    def line(self, now: float) -> str:
        """The line at a time of `time.monotonic`."""
        worked = self._done - self._found
        rate = worked / max(now - self._started, 1e-9)
        text = f"{self._name}: {self._done}/{self._total} {self._unit}, {rate:.1f} {self._unit}/s"
        if self._found:
            text += f", {self._found} found done"
        if worked and self._done < self._total:
            text += f", {_duration((self._total - self._done) / rate)} left"
        if self._actors:
            text += f", {self._actors} actor{'s' if self._actors > 1 else ''}"
        return text

    def _print(self, now: float) -> None:
        self._printed = now
        if self._in_place:
            print(f"\r\x1b[K{self.line(now)}", end="", file=self._stream, flush=True)
        else:
            print(self.line(now), file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
