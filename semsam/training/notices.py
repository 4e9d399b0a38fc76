"""Notices that machines will be taken away: what is to be saved is saved before, once for each notice.

Whoever gives them (see `jobs.train`) may make all workers wait for one another to agree on what they were told, so they
are asked for now and then, at steps that all know: the first worker's clock says when, along with the sums that every
step makes anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ASK_EVERY = 5.0  # Seconds.


class Notices:
    """The notices of one worker.

    `ask` is called by all workers at the same steps; it says which machines will be taken away, the same to all of
    them, and nothing where it has said so before.  None: nobody gives notice.
    """

    def __init__(self, ask: Callable[[], str] | None = None, every: float = ASK_EVERY) -> None:
        self._ask = ask
        self._every = every
        self._asked_at = float("-inf")
        self._is_agreed = False

    def is_due(self) -> bool:
        """Whether this worker would ask at the next step; the first worker's answer counts."""
        return self._ask is not None and time.monotonic() - self._asked_at >= self._every

    def agree(self, is_due: bool) -> None:
        """Ask at the next step or not, as the first worker said; all workers call this in every step."""
        self._is_agreed = is_due

    def look(self) -> str:
        """The notice that has come since the last look; empty without one.  At the beginning of every step."""
        if self._ask is None or not self._is_agreed:
            return ""
        self._asked_at = time.monotonic()
        return self._ask()
