"""Any record of a prepared split is one read away, and a damaged file is refused by name."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem

import semsam.storage as storage_module
from semsam.data.schema import Kind, Record, Region, from_row, to_row
from semsam.data.shard_file import read_index
from semsam.data.shards import Split, open_split
from semsam.storage import Folder, open_filesystem
from tests.prepared_split import edit_manifest


def record(number: int, num_regions: int = 2) -> Record:
    regions = tuple(
        Region(
            annotation_id=f"{number}/{j}",
            rle=None if j % 2 else b"04" * (j + 1),
            box_xyxy=(0.0, 1.0, 2.5, float(j)),
            area=3.5,
            kind=Kind.PART if j % 2 else Kind.INSTANCE,
            object_category=j,
            part_category=None if j % 2 == 0 else 0,
            parent=0 if j % 2 else None,
            is_thing=j % 3 == 0,
            is_crowd=j == 4,
        )
        for j in range(num_regions)
    )
    checked = None if number % 2 else tuple(range(number))
    return Record(
        "paco", "train", f"{number:012d}", bytes([number]) * 1000, 4, 5, 8, 10, regions, checked, checked, checked
    )


SHARDS = [[record(0), record(1, 0), record(2, 5)], [], [record(3), record(4, 1)]]
RECORDS = [r for shard in SHARDS for r in shard]


@pytest.fixture
def folder(tmp_path: Path, write_split: Callable[..., Path]) -> Path:
    return write_split(tmp_path / "paco" / "train", SHARDS)


def test_every_record_reads_back(folder: Path) -> None:
    split = Split(str(folder))
    assert len(split) == 5
    assert split.rows_of_shard == (3, 0, 2)
    assert [split.record(i) for i in range(5)] == RECORDS
    assert [split.record_at(s, r) for s, shard in enumerate(SHARDS) for r in range(len(shard))] == RECORDS
    split.verify()


def test_a_row_in_the_middle_of_a_batch_reads_back() -> None:
    together = pa.Table.from_batches([to_row(r) for r in RECORDS]).combine_chunks().to_batches()[0]
    assert [from_row(together, i) for i in range(5)] == RECORDS


def test_a_shard_with_a_footer_longer_than_the_first_read(tmp_path: Path, write_split: Callable[..., Path]) -> None:
    small = [dataclasses.replace(record(1, 0), sample_id=f"{i:012d}") for i in range(3000)]
    split = Split(str(write_split(tmp_path / "paco" / "train", [small])))
    assert split.record(2999).sample_id == "000000002999"
    assert split.record(0) == small[0]


def test_few_shards_stay_open(tmp_path: Path, write_split: Callable[..., Path]) -> None:
    split = Split(str(write_split(tmp_path / "paco" / "train", [[record(i)] for i in range(6)])), max_open=2)
    order = [0, 1, 2, 3, 4, 5, 5, 0, 3, 0]
    assert [split.record(i).sample_id for i in order] == [f"{i:012d}" for i in order]
    assert list(split._open) == [3, 0]


def test_threads_read_the_same_as_one(tmp_path: Path, write_split: Callable[..., Path]) -> None:
    records = [record(i) for i in range(40)]
    split = Split(str(write_split(tmp_path / "paco" / "train", [records[i : i + 4] for i in range(0, 40, 4)])), 3)
    order = [i * 7 % 40 for i in range(400)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(split.record, order)) == [records[i] for i in order]


@pytest.mark.parametrize("index", [-1, 5])
def test_a_record_that_is_not_there_is_an_index_error(folder: Path, index: int) -> None:
    with pytest.raises(IndexError, match=r"no record -?\d among 5"):
        Split(str(folder)).record(index)
    with pytest.raises(IndexError, match="no row 2 of shard 2"):
        Split(str(folder)).record_at(2, 2)


@pytest.mark.parametrize("keep", [0, 3, 20, 2000, -1])
def test_a_shard_cut_short_is_refused_by_name(folder: Path, keep: int) -> None:
    path = folder / "shard-00002.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    split = Split(str(folder))
    assert split.record(0) == RECORDS[0]
    message = rf"shard-00002.arrow: cut short: {len(data[:keep])} bytes, the manifest says {len(data)}"
    with pytest.raises(ValueError, match=message):
        split.record(4)
    with pytest.raises(ValueError, match=message):
        split.verify()


def test_a_shard_cut_short_while_it_is_open_is_refused_by_name(folder: Path) -> None:
    split = Split(str(folder))
    split.record(0)
    path = folder / "shard-00000.arrow"
    path.write_bytes(path.read_bytes()[:2500])
    with pytest.raises(ValueError, match=r"shard-00000.arrow: row 2 cannot be read"):
        split.record(2)


def test_a_missing_shard_is_refused_by_name(folder: Path) -> None:
    (folder / "shard-00000.arrow").unlink()
    with pytest.raises(ValueError, match=r"shard-00000.arrow: no such file"):
        Split(str(folder)).record(0)


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.97, 0.999])
def test_a_shard_with_damaged_bytes_never_passes(folder: Path, place: float) -> None:
    path = folder / "shard-00000.arrow"
    data = bytearray(path.read_bytes())
    start = int(place * len(data))
    data[start : start + 16] = bytes(byte ^ 0xFF for byte in data[start : start + 16])
    path.write_bytes(data)
    split = Split(str(folder))
    with pytest.raises(ValueError, match=r"shard-00000.arrow: "):
        split.verify()


def test_a_row_with_damaged_offsets_is_refused_by_name(folder: Path) -> None:
    path = folder / "shard-00000.arrow"
    data = path.read_bytes()
    length = (1000).to_bytes(8, "little")  # Where the image of each row ends: its second offset.
    assert data.count(length) >= 3
    path.write_bytes(data.replace(length, (2**40).to_bytes(8, "little")))
    with pytest.raises(ValueError, match=r"shard-00000.arrow: row 0 cannot be read"):
        Split(str(folder)).record(0)


def test_another_number_of_rows_is_refused_by_name(folder: Path) -> None:
    shards = orjson.loads((folder / "manifest.json").read_bytes())["shards"]
    shards[0]["rows"] = 2
    edit_manifest(folder, shards=shards, num_samples=4)
    with pytest.raises(ValueError, match=r"shard-00000.rows: 60 bytes, which is not 2 rows of 20"):
        Split(str(folder)).record(0)


def test_shards_of_an_older_version_are_refused_with_what_to_do(folder: Path) -> None:
    edit_manifest(folder, schema_version=1)
    with pytest.raises(ValueError, match=r"manifest.json: schema version 1, expected 2: .* run jobs.prepare again"):
        Split(str(folder))


def test_any_flipped_bit_of_a_row_is_noticed_when_it_is_read(folder: Path) -> None:
    path = folder / "shard-00000.arrow"
    data = path.read_bytes()
    rows = read_index((folder / "shard-00000.rows").read_bytes(), 3, len(data), "rows")
    for place in range(int(rows["offset"][0]), int(rows["offset"][2] + rows["size"][2]), 61):
        row = int(np.searchsorted(rows["offset"], place, side="right")) - 1
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        with pytest.raises(ValueError, match=rf"shard-00000.arrow: row {row} cannot be read: its checksum is another"):
            Split(str(folder)).record(row)


def test_shards_that_changed_places_are_noticed(tmp_path: Path, write_split: Callable[..., Path]) -> None:
    folder = write_split(
        tmp_path / "paco" / "train", [[record(1)], [dataclasses.replace(record(1), sample_id="9" * 12)]]
    )
    for suffix in ("arrow", "rows"):
        one, other = folder / f"shard-00000.{suffix}", folder / f"shard-00001.{suffix}"
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"shard-0000\d\.(arrow|rows): "):
            Split(str(folder)).record(0)


def test_rows_that_the_manifest_does_not_mean_are_refused_by_name(folder: Path) -> None:
    path = folder / "shard-00000.rows"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(ValueError, match=r"shard-00000.rows: SHA-256 is \w+, the manifest says"):
        Split(str(folder)).record(0)
    path.unlink()
    with pytest.raises(ValueError, match=r"shard-00000.rows: no such file, though the manifest lists it"):
        Split(str(folder)).record(0)


def test_a_split_in_another_ones_place_is_refused(folder: Path) -> None:
    assert len(open_split(str(folder.parents[1]), "paco", "train")) == 5
    for dataset, split in (("paco", "val"), ("ade20k", "train")):
        shutil.copytree(folder, folder.parents[1] / dataset / split)
        with pytest.raises(ValueError, match=rf"manifest.json: this is paco/train, not {dataset}/{split}"):
            open_split(str(folder.parents[1]), dataset, split)


def test_the_names_of_all_rows_are_read_from_one_file(folder: Path) -> None:
    names = Split(str(folder)).row_categories()
    assert names.to_pylist() == [
        {"objects": [r.object_category for r in one.regions if not r.is_crowd], "parts": [0] * (len(one.regions) > 1)}
        for one in RECORDS
    ]


def test_names_that_the_manifest_does_not_mean_are_refused_by_name(folder: Path) -> None:
    path = folder / "row_categories.arrow"
    data = path.read_bytes()
    path.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    split = Split(str(folder))
    for read in (split.row_categories, split.verify):
        with pytest.raises(ValueError, match=r"train/row_categories.arrow: SHA-256 is \w+, the manifest says"):
            read()
    path.unlink()
    with pytest.raises(ValueError, match=r"train/row_categories.arrow: no such file, though the manifest lists it"):
        split.row_categories()


def test_names_of_another_number_of_rows_are_refused_by_name(folder: Path) -> None:
    shards = orjson.loads((folder / "manifest.json").read_bytes())["shards"]
    edit_manifest(folder, shards=shards[:1], num_samples=3)
    with pytest.raises(ValueError, match=r"row_categories.arrow: 5 rows, the manifest says 3"):
        Split(str(folder)).row_categories()


class FailingFiles(LocalFileSystem):
    """Local files of which the next `failures` reads fail."""

    cachable = False
    failures = 0

    def open(self, path: str, mode: str = "rb", **options: object) -> BytesIO:
        return FailingFile(Path(path).read_bytes(), self)


class FailingFile(BytesIO):
    def __init__(self, data: bytes, storage: FailingFiles) -> None:
        super().__init__(data)
        self.storage = storage

    def read(self, size: int | None = -1) -> bytes:
        if self.storage.failures:
            self.storage.failures -= 1
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: connection reset by peer")
        return super().read(size)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> FailingFiles:
    files = FailingFiles()
    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(files))
    monkeypatch.setattr(storage_module, "open_filesystem", lambda root: (filesystem, root))
    monkeypatch.setattr(storage_module, "BACKOFF", (0.0, 0.0))
    return files


def test_storage_that_fails_twice_is_asked_again(folder: Path, storage: FailingFiles) -> None:
    storage.failures = 2
    split = Split(str(folder))
    for index in (0, 1, 4, 3):  # Opens a shard, reads from an open one, and so again.
        assert storage.failures == 0
        storage.failures = 2
        assert split.record(index) == RECORDS[index]
    storage.failures = 2
    split.verify()


def test_storage_that_goes_on_failing_is_no_fault_of_the_data(folder: Path, storage: FailingFiles) -> None:
    split = Split(str(folder))
    split.record(0)
    for failing in (lambda: Split(str(folder)), lambda: split.record(1), lambda: split.record(4)):
        storage.failures = 3
        with pytest.raises(OSError, match="connection reset"):
            failing()
        assert storage.failures == 0


def test_a_split_without_manifest_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"manifest.json: no such file; run jobs.prepare first"):
        Split(str(tmp_path))


def test_a_manifest_that_contradicts_itself_is_refused(folder: Path) -> None:
    edit_manifest(folder, num_samples=7)
    with pytest.raises(ValueError, match=r"manifest.json: 7 samples, but its shards add up to 5"):
        Split(str(folder))


def test_a_vocabulary_edited_by_hand_does_not_verify(folder: Path) -> None:
    edit_manifest(folder, vocabulary={"objects": ["lorry"], "parts": [], "things": [], "object_parts": []})
    with pytest.raises(ValueError, match=r"manifest.json: the vocabulary does not fit its digest"):
        Split(str(folder))


def test_a_split_on_s3_reads_as_a_local_one(folder: Path, bucket: str) -> None:
    filesystem, path = open_filesystem(f"{bucket}/paco")
    pa.fs.copy_files(str(folder), f"{path}/train", destination_filesystem=filesystem)
    split = Split(f"{bucket}/paco/train/")
    assert [split.record(i) for i in range(5)] == RECORDS
    split.verify()
    assert split.row_categories() == Split(str(folder)).row_categories()
    with pytest.raises(ValueError, match=rf"{bucket}/paco/val/manifest.json: no such file"):
        Split(f"{bucket}/paco/val")
    shard = f"{path}/train/shard-00000.arrow"
    pa.fs.copy_files(str(folder / "manifest.json"), shard, destination_filesystem=filesystem)
    with pytest.raises(ValueError, match=rf"{bucket}/paco/train/shard-00000.arrow: row 0 cannot be read: "):
        Split(f"{bucket}/paco/train").record(0)
    with pytest.raises(ValueError, match=rf"{bucket}/paco/train/shard-00000.arrow: too long|cut short"):
        Split(f"{bucket}/paco/train").verify()
    Folder(f"{bucket}/paco/train").remove("shard-00000.arrow")
    for read in (Split.verify, lambda split: split.record(0)):
        with pytest.raises(ValueError, match=r"shard-00000.arrow: no such file, though the manifest lists it"):
            read(Split(f"{bucket}/paco/train"))
