"""A shard is the same bytes every time, holds its entries in order, and is made once."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.parts import find_part
from pipelines.prepare.shard_writer import ShardOptions, ShardReport, SplitTask, write_shard
from pipelines.sources.sa1b import Sa1b
from pipelines.sources.source import Entry, Files, Read
from semsam.data import rle
from semsam.data.images import decode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.row_categories import from_bytes
from semsam.data.schema import Kind, Record, from_row
from semsam.storage import Folder, existing_folder

WriteSa1b = Callable[..., Path]


def task_of(root: Path, output: Path, max_long_side: int = 0) -> SplitTask:
    return SplitTask(
        Sa1b(), existing_folder(str(root)), "train", str(output), ShardOptions(4, max_long_side, 92), "1.0"
    )


def entries_of(task: SplitTask) -> list[Entry]:
    return task.source.index(task.files, task.split).entries


def records_of(folder: Path, position: int = 0) -> list[Record]:
    with pa.ipc.open_file(str(folder / f"shard-{position:05d}.arrow")) as reader:
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    assert all(batch.num_rows == 1 for batch in batches)
    return [from_row(batch) for batch in batches]


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.iterdir())}


def test_rows_come_in_the_order_of_the_entries(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    task = task_of(write_sa1b(), tmp_path / "out")
    part, found = write_shard(task, 1, entries_of(task)[4:])
    report = part.report
    assert not found
    assert [record.sample_id for record in records_of(tmp_path / "out", 1)] == [f"{i:012d}" for i in (5, 6, 7)]
    assert (report.shard.first_entry, report.shard.entries, report.shard.rows, report.num_regions) == (4, 3, 3, 9)
    assert report.shard.bytes == (tmp_path / "out" / "shard-00001.arrow").stat().st_size
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["shard-00001.arrow", "shard-00001.json", "shard-00001.rows"]


def test_what_is_not_resized_keeps_image_and_masks_bit_for_bit(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    root = write_sa1b(2)
    task = task_of(root, tmp_path / "out")
    write_shard(task, 0, entries_of(task))
    for record in records_of(tmp_path / "out"):
        stem = root / "train" / f"sa_{int(record.sample_id)}"
        assert record.image == stem.with_suffix(".jpg").read_bytes()
        text = stem.with_suffix(".json").read_bytes()
        assert all(region.rle is not None and region.rle in text for region in record.regions)


class Named(Sa1b):
    """Every region has its image's number as name."""

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(tuple("abcdefghi"), (), (True,) * 9)

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        read = super().read(files, split, entry)
        number = int(entry.sample_id)
        regions = [r._replace(kind=Kind.INSTANCE, object_category=number) for r in read.record.regions]
        return replace(read, record=replace(read.record, regions=tuple(regions)))


def test_a_sidecar_has_the_names_of_its_rows_and_of_none_that_was_rejected(
    write_sa1b: WriteSa1b, tmp_path: Path
) -> None:
    root = write_sa1b()
    (root / "train" / "sa_6.jpg").write_bytes(b"")
    task = replace(task_of(root, tmp_path / "out"), source=Named())
    part, _ = write_shard(task, 1, entries_of(task)[4:])
    report = part.report
    names = from_bytes(base64.b64decode(report.row_categories), "sidecar")
    assert names.to_pylist() == [{"objects": [number], "parts": []} for number in (5, 7)]
    assert find_part(Folder(task.output), "shard-00001", part.made_from, ShardReport) == part


def test_a_dataset_without_names_lists_none(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    task = task_of(write_sa1b(2), tmp_path / "out")
    assert write_shard(task, 0, entries_of(task))[0].report.row_categories == ""


def test_a_long_side_limit_makes_images_and_masks_smaller(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    task = task_of(write_sa1b(2), tmp_path / "out", max_long_side=30)
    write_shard(task, 0, entries_of(task))
    for record in records_of(tmp_path / "out"):
        assert decode_jpeg(record.image).shape == (20, 30, 3)
        assert (record.height, record.width, record.original_height, record.original_width) == (20, 30, 40, 60)
        assert all(rle.decode(region.rle or b"", 20, 30).any() for region in record.regions)


@pytest.mark.parametrize("max_long_side", [0, 30])
def test_the_same_input_gives_the_same_bytes_wherever_it_lies(
    write_sa1b: WriteSa1b, tmp_path: Path, max_long_side: int
) -> None:
    digests = set()
    for place in ("a", "b"):
        task = task_of(write_sa1b(root=tmp_path / place / "sa1b"), tmp_path / place / "out", max_long_side)
        digests.add(write_shard(task, 0, entries_of(task)[:4])[0].report.shard.sha256)
    assert len(digests) == 1


def test_a_rejected_image_leaves_a_gap_and_is_counted(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    root = write_sa1b()
    jpeg = root / "train" / "sa_2.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-300])
    (root / "train" / "sa_3.jpg").unlink()
    task = task_of(root, tmp_path / "out")
    report = write_shard(task, 0, entries_of(task)[:4])[0].report
    assert [record.sample_id for record in records_of(tmp_path / "out")] == ["000000000001", "000000000004"]
    assert report.dropped_samples.counts == {"broken image": 1, "missing image": 1}
    assert report.dropped_samples.examples["missing image"][0].sample_id == "000000000003"
    assert (report.shard.rows, report.shard.entries) == (2, 4)
    next_report = write_shard(task, 1, entries_of(task)[4:])[0].report
    assert next_report.shard.first_entry == 4


def test_a_shard_of_rejected_images_alone_is_an_empty_file(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    root = write_sa1b(2)
    for jpeg in root.glob("train/*.jpg"):
        jpeg.write_bytes(b"")
    task = task_of(root, tmp_path / "out")
    report = write_shard(task, 0, entries_of(task))[0].report
    assert records_of(tmp_path / "out") == []
    assert report.dropped_samples.total() == 2


def test_a_finished_shard_is_left_alone(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    task = task_of(write_sa1b(), tmp_path / "out")
    first, _ = write_shard(task, 0, entries_of(task)[:4])
    before = state_of(tmp_path / "out")
    again, found = write_shard(task, 0, entries_of(task)[:4])
    assert found
    assert again == first
    assert state_of(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["options", "entries", "root", "version", "redo"])
def test_a_shard_made_from_something_else_is_made_anew(write_sa1b: WriteSa1b, tmp_path: Path, what: str) -> None:
    root = write_sa1b()
    task = task_of(root, tmp_path / "out")
    entries = entries_of(task)
    write_shard(task, 0, entries[:4])
    changed = {
        "options": replace(task, options=replace(task.options, max_long_side=30)),
        "entries": task,
        "root": replace(task, files=existing_folder(f"{root}/../sa1b")),
        "version": replace(task, source=Sa1b(version=99)),
        "redo": replace(task, redo=True),
    }[what]
    _, found = write_shard(changed, 0, entries[1:5] if what == "entries" else entries[:4])
    assert not found


@pytest.mark.parametrize("damage", ["cut short", "one bit", "no file", "no rows", "no sidecar", "broken sidecar"])
def test_a_damaged_shard_is_made_anew(write_sa1b: WriteSa1b, tmp_path: Path, damage: str) -> None:
    task = replace(task_of(write_sa1b(), tmp_path / "out"), verify=damage == "one bit")
    report, _ = write_shard(task, 0, entries_of(task)[:4])
    shard, sidecar = tmp_path / "out" / "shard-00000.arrow", tmp_path / "out" / "shard-00000.json"
    data = shard.read_bytes()
    match damage:
        case "cut short":
            shard.write_bytes(data[:-1])
        case "one bit":
            shard.write_bytes(data[:500] + bytes([data[500] ^ 1]) + data[501:])
        case "no file":
            shard.unlink()
        case "no rows":
            shard.with_suffix(".rows").unlink()
        case "no sidecar":
            sidecar.unlink()
        case _:
            sidecar.write_bytes(b'{"shard": 1}')
    again, found = write_shard(task, 0, entries_of(task)[:4])
    assert not found
    assert again == report
    assert shard.read_bytes() == data


def test_a_fault_of_the_storage_ends_the_task_and_leaves_no_shard(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    class Unreachable:
        path = "gone"
        neighbours = ()

        def read(self, path: str) -> bytes:
            raise PermissionError("not allowed")

        def exists(self, path: str) -> bool:
            return True

        def glob(self, pattern: str) -> list[str]:
            return []

    task = task_of(write_sa1b(), tmp_path / "out")
    entries = entries_of(task)[:4]
    files: Files = Unreachable()
    with pytest.raises(RuntimeError, match=r"train/sa_1.jpg \(000000000001\): PermissionError: not allowed"):
        write_shard(replace(task, files=files), 0, entries)
    assert list((tmp_path / "out").glob("*shard-00000.[aj][rs]*")) == []


def test_drafts_of_a_killed_task_are_removed(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    task = task_of(write_sa1b(), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".shard-00000.arrow.abc.draft").write_bytes(b"half")
    (tmp_path / "out" / ".shard-00001.arrow.abc.draft").write_bytes(b"of another task")
    write_shard(task, 0, entries_of(task)[:4])
    drafts = [p.name for p in (tmp_path / "out").glob(".*")]
    assert drafts == [".shard-00001.arrow.abc.draft"]


@pytest.mark.slow
def test_preparing_imports_no_torch(write_sa1b: WriteSa1b, tmp_path: Path) -> None:
    script = f"""
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "deepspeed", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, NoTorch())
from pipelines.sources.source import Files
from semsam.storage import existing_folder
from pipelines.prepare.shard_writer import ShardOptions, ShardReport, SplitTask, write_shard
from pipelines.sources.sa1b import Sa1b
files = existing_folder({str(write_sa1b())!r})
task = SplitTask(Sa1b(), files, "train", {str(tmp_path / "out")!r}, ShardOptions(9, 30, 92), "1")
print(write_shard(task, 0, task.source.index(task.files, "train").entries)[0].report.shard.rows)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[-1:] == ["7"], done.stderr
