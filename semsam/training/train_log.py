"""The account of a run, one JSON line per step: `<run>/train_log.jsonl`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import orjson

from semsam.storage import Folder
from semsam.training.checkpoint import LogMark

LOG_FILE = "train_log.jsonl"
BEGINNING = LogMark(0, 0)


class TrainLog:
    """Appends steps; what stands behind the mark of the last checkpoint, which an interrupted attempt left, is dropped.

    On S3, where every addition is an object of its own, lines are gathered until `flush`.  Raises `ValueError` for a
    log that is not the one that the checkpoint has seen; an empty one is begun anew.
    """

    def __init__(self, run: Folder, mark: LogMark | None) -> None:
        self._run = run
        self.mark = mark or BEGINNING  # Of what is stored.
        data = run.read_appended(LOG_FILE)
        kept = data[: self.mark.size]
        if (len(kept), zlib.crc32(kept)) != (self.mark.size, self.mark.crc32):
            if data or not run.exists(LOG_FILE):
                raise ValueError(
                    f"{run.path}/{LOG_FILE}: cut short or changed since the checkpoint was written, which has seen "
                    f"{self.mark.size} bytes of it; put it back, or empty it to go on without what it said"
                )
            self.mark = BEGINNING
        run.write_appended(LOG_FILE, kept)
        self._lines: list[bytes] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Append one step."""
        self._lines.append(orjson.dumps(entry) + b"\n")
        if self._run.is_local:
            self.flush()

    def flush(self) -> None:
        """Make sure that everything added so far is stored."""
        if self._lines:
            data = b"".join(self._lines)
            self._run.append(LOG_FILE, data)
            self.mark = LogMark(self.mark.size + len(data), zlib.crc32(data, self.mark.crc32))
            self._lines = []


def read_log(run: Folder) -> Iterator[dict[str, Any]]:
    """The steps of a run, in order; a last line that a killed process left unfinished does not count.

    Raises `ValueError` naming the file and the line for what is no account of a step.
    """
    for number, line in enumerate(run.read_appended(LOG_FILE).splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{run.path}/{LOG_FILE}: line {number}: {error}") from None
        if not isinstance(entry, dict) or type(entry.get("step")) is not int:
            raise ValueError(f"{run.path}/{LOG_FILE}: line {number} is no account of a step")
        yield entry
