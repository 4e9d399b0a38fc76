"""One writer of a run: who it is, that it lives, and what it has published.

    <run>/attempt/
        owner.json         who may write to the run; sealed, and written by whoever takes the run over, once
        <id>.heartbeat     by the process that started the attempt, anew every few seconds
        <id>.published     by the first worker: the step of the last checkpoint that the attempt made complete
        <id>.save          by whoever wants a checkpoint soon; the first worker takes it away and sees to it

An attempt that ends takes the folder away, one that is killed leaves it.  Clocks of two machines may differ: an attempt
lives if its heartbeat changes while another looks at it.  Whoever has lost a run finds it out when it next writes.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from semsam.data.sealed import seal, unseal
from semsam.storage import Folder, is_lasting

BEAT = 2.0  # Seconds between heartbeats.
STALE = 14.0  # Seconds without one after which an attempt counts as dead.
_SETTLE = 1.0  # Two that find a run without owner see within this time which of them came last: that one has it.
_FOLDER, _OWNER = "attempt", "owner.json"


class RunFolder(Folder):
    """The folder of a run in the hands of one attempt: nothing is written or deleted below it once it is another's.

    Such a write raises `ValueError`.  Without an attempt this is a folder like others, for who knows to be alone.
    """

    def __init__(self, path: str | os.PathLike[str], attempt: str = "", top: str | None = None) -> None:
        super().__init__(path)
        self.attempt = attempt
        self._top = Folder(top or path)
        self._save = f"{attempt}.save"

    def __truediv__(self, name: str) -> RunFolder:
        return RunFolder(self._full(name), self.attempt, self._top.path)

    def __reduce__(self) -> Any:
        return RunFolder, (self.path, self.attempt, self._top.path)

    def check(self) -> None:
        """Raise `ValueError` if the run is no longer this attempt's."""
        if not self.attempt:
            return
        owner = _read_owner(self._top)
        if owner is None:
            raise ValueError(
                f"{self._top.path}: deleted, moved or replaced while it was trained: {_FOLDER}/{_OWNER}, which this "
                "training had written there, is gone; it ends here and begins nothing anew; put the folder back and "
                "start the same command again, or choose another run.name"
            )
        if owner["id"] != self.attempt:
            raise ValueError(f"{self._top.path}: taken over by another training ({_who(owner)}); this one ends")

    def publish(self, step: int) -> None:
        """Note that the checkpoint of a step is complete."""
        if self.attempt:
            (self._top / _FOLDER).write(f"{self.attempt}.published", str(step).encode())

    def ask_to_save(self) -> None:
        """Ask the workers of this attempt for a checkpoint; they look every few seconds."""
        (self._top / _FOLDER).write(self._save, b"")

    def is_asked_to_save(self) -> bool:
        """Whether somebody has asked for a checkpoint since this was last looked at."""
        if not self.attempt or not (self._top / _FOLDER).exists(self._save):
            return False
        (self._top / _FOLDER).remove(self._save)
        return True

    def check_holds_published(self, step: int) -> None:
        """Raise `ValueError` where the latest checkpoint, of `step`, is less than what this attempt had published."""
        self.check()
        published = int((self._top / _FOLDER).read_if_there(f"{self.attempt}.published") or 0)
        if step < published:
            raise ValueError(
                f"{self._top.path}: checkpoint-{published}, which this training had written there, is gone, and the "
                f"latest is that of step {step}; it ends here rather than repeat steps unasked; put the checkpoint "
                f"back, or start the same command again to go on after step {step}"
            )

    @contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        with super().publishing(name) as draft:
            yield draft
            self.check()  # Not before: a large file takes its time.

    def write(self, name: str, data: bytes | Sequence[memoryview]) -> None:
        if not self.is_local:
            self.check()
        super().write(name, data)

    def append(self, name: str, data: bytes, number: int | None = None) -> None:
        if self.is_local:  # Else it is a `write`.
            self.check()
        super().append(name, data, number)

    def remove(self, name: str) -> None:
        self.check()
        super().remove(name)

    def delete(self, first: str | None = None) -> None:
        self.check()
        super().delete(first)


@contextmanager
def attempt_on(run: Folder) -> Iterator[RunFolder]:
    """The right to write to a run for the length of a `with` block, kept by a thread.

    Raises `ValueError`, within seconds, where another attempt has it and lives, and where nothing can be written; takes
    it from one that is dead.
    """
    _wait_for_silence(run)
    own, folder = RunFolder(run.path, uuid4().hex[:12]), run / _FOLDER
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    owner = {"id": own.attempt, "host": socket.gethostname(), "pid": os.getpid(), "since": since}
    try:
        folder.write(f"{own.attempt}.heartbeat", b"0")
        folder.write(_OWNER, seal(owner))
    except OSError as error:
        raise (ValueError(f"{error} (run.storage)") if is_lasting(error) else error) from None
    time.sleep(_SETTLE)
    own.check()
    for name in folder.names():  # Of those before.
        if name != _OWNER and not name.startswith(own.attempt):
            folder.remove(name)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(own, ended), name="heartbeat", daemon=True)
    heart.start()
    try:
        yield own
    finally:
        ended.set()
        heart.join()
        with suppress(ValueError, OSError):  # It is another's, or gone: nothing is left to be taken away.
            (own / _FOLDER).delete(first=_OWNER)


def _beat(own: RunFolder, ended: threading.Event) -> None:
    number = 0
    while not ended.wait(BEAT):
        number += 1
        with suppress(OSError):  # Storage that is away for a while: the next beat may come through.
            try:
                own.check()
            except ValueError:
                return  # The workers say why, when they next write.
            (own / _FOLDER).write(f"{own.attempt}.heartbeat", str(number).encode())


def _wait_for_silence(run: Folder) -> None:
    """Return when nobody has the run, or only somebody who has been silent for `STALE` seconds."""
    owner = _read_owner(run)
    if owner is None:
        return
    beat = f"{_FOLDER}/{owner['id']}.heartbeat"
    first, deadline = run.read_if_there(beat), time.monotonic() + STALE
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = _read_owner(run)
        if now is None:  # It ended just now, and may still be tidying up.
            time.sleep(_SETTLE)
            return
        if now["id"] != owner["id"] or run.read_if_there(beat) != first:
            raise ValueError(
                f"{run.path}: another training writes to this run ({_who(now)}); wait for its end or end it, or choose "
                "another run.name"
            )
    print(f"{run.path}: taken over from a training that has been silent for {STALE:.0f} s ({_who(owner)})", flush=True)


def _read_owner(run: Folder) -> dict[str, Any] | None:
    name = f"{_FOLDER}/{_OWNER}"
    data = run.read_if_there(name)
    return None if data is None else unseal(data, f"{run.path}/{name}")


def _who(owner: dict[str, Any]) -> str:
    return f"host {owner['host']}, process {owner['pid']}, since {owner['since']}"
