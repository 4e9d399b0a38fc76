"""What every source does with the faults that real copies of the datasets have."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.sources import SOURCES
from pipelines.sources.source import REASONS_BY_DESIGN, BadSample, Rejected
from semsam.data import rle
from semsam.data.schema import Kind, from_row, to_row
from semsam.losses.router import TABLE
from semsam.storage import existing_folder


def test_every_source_has_its_row() -> None:
    assert set(SOURCES) == set(TABLE)
    assert all(source.dataset == name for name, source in SOURCES.items())


def test_entries_are_sorted_and_pickle(native: Any) -> None:
    index = native.index()
    ids = [entry.sample_id for entry in index.entries]
    assert ids == sorted(ids)
    assert len(ids) == 2
    assert not index.rejected
    assert pickle.loads(pickle.dumps(list(index.entries))) == list(index.entries)
    source, files = pickle.loads(pickle.dumps((native.source, existing_folder(str(native.root)))))
    assert source.read(files, native.split, index.entries[0]) == native.read(0)


def test_the_record_holds_the_image_bytes_and_tight_boxes(native: Any) -> None:
    entry = native.index().entries[0]
    record = native.read(entry).record
    assert record.image == (native.root / entry.image).read_bytes()
    assert (record.dataset, record.split, record.sample_id) == (native.dataset, "val", entry.sample_id)
    assert (record.height, record.width) == (record.original_height, record.original_width) == (24, 32)
    assert from_row(to_row(record)) == record
    whole = [region for region in record.regions if region.kind is not Kind.PART]
    assert [region.box_xyxy for region in whole] == [(2, 3, 12, 9)] * len(whole)
    assert [region.area for region in whole] == [60] * len(whole)
    assert whole


def test_an_image_without_regions_is_a_legal_record(native: Any) -> None:
    read = native.read(1)
    assert read.record.regions == ()
    assert read.dropped == ()


def test_a_missing_image_is_a_bad_sample(native: Any) -> None:
    entry = native.index().entries[0]
    (native.root / entry.image).unlink()
    with pytest.raises(BadSample) as caught:
        native.read(entry)
    assert caught.value.rejected.reason == "missing image"
    assert caught.value.rejected.sample_id == entry.sample_id
    assert entry.image in caught.value.rejected.detail


@pytest.mark.parametrize("kept", [0, 2, -2])
def test_a_broken_jpeg_is_a_bad_sample(native: Any, kept: int) -> None:
    entry = native.index().entries[0]
    path = native.root / entry.image
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BadSample) as caught:
        native.read(entry)
    assert caught.value.rejected.reason == "broken image"


def test_an_image_of_another_size_is_a_bad_sample(native: Any) -> None:
    entry = native.index().entries[0]
    native.jpeg(entry.image, 32, 24)
    with pytest.raises(BadSample) as caught:
        native.read(entry)
    assert caught.value.rejected.reason == "image size differs from annotation"


def test_an_image_that_is_no_jpeg_becomes_one(native: Any) -> None:
    entry = native.index().entries[0]
    path = native.root / entry.image
    native.png("picture.png", np.zeros((24, 32, 3)))
    path.write_bytes((native.root / "picture.png").read_bytes())
    record = native.read(entry).record
    assert record.image[:2] == b"\xff\xd8"
    assert len(record.regions) > 0


def test_bad_samples_pickle() -> None:
    bad = pickle.loads(pickle.dumps(BadSample("missing image", "7", "x.jpg")))
    assert bad.rejected == BadSample("missing image", "7", "x.jpg").rejected
    assert str(bad) == "7: missing image: x.jpg"


JSON_FILES = {
    "coco_panoptic": "annotations/instances_val2017.json",
    "objects365": "zhiyuan_objv2_val.json",
    "paco": "annotations/paco_lvis_v1_val.json",
    "partimagenet": "val.json",
}
MASKS = ["coco_panoptic", "paco", "partimagenet"]


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_an_unreadable_json_is_named_with_line_and_column(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    native.path(JSON_FILES[dataset]).write_text('{\n "images": [,]}')
    with pytest.raises(ValueError, match=rf"{JSON_FILES[dataset]}: line 2, column 13"):
        native.index()


@pytest.mark.parametrize("dataset", JSON_FILES)
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_a_json_without_one_of_its_lists_is_refused(write_native: Any, dataset: str, key: str) -> None:
    native = write_native(dataset)
    native.edit(JSON_FILES[dataset], lambda document: document.pop(key))
    with pytest.raises(ValueError, match=f"{JSON_FILES[dataset]}: no list '{key}'"):
        native.index()


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_a_missing_json_is_an_error_that_names_it(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    name = JSON_FILES[dataset].replace("instances", "panoptic")
    native.path(name).unlink()
    with pytest.raises(ValueError, match=name):
        native.index()


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_an_image_row_without_its_size_is_counted(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    name = JSON_FILES[dataset].replace("instances", "panoptic")
    native.edit(name, lambda document: document["images"][0].pop("height"))
    index = native.index()
    assert index.rejected[0] == Rejected(
        "images: unusable height", "000000000007", f"{native.root}/{name}: images[0]: height: missing"
    )
    assert [entry.sample_id for entry in index.entries] == ["000000000003"]


@pytest.mark.parametrize("dataset", ["objects365", "paco", "partimagenet"])
def test_an_empty_list_of_annotations_is_refused_unless_it_is_asked_for(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    native.edit(JSON_FILES[dataset], lambda document: document["annotations"].clear())
    with pytest.raises(ValueError, match=f"{JSON_FILES[dataset]}: the list 'annotations' is empty"):
        native.index()
    native.source = replace(native.source, allow_absent=("annotations",))
    index = native.index()
    assert (len(index.entries), index.absent) == (2, ("annotations",))


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_the_first_of_two_images_with_one_id_is_kept(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    name = JSON_FILES[dataset].replace("instances", "panoptic")
    native.edit(name, lambda document: document["images"].append(document["images"][0] | {"file_name": "other.jpg"}))
    index = native.index()
    assert [r.reason for r in index.rejected] == ["duplicate image id"]
    assert len(index.entries) == 2
    assert not any("other.jpg" in entry.image for entry in index.entries)


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_a_region_of_an_unknown_category_is_dropped(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    native.edit(JSON_FILES[dataset], lambda document: document["annotations"][0].update(category_id=9999))
    read = native.read()
    assert [(r.reason, r.detail) for r in read.dropped] == [
        ("unknown category", f"{native.root}/{JSON_FILES[dataset]}: annotation 100: category id 9999")
    ]


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_categories_are_found_by_their_name(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    expected = native.read().record.regions

    def renumber(document: Any) -> None:
        for row in document["categories"]:
            row["id"] += 5000
        for row in document["annotations"]:
            row["category_id"] += 5000

    native.edit(JSON_FILES[dataset], renumber)
    assert native.read().record.regions == expected


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_an_image_whose_regions_are_all_crowd_is_legal(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    native.edit(JSON_FILES[dataset], lambda document: [row.update(iscrowd=1) for row in document["annotations"]])
    record = native.read().record
    assert [region.is_crowd for region in record.regions if region.kind is not Kind.PANOPTIC].count(False) == 0
    assert len(record.regions) > 0


@pytest.mark.parametrize("dataset", MASKS)
def test_an_rle_of_another_size_is_a_bad_sample(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    other = native.rle_object(np.ones((32, 24), bool))
    native.edit(JSON_FILES[dataset], lambda document: document["annotations"][0].update(segmentation=other))
    with pytest.raises(BadSample) as caught:
        native.read()
    assert caught.value.rejected.reason == "RLE size differs from image"


UNUSABLE = {
    "no pixel": ({"size": [24, 32], "counts": [768]}, "empty mask"),
    "no polygon": ([], "empty mask"),
    "nothing": (None, "empty mask"),
    "a point": ([[3, 4]], "empty mask"),
    "a line of two points": ([[3, 4, 9, 9]], "empty mask"),
    "a polygon outside": ([[50, 50, 60, 50, 60, 60]], "empty mask"),
    "a polygon to infinity": ([[0, 0, 1e300, 0, 10, 10]], "broken polygon"),
    "an odd number of coordinates": ([[4, 2, 20, 2, 20, 11, 4]], "broken polygon"),
    "a word among coordinates": ([[4, 2, "x", 2, 20, 11]], "broken polygon"),
    "points in lists of their own": ([[[4, 2], [20, 2], [20, 11]]], "broken polygon"),
    "a word": ("word", "broken polygon"),
    "a fraction of a run": ({"size": [24, 32], "counts": [0.5, 767.5]}, "broken RLE"),
    "runs that wrap around": ({"size": [24, 32], "counts": [2**63 - 1, 2**63 - 1, 2, 768]}, "broken RLE"),
    "a size of one number": ({"size": [24], "counts": [768]}, "broken RLE"),
    "runs that end early": ({"size": [24, 32], "counts": [5, 5]}, "broken RLE"),
    "runs of text": ({"size": [24, 32], "counts": ["x"]}, "broken RLE"),
    "a cut string": ({"size": [24, 32], "counts": "oX"}, "broken RLE"),
    "no counts": ({"size": [24, 32]}, "broken RLE"),
}


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_mask_is_dropped(write_native: Any, fault: str) -> None:
    segmentation, reason = UNUSABLE[fault]
    native = write_native("partimagenet")
    native.edit("val.json", lambda document: document["annotations"][0].update(segmentation=segmentation))
    read = native.read()
    assert [r.reason for r in read.dropped] == [reason]
    assert read.dropped[0].detail.startswith(f"{native.root}/val.json: annotation 100")


def test_what_encloses_nothing_beside_a_polygon_is_counted_and_the_region_kept(write_native: Any) -> None:
    native = write_native("partimagenet")
    expected = native.read().record
    native.edit("val.json", lambda document: document["annotations"][0]["segmentation"].extend([[4, 5], [4, 5, 9, 7]]))
    read = native.read()
    assert read.record == expected
    assert [r.reason for r in read.dropped] == ["polygon of two points or fewer"] * 2
    assert {r.reason for r in read.dropped} <= REASONS_BY_DESIGN


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("row", [None, 5, "word", [], {}, {"image_id": {}}, {"image_id": 3, "segmentation": deep(300)}])
@pytest.mark.parametrize("dataset", JSON_FILES)
def test_a_row_that_cannot_be_used_is_counted_with_its_place(write_native: Any, dataset: str, row: Any) -> None:
    native = write_native(dataset)
    expected = native.read().record
    first = json.loads(native.path(JSON_FILES[dataset]).read_text())["annotations"][0]
    deep_row = first | row | {"id": 999, "bbox": deep(300)} if isinstance(row, dict) and len(row) > 1 else row
    native.edit(JSON_FILES[dataset], lambda document: document["annotations"].append(deep_row))
    place = f"{native.root}/{JSON_FILES[dataset]}: annotations[{2 if dataset == 'paco' else 1}]: "
    assert [r.detail.startswith(place) for r in native.index().rejected_regions] == [True]
    assert native.read().record == expected


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_the_second_of_two_annotations_with_one_id_is_dropped(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    expected = native.read().record
    native.edit(JSON_FILES[dataset], lambda document: document["annotations"].append(document["annotations"][0]))
    read = native.read()
    assert read.record == expected
    assert [r.reason for r in read.dropped] == ["duplicate annotation id"]


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_categories_that_cannot_be_used_or_contradict_others_are_counted(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    expected = native.read().record
    used = json.loads(native.path(JSON_FILES[dataset]).read_text())["annotations"][0]["category_id"]
    rows = [5, {"id": None, "name": "x"}, {"id": 7000, "name": 3}, {"id": used, "name": "another"}]
    native.edit(JSON_FILES[dataset], lambda document: document["categories"].extend(rows))
    assert [(r.reason, r.detail.partition("]: ")[2]) for r in native.index().rejected_regions] == [
        ("categories: unusable row", "row: 5 is no object"),
        ("categories: unusable id", "id: None is no number"),
        ("categories: unusable name", "name: 3 is no text"),
        ("categories: unusable id", native.index().rejected_regions[3].detail.partition("]: ")[2]),
    ]
    assert native.read().record == expected


@pytest.mark.parametrize(
    "file_name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "x\0.jpg", "x" * 300, "patch8/", "."]
)
@pytest.mark.parametrize("dataset", JSON_FILES)
def test_an_image_whose_name_is_no_file_s_below_the_root_is_counted(
    write_native: Any, dataset: str, file_name: str
) -> None:
    native = write_native(dataset)
    name = JSON_FILES[dataset].replace("instances", "panoptic")
    native.edit(name, lambda document: document["images"][0].update(file_name=file_name))
    index = native.index()
    assert index.rejected[0].reason == "images: unusable file_name"
    assert [entry.sample_id for entry in index.entries] == ["000000000003"]


@pytest.mark.parametrize("dataset", MASKS)
def test_polygons_run_lengths_and_strings_give_the_same_mask(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    mask = native.rectangle(4, 2, 20, 11)
    polygon = [[4, 2, 20, 2, 20, 11, 4, 11], [7, 7]]
    runs = rle.decode_counts(rle.encode(mask)).tolist()
    texts = {"size": ["24", "32"], "counts": [str(run) for run in runs]}
    for segmentation in (polygon, polygon[0], {"size": [24, 32], "counts": runs}, texts, native.rle_object(mask)):
        native.edit(JSON_FILES[dataset], lambda d, new=segmentation: d["annotations"][0].update(segmentation=new))
        masks = [r.rle for r in native.read().record.regions if r.annotation_id == "100"]
        assert masks == [rle.encode(mask)]


@pytest.mark.parametrize("dataset", JSON_FILES)
def test_annotations_of_an_unlisted_image_are_counted(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    name = JSON_FILES[dataset].replace("instances", "panoptic")
    native.edit(name, lambda document: document["annotations"].append(document["annotations"][0] | {"image_id": 9}))
    index = native.index()
    rejected = index.rejected if dataset == "coco_panoptic" else index.rejected_regions
    assert [(r.reason, r.sample_id) for r in rejected] == [
        ("annotation of an image that is not listed", "000000000009")
    ]
    assert len(index.entries) == 2
