"""Which names each row of a split shows: one small file beside the shards, and the repeat factors made of it.

A training that repeats images of rare classes needs the names of all images before its first step, and reading them
from the shards would mean reading every image.  `jobs.prepare` therefore leaves `row_categories.arrow` beside the
manifest, which has its digest: an Arrow IPC file with a record batch per shard, in the manifest's order, and in it a
row for each of the shard's rows.  A split whose vocabulary is empty has no such file.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
from jaxtyping import Float64

from semsam.data.schema import SCHEMA_VERSION, Record

ROW_CATEGORIES_NAME = "row_categories.arrow"

ROW_CATEGORIES = pa.schema(
    [
        # Indices into the manifest's vocabulary, each once and in order, of all regions that are not crowds.
        pa.field("objects", pa.list_(pa.int32()), nullable=False),
        pa.field("parts", pa.list_(pa.int32()), nullable=False),
    ],
    metadata={"semsam_schema_version": str(SCHEMA_VERSION)},
)

Names = tuple[list[int], list[int]]  # Of one row: objects and parts.


def row_names(record: Record) -> Names:
    """The object and the part names that an image shows, as in `ROW_CATEGORIES`."""
    regions = [region for region in record.regions if not region.is_crowd]
    objects = {region.object_category for region in regions if region.object_category is not None}
    parts = {region.part_category for region in regions if region.part_category is not None}
    return sorted(objects), sorted(parts)


def to_batch(rows: Iterable[Names]) -> pa.RecordBatch:
    """The names of a shard's rows."""
    columns = list(zip(*rows, strict=True)) or [(), ()]
    types = ROW_CATEGORIES.types
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ROW_CATEGORIES)


def to_bytes(batches: Iterable[pa.RecordBatch]) -> bytes:
    """A file of these batches; equal batches give equal bytes."""
    file = io.BytesIO()
    with pa.ipc.new_file(file, ROW_CATEGORIES, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return file.getvalue()


def from_bytes(data: bytes, path: str) -> pa.Table:
    """The table that `to_bytes` wrote, a chunk for each batch; `ValueError`, naming `path`, for anything else."""
    try:
        with pa.ipc.open_file(pa.py_buffer(data)) as reader:
            table = reader.read_all()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not an Arrow IPC file: {error}") from None
    if not table.schema.equals(ROW_CATEGORIES, check_metadata=True):
        raise ValueError(f"{path}: other columns or another version than semsam.data.row_categories has")
    return table


def repeat_factors(categories: pa.Table, threshold: float) -> Float64[np.ndarray, " rows"]:
    """How often each row is to come in an epoch, 1 or more: LVIS's repeat factor sampling (arXiv 1908.03195).

    With f(c) the share of the rows that show c, a category asks for max(1, sqrt(threshold / f(c))), and a row comes as
    often as the most wanting of its categories asks.  Object and part names count alike; a row without any comes once.
    """
    factors = np.ones(len(categories))
    for column in categories.columns:
        column = column.combine_chunks()
        names = pc.list_flatten(column).to_numpy()
        if len(names) == 0:
            continue
        wanted = np.sqrt(threshold * len(categories) / np.bincount(names)[names])
        lengths = pc.list_value_length(column).to_numpy()
        has_names = lengths > 0
        starts = (np.cumsum(lengths) - lengths)[has_names]
        factors[has_names] = np.maximum(factors[has_names], np.maximum.reduceat(wanted, starts))
    return factors
