"""PASCAL-Part: objects and parts with the .mat files' pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse

from pipelines.sources import SOURCES
from pipelines.sources.source import REASONS_BY_DESIGN, BadSample, Read
from semsam.data import rle
from semsam.data.schema import Kind
from semsam.storage import existing_folder

VOCABULARY = SOURCES["pascal_part"].vocabulary()
MAT = "Annotations_Part/2008_000003.mat"


@pytest.mark.samples
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_regions_have_the_exact_pixels_of_the_mat(samples_dir: Path, split: str) -> None:
    source, files = SOURCES["pascal_part"], existing_folder(str(samples_dir / "pascal_part"))
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
        ("part without category", f"{native.path(MAT)}: bicycle: {name}") for name in names
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


def test_a_line_that_is_there_twice_is_counted_and_the_image_read_once(write_native: Any) -> None:
    native = write_native("pascal_part")
    path = native.path("VOCdevkit/VOC2010/ImageSets/Main/val.txt")
    path.write_bytes(b"\xef\xbb\xbf2008_000007\n2008_000003  1\n\n2008_000003 -1\n")
    index = native.index()
    assert [entry.sample_id for entry in index.entries] == ["2008_000003", "2008_000007"]
    [again] = index.rejected
    assert (again.reason, again.sample_id) == ("duplicate image id", "2008_000003")
    assert str(path) in again.detail


def test_a_list_that_is_no_text_is_named(write_native: Any) -> None:
    native = write_native("pascal_part")
    native.path("VOCdevkit/VOC2010/ImageSets/Main/val.txt").write_bytes(b"\xff\xfe2\x00")
    with pytest.raises(ValueError, match=r"Main/val\.txt: 'utf-8' codec"):
        native.index()


Rows = list[dict[str, Any]]
MASK = np.zeros((24, 32), np.uint8)
MASK[3:9, 2:12] = 1


def struct_array(rows: Rows) -> np.ndarray:
    """MATLAB's struct array with these rows, all with the fields of the first."""
    array = np.empty((1, len(rows)), [(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


def person(**change: Any) -> dict[str, Any]:
    part = {"part_name": "hair", "mask": MASK}
    whole = {"class": "person", "class_ind": 15, "mask": MASK, "parts": struct_array([part])}
    return {key: value for key, value in (whole | change).items() if value is not KeyError}


def hair(**change: Any) -> dict[str, Any]:
    part = {key: v for key, v in ({"part_name": "hair", "mask": MASK} | change).items() if v is not KeyError}
    return person(parts=struct_array([part]))


def read_mat(native: Any, objects: Any, **variables: Any) -> Read:
    anno = struct_array([{"imname": "2008_000003", "objects": objects}])
    scipy.io.savemat(native.path(MAT), variables or {"anno": anno})
    return native.read()


def counts(read: Read) -> tuple[int, list[str]]:
    return len(read.record.regions), [rejected.reason for rejected in read.dropped]


ODD = {
    "text": "x",
    "nothing": [],
    "not a number": np.nan,
    "infinite": np.inf,
    "huge": 1e300,
    "negative": -1,
    "broken": 15.5,
    "complex": 1j,
    "two": [15, 15],
    "lines of text": ["15", "16"],
    "a cell": np.array([[15, "x"]], object),
    "a struct": struct_array([{"a": 1}]),
    "sparse": scipy.sparse.csc_matrix(np.eye(3)),
    "without the field": KeyError,
}


@pytest.mark.parametrize("value", [15.0, np.uint8(15), np.int64(15), "15", " 15 ", [[15]]])
def test_a_class_that_is_clear_is_taken(write_native: Any, value: Any) -> None:
    native = write_native("pascal_part")
    expected = read_mat(native, struct_array([person()]))
    assert counts(expected) == (2, [])
    assert read_mat(native, struct_array([person(class_ind=value)])) == expected


@pytest.mark.parametrize("odd", [name for name in ODD if name != "without the field"])
def test_an_odd_class_drops_its_object_and_parts_and_shows_the_value(write_native: Any, odd: str) -> None:
    native = write_native("pascal_part")
    read = read_mat(native, struct_array([person(class_ind=ODD[odd]), person()]))
    assert counts(read) == (2, ["unknown category"] * 2)
    assert "object 0: class_ind " in read.dropped[0].detail
    assert len(read.dropped[0].detail) < len(str(native.path(MAT))) + 150


@pytest.mark.parametrize("odd", ["text", "nothing", "complex", "lines of text", "a cell", "a struct", "sparse"])
def test_what_is_no_mask_is_dropped(write_native: Any, odd: str) -> None:
    native = write_native("pascal_part")
    for change in (person(mask=ODD[odd]), hair(mask=ODD[odd])):
        assert counts(read_mat(native, struct_array([change, person()]))) == (3, ["broken mask"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, 2])
def test_a_mask_of_several_values_is_dropped(write_native: Any, value: float) -> None:
    native = write_native("pascal_part")
    several = MASK.astype(float)
    several[5, 5] = value
    read = read_mat(native, struct_array([hair(mask=several)]))
    assert counts(read) == (1, ["broken mask"])
    assert "annotation 0/hair: no mask but float64 of size [24, 32] with values" in read.dropped[0].detail


@pytest.mark.parametrize("mask", [MASK.astype(bool), MASK * 255, MASK * 0.5, MASK.astype(np.int64)])
def test_a_mask_of_any_two_values_is_a_mask(write_native: Any, mask: np.ndarray) -> None:
    native = write_native("pascal_part")
    expected = read_mat(native, struct_array([person()]))
    assert read_mat(native, struct_array([person(mask=mask)])) == expected


@pytest.mark.parametrize("shape", [(1, 1), (32, 24), (1, 768)])
def test_a_mask_of_another_size_is_no_mask_of_this_image(write_native: Any, shape: tuple[int, ...]) -> None:
    native = write_native("pascal_part")
    for change in (person(mask=np.ones(shape)), hair(mask=np.ones(shape))):
        with pytest.raises(BadSample, match=r"image size differs from annotation: image \(24, 32\), annotation \("):
            read_mat(native, struct_array([change]))


def test_a_mask_with_channels_is_dropped(write_native: Any) -> None:
    read = read_mat(write_native("pascal_part"), struct_array([person(mask=np.ones((24, 32, 3)))]))
    assert counts(read) == (1, ["broken mask"])


@pytest.mark.parametrize(
    "odd", ["nothing", "not a number", "negative", "complex", "two", "lines of text", "a cell", "a struct"]
)
def test_an_odd_part_name_drops_the_part_as_a_fault(write_native: Any, odd: str) -> None:
    read = read_mat(write_native("pascal_part"), struct_array([hair(part_name=ODD[odd])]))
    assert counts(read) == (1, ["broken part name"])
    assert "broken part name" not in REASONS_BY_DESIGN


@pytest.mark.parametrize("odd", [name for name in ODD if name not in ("nothing", "without the field")])
def test_odd_parts_are_dropped_and_their_object_kept(write_native: Any, odd: str) -> None:
    native = write_native("pascal_part")
    assert counts(read_mat(native, struct_array([person(parts=ODD[odd])]))) == (1, ["broken parts"])
    for missing in ("part_name", "mask"):
        read = read_mat(native, struct_array([hair(**{missing: KeyError, "other": 1})]))
        assert counts(read) == (1, ["broken parts"])
        assert f"no field '{missing}'" in read.dropped[0].detail


@pytest.mark.parametrize("field", ["class_ind", "mask", "parts"])
def test_objects_without_a_field_are_a_bad_sample(write_native: Any, field: str) -> None:
    with pytest.raises(BadSample, match=rf"broken \.mat: .*000003\.mat: no field '{field}' among class"):
        read_mat(write_native("pascal_part"), struct_array([person(**{field: KeyError})]))


@pytest.mark.parametrize("odd", [name for name in ODD if name != "without the field"])
def test_odd_objects_are_a_bad_sample(write_native: Any, odd: str) -> None:
    native = write_native("pascal_part")
    for objects, variables in ((ODD[odd], {}), (None, {"anno": ODD[odd]}), (None, {"other": ODD[odd]})):
        with pytest.raises(BadSample, match=r"broken \.mat: .*000003\.mat: no "):
            read_mat(native, objects, **variables)
    with pytest.raises(BadSample, match=r"000003\.mat: 2 rows of anno"):
        read_mat(native, None, anno=struct_array([{"objects": 1}, {"objects": 1}]))
