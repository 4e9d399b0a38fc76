"""The account of a run, one JSON line per step: `<run>/train_log.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from semsam.storage import Folder

LOG_FILE = "train_log.jsonl"


class TrainLog:
    """Appends steps; lines from `next_step` on, which an interrupted attempt left, are dropped first.

    On S3, where every addition is an object of its own, lines are gathered until `flush`.
    """

    def __init__(self, run: Folder, next_step: int) -> None:
        self._run = run
        kept = [orjson.dumps(entry) + b"\n" for entry in read_log(run) if entry["step"] < next_step]
        run.write_appended(LOG_FILE, b"".join(kept))
        self._lines: list[bytes] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Append one step."""
        self._lines.append(orjson.dumps(entry) + b"\n")
        if self._run.is_local:
            self.flush()

    def flush(self) -> None:
        """Make sure that everything added so far is stored."""
        if self._lines:
            self._run.append(LOG_FILE, b"".join(self._lines))
            self._lines = []


def read_log(run: Folder) -> Iterator[dict[str, Any]]:
    """The steps of a run, in order; a last line that a killed process left unfinished does not count."""
    last = -1
    for line in run.read_appended(LOG_FILE).splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        entry = orjson.loads(line)
        if (
            entry["step"] > last
        ):  # Else of an attempt that ended between writing the log anew and dropping its additions.
            last = entry["step"]
            yield entry
