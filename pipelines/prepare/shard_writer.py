"""One shard: entries in, an Arrow IPC file and its rows' places out, or nothing to do because they are there."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pyarrow as pa

from pipelines.dropped import Dropped
from pipelines.parts import KILLS_ITS_WORKER, Attempt, Part, PartFile, make_part
from pipelines.prepare.resize import resize
from pipelines.prepare.validate import validate
from pipelines.sources.source import BadSample, Entry, Files, Read, Rejected, Source
from semsam.data.manifest import Shard, Vocabulary
from semsam.data.row_categories import row_names, to_batch, to_bytes
from semsam.data.schema import SCHEMA_VERSION, to_row
from semsam.data.shard_file import index_name, shard_name, write_shard_file
from semsam.storage import Folder

# Raised whenever what follows a source (checking, making smaller, writing) gives other shards of the same records.
VERSION = 1


@dataclass(frozen=True)
class ShardOptions:
    """What decides the bytes of the shards, beside the source's files."""

    rows_per_shard: int
    max_long_side: int  # 0: images keep their pixels.
    jpeg_quality: int  # Of images that are resized; the others keep their bytes.
    exclude: tuple[str, ...] = ()  # Ids of images that are left out.


@dataclass(frozen=True)
class SplitTask:
    """One split to prepare.  Picklable: it travels to every worker."""

    source: Source
    files: Files
    split: str
    output: str  # Folder of the shards and the manifest, local or `s3://`.
    options: ShardOptions
    code_version: str
    max_rejected: float = 0.01
    redo: bool = False  # Take no finished shard for granted.
    verify: bool = False  # Read all bytes of finished shards before they are taken for granted.

    @property
    def name(self) -> str:
        return f"{self.source.dataset}/{self.split}"

    def fingerprint(self, vocabulary: Vocabulary) -> str:
        """SHA-256 of everything but the entries that a shard is made from."""
        parts = [
            dataclasses.asdict(self.source),
            self.split,
            self.files.path,
            dataclasses.asdict(self.options),
            VERSION,
            SCHEMA_VERSION,
            vocabulary.digest(),
        ]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()


@dataclass(frozen=True)
class ShardReport:
    """What a shard's sidecar says of it."""

    shard: Shard
    num_regions: int
    dropped_samples: Dropped
    dropped_regions: Dropped
    # The names of its rows, as a file of `semsam.data.row_categories` in base64; empty where the dataset has no names.
    row_categories: str


def part_name(position: int) -> str:
    """The name of the part that a shard is."""
    return shard_name(position).removesuffix(".arrow")


def write_shard(task: SplitTask, position: int, entries: Sequence[Entry]) -> tuple[Part[ShardReport], bool]:
    """A shard with its report, and whether it was found finished; otherwise it is written now."""
    vocabulary, folder = task.source.vocabulary(), Folder(task.output)
    made_from = _digest(task.fingerprint(vocabulary), entries)

    def write(attempt: Attempt) -> tuple[list[PartFile], ShardReport]:
        with folder.publishing(shard_name(position)) as draft:
            report, index = _write(task, vocabulary, position, entries, draft, attempt)
        shard = report.shard
        folder.write(index_name(shard.path), index)
        files = [PartFile(shard.path, shard.bytes, shard.sha256), PartFile.of(index_name(shard.path), index)]
        return files, report

    return make_part(folder, part_name(position), made_from, ShardReport, write, redo=task.redo, verify=task.verify)


@dataclass
class _Counts:
    """What becomes of the entries of a shard."""

    samples: list[Rejected] = field(default_factory=list)
    regions: list[Rejected] = field(default_factory=list)
    records: list[tuple[int, tuple[list[int], list[int]]]] = field(default_factory=list)  # Regions and names.


def _write(
    task: SplitTask, vocabulary: Vocabulary, position: int, entries: Sequence[Entry], path: Path, attempt: Attempt
) -> tuple[ShardReport, bytes]:
    counts = _Counts()
    rows = _rows(task, vocabulary, entries, attempt, counts)
    shard, index = write_shard_file(path, rows, position, position * task.options.rows_per_shard, len(entries))
    has_names = vocabulary.objects or vocabulary.parts
    names = to_bytes([to_batch(names for _, names in counts.records)])
    report = ShardReport(
        shard=shard,
        num_regions=sum(num_regions for num_regions, _ in counts.records),
        dropped_samples=Dropped.of(counts.samples),
        dropped_regions=Dropped.of(counts.regions),
        row_categories=base64.b64encode(names).decode() if has_names else "",
    )
    return report, index


def _rows(
    task: SplitTask, vocabulary: Vocabulary, entries: Sequence[Entry], attempt: Attempt, counts: _Counts
) -> Iterator[pa.RecordBatch]:
    """The rows of the entries that can be used."""
    for entry in entries:
        if entry.sample_id in attempt.left_out:
            counts.samples.append(Rejected(KILLS_ITS_WORKER, entry.sample_id, f"{task.files.path}/{entry.image}"))
            continue
        try:
            with attempt.working_on(entry.sample_id):
                read = make_record(task, vocabulary, entry)
        except BadSample as error:
            counts.samples.append(error.rejected)
            continue
        counts.regions += read.dropped
        counts.records.append((len(read.record.regions), row_names(read.record)))
        yield to_row(read.record)


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


def _digest(fingerprint: str, entries: Sequence[Entry]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for entry in entries:
        for part in (entry.sample_id.encode(), entry.image.encode(), entry.annotations):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
