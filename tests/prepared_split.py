"""Records as a prepared split on disk, without jobs.prepare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from semsam.data.manifest import MANIFEST_NAME, IndexFile, Manifest, Shard, Vocabulary
from semsam.data.row_categories import ROW_CATEGORIES_NAME, row_names, to_batch, to_bytes
from semsam.data.schema import Record, to_row
from semsam.data.sealed import SEAL, seal
from semsam.data.shard_file import index_name, shard_name, write_shard_file


def write_split(folder: Path, shards: Sequence[Sequence[Record]], vocabulary: Vocabulary) -> Path:
    """Write records, given by shard, to `.../<dataset>/<split>`; the folder comes back."""
    folder.mkdir(parents=True)
    entries: list[Shard] = []
    for position, records in enumerate(shards):
        first = sum(entry.rows for entry in entries)
        path = folder / shard_name(position)
        shard, index = write_shard_file(path, map(to_row, records), position, first, len(records))
        (folder / index_name(shard.path)).write_bytes(index)
        entries.append(shard)
    names = to_bytes(to_batch(map(row_names, records)) for records in shards)
    has_names = bool(vocabulary.objects or vocabulary.parts)
    if has_names:
        (folder / ROW_CATEGORIES_NAME).write_bytes(names)
    manifest = Manifest(
        dataset=folder.parent.name,
        split=folder.name,
        source_root="",
        shards=tuple(entries),
        num_samples=sum(entry.rows for entry in entries),
        num_regions=sum(len(record.regions) for records in shards for record in records),
        dropped_samples={},
        dropped_regions={},
        examples={},
        vocabulary=vocabulary,
        vocabulary_digest=vocabulary.digest(),
        code_version="test",
        options={},
        row_categories=IndexFile(ROW_CATEGORIES_NAME, len(names), hashlib.sha256(names).hexdigest())
        if has_names
        else None,
    )
    (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    """Change values of a split's manifest, and make its digest fit them."""
    path = folder / MANIFEST_NAME
    values = orjson.loads(path.read_bytes()) | changes
    del values[SEAL]
    path.write_bytes(seal(values))
