"""The account of a run, one JSON line per step: `<run>/train_log.jsonl`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import orjson

from semsam.model.weight_files import Fingerprint
from semsam.storage import Folder

LOG_FILE = "train_log.jsonl"


class TrainLog:
    """Appends steps; lines from `next_step` on, which an interrupted attempt left, are dropped first.

    `known` is what the checkpoint of `next_step` says of the log, which must begin like that.  On S3, where every
    addition is an object of its own, lines are gathered until `flush`.
    """

    def __init__(self, run: Folder, next_step: int, known: Fingerprint | None = None) -> None:
        self._run = run
        if known is not None:
            kept = read_known_log(run, known)
        else:
            kept = b"".join(_line(entry) for entry in read_log(run) if entry["step"] < next_step)
        run.write_appended(LOG_FILE, kept)
        self._additions = 0
        self._stored = Fingerprint.of(kept)
        self._lines: list[bytes] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Append one step."""
        self._lines.append(_line(entry))
        if self._run.is_local:
            self.flush()

    def flush(self) -> Fingerprint:
        """Make sure that everything added so far is stored; what the log is known by then."""
        if self._lines:
            data = b"".join(self._lines)
            self._run.append(LOG_FILE, data, self._additions)
            self._additions += 1
            self._stored = Fingerprint(self._stored.size + len(data), zlib.crc32(data, self._stored.crc32))
            self._lines = []
        return self._stored


def read_known_log(run: Folder, known: Fingerprint) -> bytes:
    """The log as it was when a checkpoint was made.  Raises `ValueError` where it has not kept that."""
    data = run.read_appended(LOG_FILE)[: known.size]
    if Fingerprint.of(data) != known:
        raise ValueError(
            f"{run.path}/{LOG_FILE}: damaged: its first {known.size} bytes are not those that the checkpoint knows; "
            "put back a copy of it, or train on under another run.name with model.init"
        )
    return data


def read_log(run: Folder) -> Iterator[dict[str, Any]]:
    """The steps of a run, in order; a last line that a killed process left unfinished does not count.

    Raises `ValueError`, naming the line, for one that is no step.
    """
    last = -1
    for number, line in enumerate(run.read_appended(LOG_FILE).splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        entry = _entry(line, f"{run.path}/{LOG_FILE}: line {number}")
        # Else of an attempt that ended between writing the log anew and dropping its additions.
        if entry["step"] > last:
            last = entry["step"]
            yield entry


def _entry(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(entry, dict) or type(entry.get("step")) is not int:
        raise ValueError(f"{where}: not a step of a training")
    return entry


def _line(entry: dict[str, Any]) -> bytes:
    return orjson.dumps(entry) + b"\n"
