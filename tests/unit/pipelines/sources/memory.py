"""A tiny native dataset in memory, and what its source makes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.sources.source import BadSample, Read, Rejected, Source
from pipelines.validate import validate


@dataclass(frozen=True)
class MemoryFiles:
    """`Files` whose contents are bytes by path."""

    contents: Mapping[str, bytes]
    root: str = "memory"

    def read_bytes(self, path: str) -> bytes:
        try:
            return self.contents[path]
        except KeyError:
            raise FileNotFoundError(path) from None

    def exists(self, path: str) -> bool:
        return path in self.contents

    def glob(self, pattern: str) -> list[str]:
        text = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        return sorted(path for path in self.contents if re.fullmatch(text, path))


def load_folder(root: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Outcome:
    """What preparing a split gives: records by sample, everything that was counted, or why the index was refused."""

    reads: tuple[Read, ...] = ()
    counted: tuple[Rejected, ...] = ()
    absent: tuple[str, ...] = ()
    refused: str = ""


def outcome_of(source: Source, files: MemoryFiles, split: str) -> Outcome:
    """Index, read and validate, as `pipelines.prepare` does."""
    try:
        index = source.index(files, split)
    except ValueError as error:
        return Outcome(refused=str(error))
    reads: list[Read] = []
    counted = [*index.rejected, *index.rejected_regions]
    for entry in index.entries:
        try:
            read = validate(source.read(files, split, entry), source.vocabulary())
        except BadSample as bad:
            counted.append(bad.rejected)
            continue
        reads.append(Read(read.record))
        counted += read.dropped
    return Outcome(tuple(reads), tuple(counted), index.absent)
