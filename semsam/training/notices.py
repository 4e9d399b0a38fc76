"""Reasons to save at once: machines that will be taken away, and workers that are about to be changed for others.

Whoever gives notice of machines (see `jobs.train`) may make all workers wait for one another to agree on what they were
told, so they are asked for now and then, at steps that all know: the first worker's clock says when, along with the
sums that every step makes anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum

LOOK_EVERY = 5.0  # Seconds.


class Wish(IntEnum):
    """What the first worker wants of the next step."""

    NOTHING = 0
    ASK = 1  # All are to ask whether machines will be taken away.
    SAVE = 2  # All are to save, as somebody has asked for.


class Notices:
    """The notices of one worker.

    `ask` is called by all workers at the same steps; it says which machines will be taken away, the same to all of
    them, and nothing where it has said so before.  None: nobody gives notice.  `is_asked_to_save`, true once for each
    time that a checkpoint was asked for, is called for the first worker alone, in a thread: it asks storage, which may
    be away, and no step waits for that.
    """

    def __init__(
        self,
        ask: Callable[[], str] | None = None,
        is_asked_to_save: Callable[[], bool] = lambda: False,
        every: float = LOOK_EVERY,
    ) -> None:
        self._ask = ask
        self._is_asked_to_save = is_asked_to_save
        self._every = every
        self._looked_at = float("-inf")
        self._agreed = Wish.NOTHING
        self._is_save_wanted = threading.Event()
        self._looking: threading.Thread | None = None

    def wish(self) -> Wish:
        """What the first worker, who alone calls this, wants of the next step."""
        if time.monotonic() - self._looked_at < self._every:
            return Wish.NOTHING
        self._looked_at = time.monotonic()
        if self._is_save_wanted.is_set():
            self._is_save_wanted.clear()
            return Wish.SAVE
        if self._looking is None or not self._looking.is_alive():
            self._looking = threading.Thread(target=self._look_at_storage, name="notices", daemon=True)
            self._looking.start()
        return Wish.NOTHING if self._ask is None else Wish.ASK

    def agree(self, wish: Wish) -> None:
        """Do at the next step what the first worker wants; all workers call this in every step."""
        self._agreed = wish

    def look(self) -> str:
        """Why to save after this step, if there is a reason that was not given before.  At its beginning."""
        if self._agreed is Wish.SAVE:
            return "a checkpoint is wanted"
        return self._ask() if self._agreed is Wish.ASK and self._ask is not None else ""

    def _look_at_storage(self) -> None:
        with suppress(OSError, ValueError):  # Looked at again in a while.
            if self._is_asked_to_save():
                self._is_save_wanted.set()
