"""Objects365: boxes, clipped; images wherever a copy has them."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.sources import SOURCES
from semsam.data.images import encode_jpeg
from semsam.data.schema import Kind
from semsam.storage import existing_folder

JSON = "zhiyuan_objv2_val.json"


def read_with_box(native: Any, box: Any) -> Any:
    native.edit(JSON, lambda document: document["annotations"][0].update(bbox=box))
    return native.read()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-4.5, 3, 10, 6], (0, 3, 5.5, 9)),
        ([2, -3, 10, 6], (2, 0, 12, 3)),
        ([30, 20, 100, 100], (30, 20, 32, 24)),
        ([-10, -10, 1000, 1000], (0, 0, 32, 24)),
        ([0, 0, 1, 1], (0, 0, 1, 1)),
    ],
)
def test_a_box_partly_outside_is_clipped(write_native: Any, box: Any, expected: Any) -> None:
    read = read_with_box(write_native("objects365"), box)
    assert read.dropped == ()
    assert [region.box_xyxy for region in read.record.regions] == [expected]
    assert read.record.regions[0].area == 60  # The native area, whatever was clipped.


@pytest.mark.parametrize(
    "box", [[32, 3, 10, 6], [2, 24, 10, 6], [-12, 3, 10, 6], [2, 3, 0, 6], [2, 3, 10, -1], [2, 3, 1e-9, 6]]
)
def test_an_empty_box_or_one_wholly_outside_is_dropped(write_native: Any, box: Any) -> None:
    read = read_with_box(write_native("objects365"), box)
    assert [r.reason for r in read.dropped] == ["empty box"]
    assert read.record.regions == ()


@pytest.mark.parametrize(
    "box", [None, [], [1, 2, 3], [1, 2, 3, None], [1, 2, 3, "x"], 5, [1, 2, 3, True], [1, 2, 3, 1e9]]
)
def test_a_malformed_box_is_counted(write_native: Any, box: Any) -> None:
    native = write_native("objects365")
    assert read_with_box(native, box).record.regions == ()
    (rejected,) = native.index().rejected_regions
    assert (rejected.reason, rejected.sample_id) == ("annotations: unusable bbox", "000000000003")
    assert rejected.detail.startswith(f"{native.root}/{JSON}: annotations[0]: bbox: ")
    assert reprlib.repr(box) in rejected.detail or any(repr(value) in rejected.detail for value in box)


def test_a_box_of_numbers_in_text_is_a_box(write_native: Any) -> None:
    native = write_native("objects365")
    expected = native.read()
    assert read_with_box(native, ["2", "3.0", 10, "6"]) == expected


def test_regions_are_named_boxes_without_masks(write_native: Any) -> None:
    (region,) = write_native("objects365").read().record.regions
    names = SOURCES["objects365"].vocabulary().objects
    assert (region.rle, region.kind, region.is_crowd) == (None, Kind.INSTANCE, False)
    assert names[region.object_category] == "Air Conditioner"


@pytest.mark.parametrize(
    "folder",
    ["patch8", "images/patch8", "val/patch8", "images/val/patch8", "images/val/v1/patch8", "val/images/v1/patch8"],
)
def test_images_are_found_where_copies_have_them(write_native: Any, folder: str) -> None:
    native = write_native("objects365")
    expected = native.read().record
    for path in list(native.root.glob("images/v1/patch8/*.jpg")):
        path.rename(native.path(f"{folder}/{path.name}"))
    entry = native.index().entries[0]
    assert entry.image == f"{folder}/objects365_v1_00000003.jpg"
    assert native.read(entry).record == expected


def test_one_image_in_another_place_is_found_too(write_native: Any) -> None:
    native = write_native("objects365")
    expected = native.read().record
    moved = native.path("images/v1/patch8/objects365_v1_00000003.jpg")
    moved.rename(native.path("patch8/objects365_v1_00000003.jpg"))
    assert native.read().record == expected


@pytest.mark.samples
def test_the_real_row_becomes_its_box(samples_dir: Path, tmp_path: Path) -> None:
    data = (samples_dir / "objects365/annotations/zhiyuan_objv2_REAL_RECORD_1box.json").read_bytes()
    row = json.loads(data)["annotations"][0]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/zhiyuan_objv2_train.json").write_bytes(data)
    (tmp_path / "patch8").mkdir()
    jpeg = encode_jpeg(np.full((512, 769, 3), 128, np.uint8))
    (tmp_path / "patch8/objects365_v1_00420917.jpg").write_bytes(jpeg)
    source, files = SOURCES["objects365"], existing_folder(str(tmp_path))
    record = source.read(files, "train", source.index(files, "train").entries[0]).record
    x, y, w, h = row["bbox"]
    assert record.regions[0].box_xyxy == pytest.approx((x, y, x + w, y + h), rel=1e-6)
    assert record.regions[0].area == row["area"]
    assert record.sample_id == "000000420917"
