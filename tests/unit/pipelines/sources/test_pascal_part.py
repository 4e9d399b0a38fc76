"""PASCAL-Part: objects and parts with the .mat files' pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from pipelines.files import open_root
from pipelines.sources import SOURCES
from pipelines.sources.source import REASONS_BY_DESIGN, BadSample
from semsam.data import rle
from semsam.data.schema import Kind

VOCABULARY = SOURCES["pascal_part"].vocabulary()
MAT = "Annotations_Part/2008_000003.mat"


@pytest.mark.samples
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_regions_have_the_exact_pixels_of_the_mat(samples_dir: Path, split: str) -> None:
    source, files = SOURCES["pascal_part"], open_root(str(samples_dir / "pascal_part"))
    index = source.index(files, split)
    assert (len(index.entries), index.rejected) == (6, [])
    for entry in index.entries:
        read = source.read(files, split, entry)
        regions = {region.annotation_id: region for region in read.record.regions}
        assert len(regions) == len(read.record.regions)
        mat = scipy.io.loadmat(samples_dir / f"pascal_part/Annotations_Part/{entry.sample_id}.mat")
        masks = {}
        for i, thing in enumerate(mat["anno"][0, 0]["objects"][0]):
            masks[str(i)] = thing["mask"]
            region = regions[str(i)]
            assert VOCABULARY.objects[region.object_category or 0].replace(" ", "") == thing["class"][0]
            assert (region.kind, region.parent, region.part_category) == (Kind.INSTANCE, None, None)
            for part in thing["parts"][0] if thing["parts"].size else ():
                masks[f"{i}/{part['part_name'][0]}"] = part["mask"]
        for name, region in regions.items():
            expected = masks.pop(name) > 0
            ys, xs = np.nonzero(expected)
            assert np.array_equal(rle.decode(region.rle or b"", *expected.shape), expected)
            assert region.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            if region.kind is Kind.PART:
                parent = read.record.regions[region.parent or 0]
                assert parent.annotation_id == name.partition("/")[0]
                assert region.object_category == parent.object_category
                assert (region.object_category, region.part_category) in VOCABULARY.object_parts
        # What is left was dropped, and is of a name that the 93 pairs do not have.
        assert len(masks) == len(read.dropped)
        assert {r.reason for r in read.dropped} <= {"part without category"} <= REASONS_BY_DESIGN
        sides = ("brow", "side", "screen")
        assert all(any(side in name for side in sides) for name in masks)


def test_left_and_right_parts_share_a_name_and_numbers_are_dropped(write_native: Any) -> None:
    native = write_native("pascal_part")
    box = native.rectangle
    car = (
        7,
        box(0, 0, 20, 20),
        [(name, box(1, 1, 3, 3)) for name in ("wheel_1", "wheel_12", "bliplate", "leftmirror")],
    )
    dog = (12, box(0, 0, 9, 9), [(name, box(4, 4, 5, 5)) for name in ("lear", "rear", "lfpa", "rbleg", "muzzle")])
    native.mat(MAT, [car, dog])
    regions = native.read().record.regions
    parts = [VOCABULARY.parts[r.part_category] for r in regions if r.part_category is not None]
    assert parts == ["wheel", "wheel", "license plate", "mirror", "ear", "ear", "paw", "leg", "muzzle"]
    assert [r.parent for r in regions] == [None, 0, 0, 0, 0, None, 5, 5, 5, 5, 5]


def test_parts_outside_the_vocabulary_are_dropped_by_name(write_native: Any) -> None:
    native = write_native("pascal_part")
    names = ["chainwheel", "headlight_1", "nonsense"]
    native.mat(MAT, [(2, native.rectangle(0, 0, 9, 9), [(name, native.rectangle(1, 1, 2, 2)) for name in names])])
    read = native.read()
    assert len(read.record.regions) == 1
    assert [(r.reason, r.detail) for r in read.dropped] == [
        ("part without category", f"bicycle: {name}") for name in names
    ]


def test_a_mat_without_parts_gives_its_objects(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.mat(MAT, [(11, native.rectangle(0, 0, 9, 9), []), (9, native.rectangle(3, 3, 9, 9), [])])
    regions = native.read().record.regions
    assert [VOCABULARY.objects[r.object_category] for r in regions] == ["table", "chair"]


def test_a_part_whose_object_is_missing_is_kept_without_a_parent(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.mat(MAT, [(15, native.rectangle(0, 0, 0, 0), [("hair", native.rectangle(1, 1, 2, 2))])])
    read = native.read()
    (part,) = read.record.regions
    assert [r.reason for r in read.dropped] == ["empty mask"]
    assert (part.kind, part.parent) == (Kind.PART, None)
    assert (VOCABULARY.objects[part.object_category], VOCABULARY.parts[part.part_category]) == ("person", "hair")


def test_an_unknown_class_is_dropped_with_its_parts(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.mat(MAT, [(21, native.rectangle(0, 0, 9, 9), [("head", native.rectangle(1, 1, 2, 2))])])
    read = native.read()
    assert read.record.regions == ()
    assert [r.reason for r in read.dropped] == ["unknown category", "unknown category"]


def test_an_image_without_mat_is_rejected(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.path(MAT).unlink()
    assert [(r.reason, r.sample_id) for r in native.index().rejected] == [("missing .mat", "2008_000003")]


@pytest.mark.parametrize("kept", [0, 130, 300])
def test_a_broken_mat_is_a_bad_sample(write_native: Any, kept: int) -> None:
    native = write_native("pascal_part")
    native.path(MAT).write_bytes(native.path(MAT).read_bytes()[:kept])
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "broken .mat"


def test_a_mask_of_another_size_is_a_bad_sample(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.mat(MAT, [(15, np.ones((32, 24)), [])])
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "image size differs from annotation"


@pytest.mark.parametrize("folder", ["VOC2010", "."])
def test_the_voc_folder_may_lie_in_other_places(write_native: Any, folder: str) -> None:
    native = write_native("pascal_part")
    expected = native.read().record
    for name in ("ImageSets", "JPEGImages"):
        (native.root / "VOCdevkit/VOC2010" / name).rename(native.path(f"{folder}/{name}"))
    assert native.read().record == expected


def test_a_missing_image_set_is_an_error(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.split = "train"
    with pytest.raises(ValueError, match=r"found none of VOCdevkit/VOC2010/ImageSets/Main/train\.txt"):
        native.index()
