"""PACO: objects, their parts, and what a federated image speaks of."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from pipelines.sources.source import BadSample
from semsam.data.schema import Kind
from semsam.storage import existing_folder

JSON = "annotations/paco_lvis_v1_val.json"
VOCABULARY = SOURCES["paco"].vocabulary()
IDS = {row.get("native", row.get("name")): row["id"] for row in load_categories("paco").document["objects"]}
IDS |= {row["native"]: row["id"] for row in load_categories("paco").document["object_parts"]}


def test_a_part_carries_its_object_s_name_and_its_own(write_native: Any) -> None:
    mug, handle = write_native("paco").read().record.regions
    assert (mug.kind, mug.parent, mug.part_category) == (Kind.INSTANCE, None, None)
    assert (handle.kind, handle.parent) == (Kind.PART, 0)
    assert VOCABULARY.objects[mug.object_category] == VOCABULARY.objects[handle.object_category] == "mug"
    assert VOCABULARY.parts[handle.part_category] == "handle"


def test_parts_may_come_before_their_objects(write_native: Any) -> None:
    native = write_native("paco")
    native.edit(JSON, lambda document: document["annotations"].reverse())
    mug, handle = native.read().record.regions
    assert (mug.kind, handle.kind, handle.parent) == (Kind.INSTANCE, Kind.PART, 0)


@pytest.mark.parametrize("fault", ["no such row", "unusable row"])
def test_a_part_whose_object_is_missing_is_kept_without_a_parent(write_native: Any, fault: str) -> None:
    native = write_native("paco")
    if fault == "no such row":
        native.edit(JSON, lambda document: document["annotations"].pop(0))
    else:
        native.edit(JSON, lambda document: document["annotations"][0].update(segmentation=[]))
    read = native.read()
    (handle,) = read.record.regions
    assert [r.reason for r in read.dropped] == ["part without its object" if fault == "no such row" else "empty mask"]
    assert (handle.kind, handle.parent) == (Kind.PART, None)
    assert VOCABULARY.objects[handle.object_category] == "mug"


def test_checked_names_are_those_present_and_those_looked_for(write_native: Any) -> None:
    native = write_native("paco")
    absent = [IDS["dog"], IDS["car_(automobile)"], IDS["chair:arm"], 424242]

    def change(document: Any) -> None:
        document["images"][1].update(neg_category_ids=absent, not_exhaustive_category_ids=[IDS["mug"]])

    native.edit(JSON, change)
    record, empty = native.read(0).record, native.read(1).record
    assert [r.reason for r in native.read(0).dropped] == ["listed name outside the vocabulary"]
    assert "category id 424242" in native.read(0).dropped[0].detail
    assert {VOCABULARY.objects[i] for i in record.checked_objects} == {"mug", "dog", "car"}
    assert {VOCABULARY.parts[i] for i in record.checked_parts} == {"handle", "arm"}
    assert {VOCABULARY.objects[i] for i in record.not_exhaustive_objects} == {"mug"}
    assert (empty.checked_objects, empty.checked_parts, empty.not_exhaustive_objects) == ((), (), ())


@pytest.mark.parametrize("folder", ["coco", "../coco", "images"])
def test_images_may_lie_in_a_coco_folder(write_native: Any, folder: str) -> None:
    native = write_native("paco")
    root = native.root / "paco"
    root.mkdir()
    (native.root / "annotations").rename(root / "annotations")
    (root / folder).resolve().mkdir(exist_ok=True)
    (native.root / "val2017").rename((root / folder).resolve() / "val2017")
    native.root = root
    files = existing_folder(root, ["../coco"] if folder == "../coco" else [])
    entry = native.source.index(files, "val").entries[0]
    places = {"../coco": f"{root.parent}/coco"}
    assert entry.image == f"{places.get(folder, folder)}/val2017/000000000003.jpg"
    assert len(native.source.read(files, "val", entry).record.regions) == 2


def test_images_in_a_neighbour_that_nobody_named_are_missing(write_native: Any) -> None:
    native = write_native("paco")
    (native.root / "paco").mkdir()
    (native.root / "annotations").rename(native.root / "paco" / "annotations")
    (native.root / "coco").mkdir()
    (native.root / "val2017").rename(native.root / "coco" / "val2017")
    native.root = native.root / "paco"
    with pytest.raises(BadSample, match="missing image"):
        native.read(0)
