"""Small prepared splits for the tests of this folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from semsam.data.manifest import MANIFEST_NAME, IndexFile, Manifest, Shard, Vocabulary
from semsam.data.row_categories import ROW_CATEGORIES_NAME, row_names, to_batch, to_bytes
from semsam.data.schema import RECORD, Record, to_row

WriteSplit = Callable[[Path, Sequence[Sequence[Record]]], Path]


@pytest.fixture
def write_split() -> WriteSplit:
    """Write records, given by shard, as a split into a folder; the folder comes back."""

    def write(folder: Path, shards: Sequence[Sequence[Record]]) -> Path:
        folder.mkdir(parents=True)
        entries, first = [], 0
        for position, records in enumerate(shards):
            path = folder / f"shard-{position:05d}.arrow"
            with pa.ipc.new_file(str(path), RECORD) as writer:
                for record in records:
                    writer.write_batch(to_row(record))
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            entries.append(Shard(path.name, len(records), len(data), digest, first, len(records)))
            first += len(records)
        names = to_bytes(to_batch(map(row_names, records)) for records in shards)
        (folder / ROW_CATEGORIES_NAME).write_bytes(names)
        vocabulary = Vocabulary(("car",))
        manifest = Manifest(
            dataset=folder.parent.name,
            split=folder.name,
            source_root="",
            shards=tuple(entries),
            num_samples=first,
            num_regions=sum(len(record.regions) for records in shards for record in records),
            dropped_samples={},
            dropped_regions={},
            examples={},
            vocabulary=vocabulary,
            vocabulary_digest=vocabulary.digest(),
            code_version="test",
            options={},
            row_categories=IndexFile(ROW_CATEGORIES_NAME, len(names), hashlib.sha256(names).hexdigest()),
        )
        (folder / MANIFEST_NAME).write_bytes(manifest.to_json())
        return folder

    return write
