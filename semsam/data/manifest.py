"""`manifest.json` beside the shards of one split: what they hold, what was dropped and why, and what made them."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from semsam.data.schema import SCHEMA_VERSION
from semsam.data.sealed import seal, unseal_as

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Vocabulary:
    """The names of one dataset; a record's categories are positions in these tuples."""

    objects: tuple[str, ...]
    parts: tuple[str, ...] = ()
    things: tuple[bool, ...] = ()  # One per object: countable thing (true) or stuff.
    object_parts: tuple[tuple[int, int], ...] = ()  # (object, part) that occur together: the units of part AP.

    def digest(self) -> str:
        """SHA-256 of the names in their order: a checkpoint remembers it."""
        return hashlib.sha256(orjson.dumps(dataclasses.asdict(self))).hexdigest()


@dataclass(frozen=True)
class Shard:
    """One Arrow IPC file of a split, named relative to the manifest."""

    path: str
    rows: int
    bytes: int
    sha256: str
    index_sha256: str  # Of the file with its rows (`semsam.data.shard_file`).
    first_entry: int  # Position of its first entry in the sorted native ids; rejected entries leave gaps.
    entries: int


@dataclass(frozen=True)
class IndexFile:
    """The names of all rows (`semsam.data.row_categories`), in one file named relative to the manifest."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Example:
    """One dropped image or region, so that a count by reason can be looked into."""

    sample_id: str
    detail: str


@dataclass(frozen=True)
class Manifest:
    """Everything a reader needs to know of one prepared split.

    `dropped_samples` and `dropped_regions` count by reason; `examples` holds a few of each reason.
    """

    dataset: str
    split: str
    source_root: str
    shards: tuple[Shard, ...]
    num_samples: int
    num_regions: int
    dropped_samples: dict[str, int]
    dropped_regions: dict[str, int]
    examples: dict[str, tuple[Example, ...]]
    vocabulary: Vocabulary
    vocabulary_digest: str
    code_version: str
    options: dict[str, Any]
    schema_version: int = SCHEMA_VERSION
    row_categories: IndexFile | None = None  # None: the vocabulary is empty.
    absent: tuple[str, ...] = ()  # Kinds of annotation that the copy lacked altogether, such as "instances".

    def digest(self) -> str:
        """SHA-256 over the shards' digests: the identity of the data, whoever made it and wherever it lies."""
        return hashlib.sha256("".join(s.sha256 for s in self.shards).encode()).hexdigest()

    def to_json(self) -> bytes:
        """Indented JSON with a digest of its own; `from_json` reads it back."""
        return seal(dataclasses.asdict(self))

    @staticmethod
    def from_json(data: bytes, path: str) -> Manifest:
        """Raises `ValueError` naming `path` for another schema version and for what contradicts itself."""
        check_version(data, path)
        manifest = unseal_as(Manifest, data, path, "a manifest")
        manifest._check(path)
        return manifest

    def _check(self, path: str) -> None:
        total = sum(shard.rows for shard in self.shards)
        if total != self.num_samples:
            raise ValueError(f"{path}: {self.num_samples} samples, but its shards add up to {total}")
        if self.vocabulary.digest() != self.vocabulary_digest:
            raise ValueError(f"{path}: the vocabulary does not fit its digest")


def check_version(data: bytes, path: str) -> None:
    """Raise `ValueError`, naming `path`, unless a manifest is of this schema version."""
    try:
        found = orjson.loads(data)["schema_version"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest: {error!r}") from None
    if found != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {found!r}, expected {SCHEMA_VERSION}: another version of this project made it; "
            "run jobs.prepare again with the settings of then, which makes the shards anew"
        )
