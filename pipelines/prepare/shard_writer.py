"""One shard: entries in, an Arrow IPC file and its sidecar out, or nothing to do because they are there already.

The sidecar is written last and says what the shard was made from, so a job that was killed anywhere finds out which
shards are finished without keeping any record of its own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from pipelines.dropped import Dropped
from pipelines.files import Files
from pipelines.prepare.resize import resize
from pipelines.sources.source import BadSample, Entry, Read, Rejected, Source
from pipelines.prepare.validate import validate
from semsam.data.manifest import Shard, Vocabulary
from semsam.data.row_categories import Names, row_names, to_batch, to_bytes
from semsam.data.schema import SCHEMA_VERSION, to_row
from semsam.data.shard_file import index_name, shard_name, write_shard_file
from semsam.storage import Folder


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the shards, beside the source's files."""

    rows_per_shard: int
    max_long_side: int  # 0: images keep their pixels.
    jpeg_quality: int  # Of images that are resized; the others keep their bytes.


@dataclass(frozen=True)
class SplitTask:
    """One split to prepare.  Picklable: it travels to every worker."""

    source: Source
    files: Files
    split: str
    output: str  # Folder of the shards and the manifest, local or `s3://`.
    options: Options
    code_version: str
    max_rejected: float = 0.01
    redo: bool = False  # Take no finished shard for granted.

    @property
    def name(self) -> str:
        return f"{self.source.dataset}/{self.split}"

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """SHA-256 of everything but the entries that a shard is made from."""
        parts = [
            self.source.dataset,
            self.split,
            self.files.root,
            dataclasses.asdict(self.options),
            self.code_version,
            SCHEMA_VERSION,
            vocabulary.digest(),
        ]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()


@dataclass(frozen=True)
class ShardReport:
    """The sidecar of a shard."""

    shard: Shard
    num_regions: int
    dropped_samples: Dropped
    dropped_regions: Dropped
    made_from: str  # SHA-256 of the split's fingerprint and of the entries.
    # The names of its rows, as a file of `semsam.data.row_categories` in base64; empty where the dataset has no names.
    row_categories: str

    def to_json(self) -> bytes:
        """Indented JSON; `from_json` reads it back."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2)

    @staticmethod
    def from_json(data: bytes) -> ShardReport | None:
        """None for what is no sidecar of this version: its shard is made anew."""
        try:
            return TypeAdapter(ShardReport).validate_json(data)
        except ValidationError:
            return None


def sidecar_name(position: int) -> str:
    """The file name of the sidecar of the shard at a position of its split."""
    return f"shard-{position:05d}.json"


def write_shard(task: SplitTask, position: int, entries: Sequence[Entry]) -> tuple[ShardReport, bool]:
    """The report of a shard, and whether it was found finished; otherwise it is written now.

    A shard counts as finished when its sidecar was made from these entries and options, and the file still has the
    size and digest that the sidecar says.
    """
    vocabulary = task.source.vocabulary()
    made_from = _digest(task.fingerprint(vocabulary), entries)
    folder = Folder(task.output)
    if not task.redo:
        report = _find_finished(folder, position, made_from)
        if report is not None:
            return report, True
    with folder.publishing(shard_name(position)) as draft:
        report, index = _write(task, vocabulary, position, entries, draft, made_from)
    folder.write(index_name(report.shard.path), index)
    folder.write(sidecar_name(position), report.to_json())
    return report, False


def _write(
    task: SplitTask, vocabulary: Vocabulary, position: int, entries: Sequence[Entry], path: Path, made_from: str
) -> tuple[ShardReport, bytes]:
    num_regions = 0
    samples: list[Rejected] = []
    regions: list[Rejected] = []
    names: list[Names] = []

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal num_regions
        for entry in entries:
            try:
                read = make_record(task, vocabulary, entry)
            except BadSample as error:
                samples.append(error.rejected)
                continue
            num_regions += len(read.record.regions)
            regions.extend(read.dropped)
            names.append(row_names(read.record))
            yield to_row(read.record)

    first = position * task.options.rows_per_shard
    shard, index = write_shard_file(path, rows(), position, first, len(entries))
    has_names = vocabulary.objects or vocabulary.parts
    categories = base64.b64encode(to_bytes([to_batch(names)])).decode() if has_names else ""
    report = ShardReport(shard, num_regions, Dropped.of(samples), Dropped.of(regions), made_from, categories)
    return report, index


def make_record(task: SplitTask, vocabulary: Vocabulary, entry: Entry) -> Read:
    """The record of one entry, checked and, where the options say so, made smaller.

    Raises `BadSample`; any other exception is a fault of the code or the storage, and says which image met it.
    """
    try:
        read = validate(task.source.read(task.files, task.split, entry), vocabulary)
        if task.options.max_long_side:
            read = resize(read, task.options.max_long_side, task.options.jpeg_quality)
    except BadSample:
        raise
    except Exception as error:
        raise RuntimeError(f"{entry.image} ({entry.sample_id}): {type(error).__name__}: {error}") from error
    return read


def _find_finished(folder: Folder, position: int, made_from: str) -> ShardReport | None:
    data = folder.read_if_there(sidecar_name(position))
    report = None if data is None else ShardReport.from_json(data)
    if report is None or report.made_from != made_from:
        return None
    name = shard_name(position)
    if folder.size(name) != report.shard.bytes or folder.sha256(name) != report.shard.sha256:
        return None
    return report


def _digest(fingerprint: str, entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for entry in entries:
        for part in (entry.sample_id.encode(), entry.image.encode(), entry.annotations):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
