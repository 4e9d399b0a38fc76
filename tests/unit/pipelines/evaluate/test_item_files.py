"""Files of items: made once, found again, and not taken for what they are not; without a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.evaluate.item_files import (
    ItemTask,
    item_task,
    read_items,
    read_manifest,
    write_items,
    write_manifest,
)
from semsam.data.schema import Record
from semsam.data.shards import Split
from semsam.evaluation.items import ImageItem
from semsam.evaluation.questions import item_of
from tests.conftest import ROOT
from tests.painted_shards import VOCABULARIES, write_painted_shards


@pytest.fixture
def split(tmp_path: Path) -> Split:
    root = write_painted_shards(tmp_path, 6, {"sa1b": VOCABULARIES["sa1b"]})
    return Split(f"{root}/sa1b/train")


@pytest.fixture
def task(split: Split, tmp_path: Path) -> ItemTask:
    return item_task(split, range(5), 2, f"{tmp_path}/items", {"model": "m"})


def refuse(record: Record) -> ImageItem:
    raise AssertionError(f"{record.sample_id} is answered again")


def test_parts_are_made_once_and_read_in_order(split: Split, task: ItemTask) -> None:
    parts = [write_items(task, split, position, item_of)[0] for position in range(3)]
    again = [write_items(task, split, position, refuse) for position in range(3)]
    assert again == [(part, True) for part in parts]
    assert [part.report.num_images for part in parts] == [2, 2, 1]
    write_manifest(task, split, parts)
    manifest = read_manifest(task.folder())
    assert manifest.vocabulary == split.manifest.vocabulary
    found = [item for items in manifest.items(task.folder()) for item in items]
    assert [item.sample_id for item in found] == [f"{number:06d}" for number in range(5)]
    assert found[2].regions == split.record(2).regions


def test_what_another_model_answered_is_answered_again(split: Split, task: ItemTask) -> None:
    write_items(task, split, 0, item_of)
    for other in (
        replace(task, asked={"model": "n"}),
        replace(task, data_digest="other"),
        replace(task, rows=((0, 2), *task.rows[1:])),
    ):
        assert not write_items(other, split, 0, item_of)[1]


def test_a_damaged_file_is_noticed(split: Split, task: ItemTask) -> None:
    part, _ = write_items(task, split, 0, item_of)
    path = Path(task.output, part.files[0].name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"^{path}: not the file that its sidecar means"):
        read_items(task.folder(), part)
    path.write_bytes(data[:-1])
    assert not write_items(task, split, 0, item_of)[1]  # Cut short: made anew.
    assert read_items(task.folder(), part)


def test_an_error_names_what_cannot_be_answered(split: Split, task: ItemTask) -> None:
    def broken(record: Record) -> ImageItem:
        raise ValueError(f"{record.sample_id}: broken")

    with pytest.raises(ValueError, match="^000000: broken"):
        write_items(task, split, 0, broken)


KILLS = """
import os, signal, sys
from pipelines.evaluate.item_files import item_task, write_items
from semsam.data.shards import Split
from semsam.evaluation.questions import item_of

def answer(record):
    if record.sample_id == "000001":
        os.kill(os.getpid(), signal.SIGKILL)
    return item_of(record)

split = Split(sys.argv[1])
write_items(item_task(split, range(5), 2, sys.argv[2], {"model": "m"}, int(sys.argv[3])), split, 0, answer)
"""


@pytest.mark.slow
def test_an_image_that_ends_its_worker_is_left_out_and_named(split: Split, task: ItemTask) -> None:
    def work(max_left_out: int) -> tuple[int, str]:
        command = [sys.executable, "-c", KILLS, split.root, task.output, str(max_left_out)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr

    assert [work(0)[0] for _ in range(3)] == [-signal.SIGKILL] * 3
    status, said = work(0)
    assert status == 1
    assert "1 images are left out, more than max_left_out = 0: sa1b 000001: kills its worker (row 1 of " in said
    assert work(1)[0] == 0
    part, found = write_items(task, split, 0, refuse)
    assert found
    assert [one.sample_id for one in part.report.left_out] == ["000001"]
    assert part.report.num_images == 1
    assert [item.sample_id for item in read_items(task.folder(), part)] == ["000000"]


def test_what_is_not_complete_has_no_numbers(split: Split, task: ItemTask) -> None:
    with pytest.raises(ValueError, match="manifest.json: no such file: no evaluation has come to its end here"):
        read_manifest(task.folder())
    parts = [write_items(task, split, position, item_of)[0] for position in range(3)]
    Path(task.output, "items-00001.arrow").unlink()
    with pytest.raises(ValueError, match=r"items-00001.arrow: vanished"):
        write_manifest(task, split, parts)
