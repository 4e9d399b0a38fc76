"""One thread for the model, and a bounded number of requests that wait for it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pipelines.serve.faults import overloaded

T = TypeVar("T")
_NEWEST = 0.1  # Weight of the newest request in the mean of their durations.


class ModelThread:
    """Runs one piece of work after the other, so that no request sees another's image or names."""

    def __init__(self, max_waiting: int) -> None:
        self.places = max_waiting + 1
        self.taken = 0
        self._seconds = 0.1
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who wait, for a request from its first byte to its answer.  Raises `Refused`."""
        if self.taken >= self.places:
            raise overloaded(min(max(math.ceil(self.taken * self._seconds), 1), 60))
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """What the work gives, and the seconds that it waited.  One that is cancelled before its turn never runs."""
        asked = time.perf_counter()

        def timed() -> tuple[T, float]:
            begun = time.perf_counter()
            return work(), begun - asked

        found, waited = await asyncio.wrap_future(self._executor.submit(timed))
        took = time.perf_counter() - asked - waited
        self._seconds += _NEWEST * (took - self._seconds)
        return found, waited

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)
