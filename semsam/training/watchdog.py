"""A step that does not end is said after a while, with where every worker stands, and ended after a longer one.

A worker that hangs, or was stopped, holds up all others, who wait for it without end, and it can do nothing about that.
So a thread in every worker looks at the time, and ends its process hard when it has had enough: whoever runs the
workers sees dead ones, kills the rest and starts all of them again from the last checkpoint.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Self

import torch.distributed as dist

from semsam.training.engine import Worker

_GRACE = 4.0  # Seconds within which all workers that can still say something have noticed the same.
# Of a start with its first step: for imports, weights to load and whatever is compiled.
_WARNING_OF_START, _TIMEOUT_OF_START = 180.0, 900.0
_POLL = 0.5
_FRAMES = 10  # Of a stack, the last ones.


class Watchdog:
    """Watches the thread that makes it; use as a context manager, and call it at the beginning of every step.

    `warning_s` and `timeout_s` are how long the time between two calls may be; until the second call it is at least
    some minutes.  The first worker that answers speaks for all of them.
    """

    def __init__(self, worker: Worker, warning_s: float, timeout_s: float) -> None:
        self._worker = worker
        self._limits = warning_s, timeout_s
        self._warning_s, self._timeout_s = max(warning_s, _WARNING_OF_START), max(timeout_s, _TIMEOUT_OF_START)
        self._watched = threading.get_ident()
        self._step, self._since, self._has_warned = -1, time.monotonic(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __call__(self, step: int) -> None:
        """Note that a step begins."""
        if self._step >= 0:
            self._warning_s, self._timeout_s = self._limits
        self._step, self._since, self._has_warned = step, time.monotonic(), False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL):
            silent = time.monotonic() - self._since
            if silent > self._timeout_s:
                self._say(f"ended after {silent:.0f} s (run.stall_timeout_s), to begin again from the last checkpoint")
                time.sleep(_GRACE / 2)  # The first worker keeps what the others look at.
                os._exit(1)
            if silent > self._warning_s and not self._has_warned:
                self._has_warned = True
                end = self._timeout_s - silent
                self._say(f"not done after {silent:.0f} s (run.stall_warning_s); it is ended in {end:.0f} s")

    def _say(self, what: str) -> None:
        stacks, silent = self._stacks(what.partition(" ")[0])
        if self._worker.rank != min(stacks):
            return
        name = "the start" if self._step < 0 else f"step {self._step}"
        lines = [f"{name} is {what}"]
        if silent:
            lines.append(f"  no answer in {_GRACE:.0f} s from worker {_listed(silent)}: stopped, gone or very busy")
        for stack in dict.fromkeys(stacks.values()):
            lines += [f"  worker {_listed([rank for rank, one in stacks.items() if one == stack])} is at", stack]
        print("\n".join(lines), flush=True)

    def _stacks(self, occasion: str) -> tuple[dict[int, str], list[int]]:
        """Where the workers are that can say so, by rank, and who cannot."""
        frame = sys._current_frames().get(self._watched)
        own = "".join(traceback.format_stack(frame)[-_FRAMES:]).rstrip()
        found, world_size = {self._worker.rank: own}, self._worker.world_size
        if world_size == 1:
            return found, []
        # In a thread of its own: with the first worker stopped, which keeps what is told, this waits without end.
        asking = threading.Thread(target=self._ask, args=(f"{self._step}/{occasion}", own, found), daemon=True)
        asking.start()
        asking.join(2 * _GRACE)
        if asking.is_alive():
            return {self._worker.rank: own}, [0]
        return dict(sorted(found.items())), [rank for rank in range(world_size) if rank not in found]

    def _ask(self, occasion: str, own: str, found: dict[int, str]) -> None:
        store = dist.distributed_c10d.PrefixStore(f"watchdog/{occasion}", dist.distributed_c10d._get_default_store())
        store.set(str(self._worker.rank), own)
        time.sleep(_GRACE)
        for rank in range(self._worker.world_size):
            if store.check([str(rank)]):
                found[rank] = store.get(str(rank)).decode()


def _listed(ranks: list[int]) -> str:
    """Numbers in order, neighbours as a range: 0, 2-7."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and parts[-1][-1] == rank - 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)
