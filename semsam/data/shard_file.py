"""One shard on disk: an Arrow IPC file with a record batch per row, and beside it where each row lies and its checksum.

    shard-00000.arrow      readable by anything that reads Arrow
    shard-00000.rows       offset, size and CRC-32 of each row's bytes: any row is one read away, and one that is not
                           what was written is noticed where it is read

The manifest has the digests of both, so a reader that has found the rows' file in order can trust what it reads.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from jaxtyping import Shaped

from semsam.data.manifest import Shard
from semsam.data.schema import RECORD, Record, from_row

ROW = np.dtype([("offset", "<i8"), ("size", "<i8"), ("crc32", "<u4")])
_MAGIC_BYTES = 8  # "ARROW1" and its padding, before the schema.


def shard_name(position: int) -> str:
    """The file name of the shard at a position of its split."""
    return f"shard-{position:05d}.arrow"


def index_name(shard: str) -> str:
    """The file name of a shard's rows."""
    return f"{shard.removesuffix('.arrow')}.rows"


def write_shard_file(
    path: Path, rows: Iterable[pa.RecordBatch], position: int, first_entry: int, num_entries: int
) -> tuple[Shard, bytes]:
    """Write a shard to `path`, a row for each batch, and return the manifest's word for it and its rows' file.

    Equal rows give equal bytes.  The rows' file, of name `index_name(shard.path)`, is the caller's to write.
    """
    # No compression, so that a row is read without its neighbours.
    options = pa.ipc.IpcWriteOptions(compression=None)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, RECORD, options=options) as writer:
        ends = []
        for row in rows:
            writer.write_batch(row)
            ends.append(sink.tell())
    data = path.read_bytes()
    reader = pa.BufferReader(data)
    reader.seek(_MAGIC_BYTES)
    pa.ipc.read_message(reader)  # The schema: rows begin where it ends.
    starts = [reader.tell(), *ends][: len(ends)]
    index = np.empty(len(ends), ROW)
    index["offset"], index["size"] = starts, np.subtract(ends, starts)
    index["crc32"] = [zlib.crc32(data[start:end]) for start, end in zip(starts, ends, strict=True)]
    index_data = index.tobytes()
    shard = Shard(
        path=shard_name(position),
        rows=len(ends),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        index_sha256=hashlib.sha256(index_data).hexdigest(),
        first_entry=first_entry,
        entries=num_entries,
    )
    return shard, index_data


def read_index(data: bytes, num_rows: int, shard_bytes: int, path: str) -> Shaped[np.ndarray, " rows"]:
    """The rows of a shard, dtype `ROW`; `ValueError`, naming the rows' file, where they do not fit the shard."""
    if len(data) != num_rows * ROW.itemsize:
        raise ValueError(f"{path}: {len(data)} bytes, which is not {num_rows} rows of {ROW.itemsize}")
    rows = np.frombuffer(data, ROW)
    ends = rows["offset"] + rows["size"]
    if len(rows) and (rows["offset"].min() < 0 or rows["size"].min() <= 0 or ends.max() > shard_bytes):
        raise ValueError(f"{path}: a row lies outside its shard of {shard_bytes} bytes")
    return rows


def decode_row(data: bytes, crc32: int) -> Record:
    """The record in a row's bytes; `ValueError` where they are not those that were written."""
    if zlib.crc32(data) != crc32:
        raise ValueError("its checksum is another: the bytes are not those that were written")
    try:
        message = pa.ipc.read_message(pa.py_buffer(data))
        batch = pa.ipc.read_record_batch(message, RECORD)
        batch.validate(full=True)  # Offsets out of bounds would be read without a question.  5 microseconds.
    except (pa.ArrowException, OSError, EOFError) as error:  # OSError: Arrow's for a message that ends too early.
        raise ValueError(str(error)) from error
    return from_row(batch)
