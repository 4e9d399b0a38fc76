"""The account of a run, one JSON line per step: `<run>/train_log.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from semsam.training.folder import Folder

LOG_FILE = "train_log.jsonl"


class TrainLog:
    """Appends steps; lines from `next_step` on, which an interrupted attempt left, are dropped first.

    On S3, where nothing can be appended, the file is written anew by `flush`.
    """

    def __init__(self, run: Folder, next_step: int) -> None:
        self._run = run
        kept = [orjson.dumps(entry) + b"\n" for entry in read_log(run) if entry["step"] < next_step]
        run.write(LOG_FILE, b"".join(kept))
        self._lines = kept if not run.is_local else []

    def add(self, entry: dict[str, Any]) -> None:
        """Append one step."""
        line = orjson.dumps(entry) + b"\n"
        if self._run.is_local:
            with Path(self._run.uri, LOG_FILE).open("ab") as file:
                file.write(line)
        else:
            self._lines.append(line)

    def flush(self) -> None:
        """Make sure that everything added so far is stored."""
        if not self._run.is_local:
            self._run.write(LOG_FILE, b"".join(self._lines))


def read_log(run: Folder) -> Iterator[dict[str, Any]]:
    """The steps of a run, in order; a last line that a killed process left unfinished does not count."""
    if not run.exists(LOG_FILE):
        return
    for line in run.read(LOG_FILE).splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield orjson.loads(line)
