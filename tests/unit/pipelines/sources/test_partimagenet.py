"""PartImageNet: parts, and objects derived from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from semsam.data import rle
from semsam.data.schema import Kind

VOCABULARY = SOURCES["partimagenet"].vocabulary()
IDS = {row["native"]: row["id"] for row in load_categories("partimagenet").document["object_parts"]}


def write_parts(native: Any, *parts: tuple[str, tuple[int, int, int, int]], **more: Any) -> None:
    rows = [
        {"category_id": IDS[name], "segmentation": native.rle_object(native.rectangle(*box)), "iscrowd": 0} | more
        for name, box in parts
    ]
    native.coco("val.json", rows)


def test_an_object_is_the_union_of_its_parts(write_native: Any) -> None:
    native = write_native("partimagenet")
    write_parts(native, ("Car Body", (2, 3, 12, 9)), ("Fish Tail", (0, 0, 2, 2)), ("Car Tier", (4, 8, 6, 12)))
    regions = native.read().record.regions
    car = next(r for r in regions if r.annotation_id == "derived/car")
    expected = native.rectangle(2, 3, 12, 9) | native.rectangle(4, 8, 6, 12)
    assert np.array_equal(rle.decode(car.rle, 24, 32), expected)
    assert (car.kind, car.area, car.box_xyxy) == (Kind.DERIVED, expected.sum(), (2, 3, 12, 12))
    assert car.part_category is None
    parts = [r for r in regions if r.kind is Kind.PART]
    assert [(VOCABULARY.objects[r.object_category], VOCABULARY.parts[r.part_category]) for r in parts] == [
        ("car", "body"),
        ("car", "tire"),
        ("fish", "tail"),
    ]
    assert [regions[r.parent].annotation_id for r in parts] == ["derived/car", "derived/car", "derived/fish"]
    assert [r.kind for r in regions].count(Kind.DERIVED) == 2


def test_a_crowd_of_parts_shapes_the_object_only_where_there_is_nothing_else(write_native: Any) -> None:
    native = write_native("partimagenet")
    write_parts(native, ("Car Body", (2, 3, 12, 9)), ("Car Tier", (0, 0, 6, 12)))
    native.edit("val.json", lambda document: document["annotations"][1].update(iscrowd=1))
    derived = next(r for r in native.read().record.regions if r.kind is Kind.DERIVED)
    assert (derived.is_crowd, derived.area) == (False, 60)
    native.edit("val.json", lambda document: document["annotations"][0].update(iscrowd=1))
    derived = next(r for r in native.read().record.regions if r.kind is Kind.DERIVED)
    assert derived.is_crowd
    assert derived.area > 60


def test_no_object_is_derived_where_no_part_is_usable(write_native: Any) -> None:
    native = write_native("partimagenet")
    native.edit("val.json", lambda document: document["annotations"][0].update(segmentation=[[1, 2]]))
    read = native.read()
    assert read.record.regions == ()
    assert [r.reason for r in read.dropped] == ["empty mask"]


@pytest.mark.parametrize("folder", ["images/val/{wnid}", "images/val", "val", "images", "."])
def test_images_are_found_where_releases_have_them(write_native: Any, folder: str) -> None:
    native = write_native("partimagenet")
    expected = native.read().record
    for path in list(native.root.glob("val/*/*.JPEG")):
        path.rename(native.path(f"{folder.format(wnid=path.parent.name)}/{path.name}"))
    assert native.read().record == expected
