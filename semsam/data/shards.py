"""Random access to prepared shards, local or on S3: any record is one ranged read away.

Rows are read with positioned reads rather than through a memory map: both come from the page cache at the same speed,
but a page that is not there yet would stop every Python thread (a fault holds the interpreter's lock), and a file that
is cut short while mapped ends the process instead of raising an error.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from semsam.data.manifest import MANIFEST_NAME, Manifest, Shard
from semsam.data.row_categories import ROW_CATEGORIES_NAME, from_bytes
from semsam.data.schema import Record
from semsam.data.shard_file import decode_row, index_name, read_index
from semsam.storage import CHUNK, Folder, NoSuchFileError, RangeFile


@dataclass(frozen=True)
class _OpenShard:
    file: RangeFile
    rows: Shaped[np.ndarray, " rows"]  # dtype `shard_file.ROW`

    def read(self, row: int) -> Record:
        """The record of one row.  Safe from several threads."""
        place = self.rows[row]
        size, offset = int(place["size"]), int(place["offset"])
        try:
            data = self.file.read_at(size, offset)
        except NoSuchFileError as error:
            raise ValueError(f"{error}, though the manifest lists it") from None
        if len(data) < size:
            raise ValueError(f"{self.file.path}: row {row} cannot be read: the file was cut short")
        try:
            return decode_row(data, int(place["crc32"]))
        except ValueError as error:
            raise ValueError(f"{self.file.path}: row {row} cannot be read: {error}") from error


class Split:
    """The records of one prepared split: `<root>/manifest.json` and the shards that it lists.

    `root` is a local folder or `s3://bucket/folder`.  All methods may be called from several threads.  At most
    `max_open` shards stay open.  A file that does not fit the manifest (cut short, other row count, other bytes) raises
    `ValueError` naming it when one of its rows is asked for; `verify` looks at all bytes.  Storage that fails is asked
    again for some seconds, and then raises `OSError`: that says nothing about the data.
    """

    def __init__(self, root: str, max_open: int = 64) -> None:
        self._folder = Folder(root)
        self.root = self._folder.path
        path = f"{self.root}/{MANIFEST_NAME}"
        try:
            data = self._folder.read(MANIFEST_NAME)
        except NoSuchFileError:
            raise ValueError(f"{path}: no such file; run jobs.prepare first") from None
        self.manifest = Manifest.from_json(data, path)
        self.rows_of_shard = tuple(shard.rows for shard in self.manifest.shards)
        self._starts = np.concatenate([[0], np.cumsum(self.rows_of_shard, dtype=np.int64)])
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

    def position(self, shard: int, row: int) -> int:
        """The position in the split, as `record` takes it, of a row of a shard."""
        return int(self._starts[shard]) + row

    def row_categories(self) -> pa.Table:
        """The names of every row, as in `semsam.data.row_categories.ROW_CATEGORIES`.

        Raises `ValueError` for a split without names and for a file that is not the one that the manifest means.
        """
        index = self.manifest.row_categories
        if index is None:
            raise ValueError(f"{self.root}: this dataset has no names, so none of its rows is rarer than others")
        path = f"{self.root}/{ROW_CATEGORIES_NAME}"
        table = from_bytes(self._vouched(ROW_CATEGORIES_NAME, index.sha256), path)
        if len(table) != len(self):
            raise ValueError(f"{path}: {len(table)} rows, the manifest says {len(self)}")
        return table

    def shard_path(self, shard: int) -> str:
        """Full path or URI of a shard, for messages."""
        return f"{self.root}/{self.manifest.shards[shard].path}"

    def verify(self) -> None:
        """Read every byte: raise `ValueError` naming the first file whose size, digest or row count is not right."""
        for position, shard in enumerate(self.manifest.shards):
            file = self._shard(position).file
            self._check_size(shard, self._folder.size(shard.path))
            digest = hashlib.sha256()
            for start in range(0, shard.bytes, CHUNK):
                digest.update(file.read_at(min(CHUNK, shard.bytes - start), start))
            if digest.hexdigest() != shard.sha256:
                raise ValueError(f"{file.path}: SHA-256 is {digest.hexdigest()}, the manifest says {shard.sha256}")
        if self.manifest.row_categories is not None:
            self.row_categories()

    def _vouched(self, name: str, sha256: str) -> bytes:
        """A small file beside the shards, of which the manifest has the digest."""
        path = f"{self.root}/{name}"
        try:
            data = self._folder.read(name)
        except NoSuchFileError:
            raise ValueError(
                f"{path}: no such file, though the manifest lists it; run jobs.prepare with redo=true"
            ) from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != sha256:
            raise ValueError(f"{path}: SHA-256 is {digest}, the manifest says {sha256}")
        return data

    def _shard(self, position: int) -> _OpenShard:
        with self._lock:
            if position in self._open:
                self._open.move_to_end(position)
                return self._open[position]
        # Opened without the lock, for S3 takes its time; two threads may open the same shard and one of them wins.
        opened = self._open_shard(self.manifest.shards[position])
        with self._lock:
            self._open[position] = opened
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)  # Closed by its last reader's reference going away.
        return opened

    def _open_shard(self, shard: Shard) -> _OpenShard:
        """Of S3 this asks for the rows' file alone; what is wrong with the shard is found where a row is read."""
        try:
            file = self._folder.open(shard.path, shard.bytes)
        except NoSuchFileError as error:
            raise ValueError(f"{error}, though the manifest lists it") from None
        self._check_size(shard, file.size)
        name = index_name(shard.path)
        rows = read_index(self._vouched(name, shard.index_sha256), shard.rows, shard.bytes, f"{self.root}/{name}")
        return _OpenShard(file, rows)

    def _check_size(self, shard: Shard, size: int | None) -> None:
        if size is None:
            raise ValueError(f"{self.root}/{shard.path}: no such file, though the manifest lists it")
        if size != shard.bytes:
            what = "cut short" if size < shard.bytes else "too long"
            raise ValueError(f"{self.root}/{shard.path}: {what}: {size} bytes, the manifest says {shard.bytes}")


def open_split(data: str, dataset: str, split: str) -> Split:
    """A split as jobs.prepare leaves it: `<data>/<dataset>/<split>`.  `ValueError` where another one lies there."""
    opened = Split(f"{data}/{dataset}/{split}")
    found = opened.manifest
    if (found.dataset, found.split) != (dataset, split):
        raise ValueError(
            f"{opened.root}/{MANIFEST_NAME}: this is {found.dataset}/{found.split}, not {dataset}/{split}; "
            "was a folder moved?"
        )
    return opened


def is_prepared(root: str) -> bool:
    """Whether a split's manifest is there, which is written last."""
    return Folder(root).exists(MANIFEST_NAME)
