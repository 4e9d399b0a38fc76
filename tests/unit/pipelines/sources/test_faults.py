"""What every source does with the faults that real copies of the datasets have."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.files import open_root
from pipelines.sources import SOURCES
from pipelines.sources.source import BadSample, Rejected
from semsam.data import rle
from semsam.data.schema import DATASETS, Kind, from_row, to_row


def test_sources_are_the_seven_datasets() -> None:
    assert tuple(SOURCES) == DATASETS
    assert all(source.dataset == name for name, source in SOURCES.items())


def test_entries_are_sorted_and_pickle(native: Any) -> None:
    index = native.index()
    ids = [entry.sample_id for entry in index.entries]
    assert ids == sorted(ids)
    assert len(ids) == 2
    assert index.rejected == []
    assert pickle.loads(pickle.dumps(index)) == index
    source, files = pickle.loads(pickle.dumps((native.source, open_root(str(native.root)))))
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
    assert "annotation 100" in read.dropped[0].detail


@pytest.mark.parametrize("dataset", MASKS)
def test_polygons_run_lengths_and_strings_give_the_same_mask(write_native: Any, dataset: str) -> None:
    native = write_native(dataset)
    mask = native.rectangle(4, 2, 20, 11)
    polygon = [[4, 2, 20, 2, 20, 11, 4, 11], [7, 7]]
    runs = rle.decode_counts(rle.encode(mask)).tolist()
    for segmentation in (polygon, {"size": [24, 32], "counts": runs}, native.rle_object(mask)):
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
