"""Random access to prepared shards, local or on S3: any record is one ranged read away.

Rows are read with positioned reads rather than through a memory map: both come from the page cache at the same speed,
but a page that is not there yet would stop every Python thread (a fault holds the interpreter's lock), and a file that
is cut short while mapped ends the process instead of raising an error.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc
from jaxtyping import Shaped

from semsam.data.manifest import MANIFEST_NAME, Manifest, Shard
from semsam.data.row_categories import ROW_CATEGORIES_NAME, from_bytes
from semsam.data.schema import Record, check_schema, from_row

MAGIC = b"ARROW1"
# The footer of a thousand rows is 24 KB and the schema 1.5 KB: one read each on almost every shard.
TAIL_BYTES = 64 * 1024
HEAD_BYTES = 8 * 1024
DIGEST_CHUNK = 8 * 1024 * 1024
# `struct Block` of the Arrow format's File.fbs: where one record batch lies in the file.
BLOCK = np.dtype([("offset", "<i8"), ("metadata", "<i4"), ("padding", "<i4"), ("body", "<i8")])
RECORD_BATCHES_FIELD = 3  # Of `table Footer`: version, schema, dictionaries, recordBatches.
# Seconds between attempts at something that storage refuses, on top of what the S3 client itself tries again.
BACKOFF = (0.5, 1.0, 2.0, 4.0)

T = TypeVar("T")


@dataclass(frozen=True)
class _OpenShard:
    path: str
    file: pa.NativeFile
    schema: pa.Schema
    blocks: Shaped[np.ndarray, " rows"]  # dtype BLOCK

    def read(self, row: int) -> Record:
        """The record of one row.  Safe from several threads: `read_at` shares no position and frees the lock."""
        block = self.blocks[row]
        size = int(block["metadata"]) + int(block["body"])
        data = with_retries(lambda: self.file.read_at(size, int(block["offset"])))
        try:
            message = pa.ipc.read_message(pa.py_buffer(data))
            batch = pa.ipc.read_record_batch(message, self.schema)
            batch.validate(full=True)  # Offsets out of bounds would be read without a question.  5 microseconds.
        except (pa.ArrowException, OSError, EOFError) as error:  # OSError: Arrow's for a message that ends too early.
            raise ValueError(f"{self.path}: row {row} cannot be read: {error}") from error
        return from_row(batch)


class Split:
    """The records of one prepared split: `<root>/manifest.json` and the shards that it lists.

    `root` is a local folder or `s3://bucket/folder`.  All methods may be called from several threads.  At most
    `max_open` shards stay open.  A file that does not fit the manifest (cut short, other row count, other schema
    version) raises `ValueError` naming it when one of its rows is asked for; `verify` looks at all bytes.  Storage that
    fails is asked again for some seconds, and then raises `OSError`: that says nothing about the data.
    """

    def __init__(self, root: str, max_open: int = 64) -> None:
        self.root = root.rstrip("/")
        self._filesystem, self._folder = open_filesystem(self.root)
        path = f"{self.root}/{MANIFEST_NAME}"
        try:
            data = self._read_small(MANIFEST_NAME)
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file; run jobs.prepare first") from None
        self.manifest = Manifest.from_json(data, path)
        self.rows_of_shard = tuple(shard.rows for shard in self.manifest.shards)
        self._starts = np.concatenate([[0], np.cumsum(self.rows_of_shard, dtype=np.int64)])
        if self._starts[-1] != self.manifest.num_samples:
            raise ValueError(
                f"{path}: {self.manifest.num_samples} samples, but its shards add up to {self._starts[-1]}"
            )
        self._max_open = max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()

    def __len__(self) -> int:
        return self.manifest.num_samples

    def record(self, index: int) -> Record:
        """The record at a position of the split, shards in the manifest's order."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.root}: no record {index} among {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.record_at(shard, index - int(self._starts[shard]))

    def record_at(self, shard: int, row: int) -> Record:
        """The record at a row of a shard."""
        if not (0 <= shard < len(self.rows_of_shard) and 0 <= row < self.rows_of_shard[shard]):
            raise IndexError(f"{self.root}: no row {row} of shard {shard}")
        return self._shard(shard).read(row)

    def row_categories(self) -> pa.Table:
        """The names of every row, as in `semsam.data.row_categories.ROW_CATEGORIES`.

        Raises `ValueError` for a split without them (no names, or prepared by an older version) and for a file that is
        not the one that the manifest means.
        """
        index = self.manifest.row_categories
        if index is None:
            if not (self.manifest.vocabulary.objects or self.manifest.vocabulary.parts):
                raise ValueError(f"{self.root}: this dataset has no names, so none of its rows is rarer than others")
            raise ValueError(f"{self.root}/{ROW_CATEGORIES_NAME}: no such file; run jobs.prepare again")
        path = f"{self.root}/{index.path}"
        try:
            data = self._read_small(index.path)
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file, though the manifest lists it; run jobs.prepare again") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != index.sha256:
            raise ValueError(f"{path}: SHA-256 is {digest}, the manifest says {index.sha256}")
        table = from_bytes(data, path)
        if len(table) != len(self):
            raise ValueError(f"{path}: {len(table)} rows, the manifest says {len(self)}")
        return table

    def shard_path(self, shard: int) -> str:
        """Full path or URI of a shard, for messages."""
        return f"{self.root}/{self.manifest.shards[shard].path}"

    def verify(self) -> None:
        """Read every byte: raise `ValueError` naming the first file whose size, digest or row count is not right."""
        if self.manifest.vocabulary.digest() != self.manifest.vocabulary_digest:
            raise ValueError(f"{self.root}/{MANIFEST_NAME}: the vocabulary does not fit its digest")
        for position, shard in enumerate(self.manifest.shards):
            opened = self._shard(position)
            digest = hashlib.sha256()
            for start in range(0, shard.bytes, DIGEST_CHUNK):
                size = min(DIGEST_CHUNK, shard.bytes - start)
                digest.update(with_retries(partial(opened.file.read_at, size, start)))
            if digest.hexdigest() != shard.sha256:
                raise ValueError(f"{opened.path}: SHA-256 is {digest.hexdigest()}, the manifest says {shard.sha256}")
        if self.manifest.row_categories is not None:
            self.row_categories()

    def _read_small(self, name: str) -> bytes:
        """The bytes of a file beside the shards."""

        def read() -> bytes:
            with self._filesystem.open_input_stream(f"{self._folder}/{name}") as stream:
                return stream.read()

        return with_retries(read)

    def _shard(self, position: int) -> _OpenShard:
        with self._lock:
            if position in self._open:
                self._open.move_to_end(position)
                return self._open[position]
        # Opened without the lock, for S3 takes its time; two threads may open the same shard and one of them wins.
        path = f"{self._folder}/{self.manifest.shards[position].path}"
        expected = self.manifest.shards[position]
        opened = with_retries(lambda: _open_shard(self._filesystem, path, self.shard_path(position), expected))
        with self._lock:
            self._open[position] = opened
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)  # Closed by its last reader's reference going away.
        return opened


def with_retries(attempt: Callable[[], T]) -> T:
    """What `attempt` returns, asked again after each of `BACKOFF` where storage fails, for most such faults pass.

    A file that is not there is none of them: `FileNotFoundError` is raised at once, other `OSError` after the last try.
    """
    for delay in BACKOFF:
        try:
            return attempt()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(delay)
    return attempt()


def is_prepared(root: str) -> bool:
    """Whether a split's manifest is there, which is written last."""
    filesystem, folder = open_filesystem(root)
    info = filesystem.get_file_info(f"{folder.rstrip('/')}/{MANIFEST_NAME}")
    return info.type == pa.fs.FileType.File


def open_filesystem(root: str) -> tuple[pa.fs.FileSystem, str]:
    """The filesystem of a local path or an `s3://` URI, and the path in it.

    S3 credentials come from the environment, a profile or the machine's role, the endpoint and region from
    `AWS_ENDPOINT_URL_S3` / `AWS_ENDPOINT_URL` and `AWS_REGION` / `AWS_DEFAULT_REGION`, as with boto3.
    """
    if not root.startswith("s3://"):
        if "://" in root:
            raise ValueError(f"{root}: expected a local path or s3://")
        return pa.fs.LocalFileSystem(), root
    path = root.removeprefix("s3://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint:
        region = pa.fs.resolve_s3_region(path.partition("/")[0])
    scheme, _, host = (endpoint or "https://").partition("://")
    retries = pa.fs.AwsStandardS3RetryStrategy(max_attempts=10)
    options = {"region": region} if region else {}
    if host:
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme}
    return pa.fs.S3FileSystem(retry_strategy=retries, **options), path


def _open_shard(filesystem: pa.fs.FileSystem, path: str, shown: str, expected: Shard) -> _OpenShard:
    try:
        file = filesystem.open_input_file(path)
        size = file.size()
    except FileNotFoundError:
        raise ValueError(f"{shown}: no such file, though the manifest lists it") from None
    if size != expected.bytes:
        what = "cut short" if size < expected.bytes else "too long"
        raise ValueError(f"{shown}: {what}: {size} bytes, the manifest says {expected.bytes}")
    head = file.read_at(min(HEAD_BYTES, size), 0)
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(head)[8:])  # After the magic and its padding.
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{shown}: not an Arrow IPC file: {error}") from error
    try:
        blocks = _record_batch_blocks(file, size)
    except ValueError as error:
        raise ValueError(f"{shown}: not an Arrow IPC file: {error}") from error
    check_schema(schema, shown)
    if len(blocks) != expected.rows:
        raise ValueError(f"{shown}: {len(blocks)} rows, the manifest says {expected.rows}")
    return _OpenShard(shown, file, schema, blocks)


def _record_batch_blocks(file: pa.NativeFile, size: int) -> Shaped[np.ndarray, " rows"]:
    """Where each record batch lies, from the file's footer (a flatbuffer, laid out as the Arrow format prescribes).

    pyarrow's own file reader keeps these offsets to itself and needs two reads per row, which on S3 is two round trips.
    """
    tail = file.read_at(min(TAIL_BYTES, size), max(0, size - TAIL_BYTES))
    if tail[-len(MAGIC) :] != MAGIC:
        raise ValueError("it does not end with ARROW1")
    end = size - len(MAGIC) - 4
    length = _integer(tail, len(tail) - len(MAGIC) - 4)
    footer = file.read_at(length, end - length) if length > len(tail) - 10 else tail[-10 - length : -10]
    table = _integer(footer, 0)
    vtable = table - _integer(footer, table)
    entry = vtable + 4 + 2 * RECORD_BATCHES_FIELD
    field = _integer(footer, entry, 2) if _integer(footer, vtable, 2) > entry - vtable else 0
    if field == 0:  # Left out by the writer: no rows.
        return np.empty(0, BLOCK)
    vector = table + field + _integer(footer, table + field)
    blocks = np.frombuffer(footer, BLOCK, _integer(footer, vector), vector + 4)
    if (blocks["offset"] < 0).any() or (blocks["offset"] + blocks["metadata"] + blocks["body"] > end).any():
        raise ValueError("a row lies outside the file")
    return blocks


def _integer(data: bytes, position: int, width: int = 4) -> int:
    if not 0 <= position <= len(data) - width:
        raise ValueError("damaged footer")
    return int.from_bytes(data[position : position + width], "little", signed=width == 4)
