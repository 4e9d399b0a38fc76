"""COCO: panoptic segments with the PNG's pixels, and instances beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.sources import SOURCES
from pipelines.sources.source import BadSample, Read
from semsam.data import rle
from semsam.data.schema import Kind
from semsam.storage import existing_folder

PANOPTIC, INSTANCES = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"


def read_real(samples_dir: Path, image_id: int) -> Read:
    source, files = SOURCES["coco_panoptic"], existing_folder(str(samples_dir / "coco"))
    index = source.index(files, "val")
    assert index.rejected == []
    assert [entry.sample_id for entry in index.entries] == ["000000039769", "000000142238"]
    entry = next(entry for entry in index.entries if int(entry.sample_id) == image_id)
    return source.read(files, "val", entry)


@pytest.mark.samples
@pytest.mark.parametrize("image_id", [39769, 142238])
def test_real_segments_have_the_exact_pixels_of_the_png(samples_dir: Path, image_id: int) -> None:
    read = read_real(samples_dir, image_id)
    document = json.loads((samples_dir / "coco" / PANOPTIC).read_text())
    rows = next(row for row in document["annotations"] if row["image_id"] == image_id)["segments_info"]
    names = {row["id"]: row["name"] for row in document["categories"]}
    things = {row["id"]: bool(row["isthing"]) for row in document["categories"]}
    with Image.open(samples_dir / f"coco/panoptic_val2017/{image_id:012d}.png") as png:
        red, green, blue = np.moveaxis(np.array(png.convert("RGB"), np.int64), 2, 0)
    segments = [region for region in read.record.regions if region.kind is Kind.PANOPTIC]
    vocabulary = SOURCES["coco_panoptic"].vocabulary()
    assert read.dropped == ()
    for region, row in zip(segments, rows, strict=True):
        expected = red + 256 * green + 65536 * blue == row["id"]
        ys, xs = np.nonzero(expected)
        assert region.rle is not None
        assert np.array_equal(rle.decode(region.rle, *expected.shape), expected)
        assert region.area == row["area"] == expected.sum()
        assert region.box_xyxy == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert region.is_crowd == bool(row["iscrowd"])
        assert region.is_thing == things[row["category_id"]]
        assert vocabulary.objects[region.object_category or 0] == names[row["category_id"]]
        assert region.annotation_id == str(row["id"])


@pytest.mark.samples
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Inside pycocotools' decode.
@pytest.mark.parametrize(("image_id", "crowds"), [(39769, 0), (142238, 1)])
def test_real_instances_are_those_of_pycocotools(samples_dir: Path, image_id: int, crowds: int) -> None:
    read = read_real(samples_dir, image_id)
    document = json.loads((samples_dir / "coco/annotations/instances_val2017.json").read_text())
    rows = [row for row in document["annotations"] if row["image_id"] == image_id]
    regions = [region for region in read.record.regions if region.kind is Kind.INSTANCE]
    assert sum(region.is_crowd for region in regions) == crowds
    for region, row in zip(regions, rows, strict=True):
        shape = (read.record.height, read.record.width)
        if isinstance(row["segmentation"], list):
            expected = coco_mask.decode(coco_mask.frPyObjects(row["segmentation"], *shape)).any(axis=2)
        else:
            expected = coco_mask.decode(row["segmentation"]).astype(bool)
        assert np.array_equal(rle.decode(region.rle or b"", *shape), expected)
        assert region.area == row["area"]
        x, y, w, h = row["bbox"]
        assert region.box_xyxy == pytest.approx((x, y, x + w, y + h), rel=1e-6)


def boxes_of(read: Read) -> list[tuple[float, ...]]:
    return [region.box_xyxy for region in read.record.regions if region.kind is Kind.INSTANCE]


@pytest.mark.parametrize(
    ("box", "expected", "dropped"),
    [
        ([2.25, 3.5, 9.5, 5.75], (2.25, 3.5, 11.75, 9.25), []),
        ([-1.0, -2.0, 40.0, 30.0], (0, 0, 32, 24), []),
        (["2", " 3.5 ", 9, 5], (2, 3.5, 11, 8.5), []),
        (None, (2, 3, 12, 9), []),
        ([2, 3, 0, 6], (2, 3, 12, 9), ["box off its mask"]),
        ([20, 3, 4, 4], (2, 3, 12, 9), ["box off its mask"]),
    ],
)
def test_an_instance_has_its_annotated_box(
    write_native: Any, box: Any, expected: tuple[float, ...], dropped: list[str]
) -> None:
    native = write_native("coco_panoptic")
    native.edit(INSTANCES, lambda document: document["annotations"][0].update(bbox=box))
    read = native.read()
    assert boxes_of(read) == [expected]
    assert [one.reason for one in read.dropped] == dropped


def test_an_instance_without_a_box_has_its_mask_s_and_one_with_an_odd_box_is_counted(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.edit(INSTANCES, lambda document: document["annotations"][0].pop("bbox"))
    assert boxes_of(native.read()) == [(2, 3, 12, 9)]
    native.edit(INSTANCES, lambda document: document["annotations"][0].update(bbox=[1, 2, 3]))
    assert boxes_of(native.read()) == []
    assert [one.reason for one in native.index().rejected_regions] == ["annotations: unusable bbox"]


def test_images_without_their_png_are_rejected_before_anything_is_read(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.path("panoptic_val2017/000000000003.png").unlink()
    index = native.index()
    assert [(r.reason, r.sample_id) for r in index.rejected] == [("missing panoptic PNG", "000000000003")]
    assert [entry.sample_id for entry in index.entries] == ["000000000007"]


def test_pngs_may_lie_where_their_zip_was(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    expected = native.read()
    (native.root / "panoptic_val2017").rename(native.root / "annotations/panoptic_val2017")
    assert native.read() == expected


def test_an_image_without_a_panoptic_row_is_rejected(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.edit(PANOPTIC, lambda document: document["annotations"].pop(0))
    assert [r.reason for r in native.index().rejected] == ["missing panoptic annotation"]


def test_a_segment_without_pixels_and_pixels_without_a_segment_are_counted(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.edit(PANOPTIC, lambda document: document["annotations"][0]["segments_info"][0].update(id=262))
    assert [(r.reason, r.detail) for r in native.read().dropped] == [
        ("empty mask", f"{native.root}/{PANOPTIC}: segment 262 has no pixel"),
        ("segment not in json", f"{native.root}/{PANOPTIC}: segment 261: 60 pixels"),
    ]


@pytest.mark.parametrize("fault", ["broken", "other size"])
def test_an_unusable_png_is_a_bad_sample(write_native: Any, fault: str) -> None:
    native = write_native("coco_panoptic")
    path = native.path("panoptic_val2017/000000000003.png")
    if fault == "broken":
        path.write_bytes(path.read_bytes()[:60])
    else:
        native.png("panoptic_val2017/000000000003.png", np.zeros((32, 24, 3)))
    with pytest.raises(BadSample) as caught:
        native.read()
    reasons = {"broken": "broken panoptic PNG", "other size": "image size differs from annotation"}
    assert caught.value.rejected.reason == reasons[fault]


@pytest.mark.samples
@pytest.mark.parametrize(("split", "images", "segments"), [("train", 100, 1111), ("val", 60, 631)])
def test_a_real_copy_without_instances_is_read_and_says_so(
    samples_dir: Path, split: str, images: int, segments: int
) -> None:
    source, files = SOURCES["coco_panoptic"], existing_folder(str(samples_dir / "coco128"))
    index = source.index(files, split)
    assert (len(index.entries), index.absent) == (images, ("instances",))
    assert index.rejected == index.rejected_regions == []
    assert sum(len(json.loads(entry.annotations)["segments"]) for entry in index.entries) == segments


def test_the_panoptic_half_alone_gives_the_same_segments(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    both = native.read().record
    assert native.index().absent == ()
    native.path(INSTANCES).unlink()
    assert native.index().absent == ("instances",)
    assert native.read().record.regions == both.regions[:1]


def test_the_other_half_alone_is_an_error_that_names_both_files(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.path(PANOPTIC).unlink()
    with pytest.raises(ValueError, match=f"found no {PANOPTIC}, only {INSTANCES}; training needs the panoptic half"):
        native.index()


@pytest.mark.parametrize("key", ["3", " 3 ", "3.0", 3.0])
def test_instances_with_ids_in_text_find_their_image(write_native: Any, key: Any) -> None:
    native = write_native("coco_panoptic")
    expected = native.read()
    native.edit(INSTANCES, lambda document: document["annotations"][0].update(image_id=key))
    assert native.read() == expected
    assert native.index().rejected_regions == []


def test_numbers_and_flags_in_text_are_what_they_say(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    expected = native.read()

    def in_text(document: Any) -> None:
        for row in [*document["annotations"], *document["categories"], *document["images"]]:
            row |= {key: str(value) for key, value in row.items() if isinstance(value, int | float)}
            for segment in row.get("segments_info", ()):
                segment |= {key: str(value) for key, value in segment.items()}

    native.edit(PANOPTIC, in_text)
    native.edit(INSTANCES, in_text)
    assert native.read() == expected
    native.edit(INSTANCES, lambda document: document["annotations"][0].update(iscrowd="true"))
    assert [region.is_crowd for region in native.read().record.regions] == [False, True]


def test_instances_of_other_images_are_counted(write_native: Any) -> None:
    native = write_native("coco_panoptic")

    def change(document: Any) -> None:
        first = document["annotations"][0]
        document["annotations"] += [first | {"image_id": 9, "id": 9}, first | {"image_id": "cat", "id": 10}]
        document["annotations"] += [first | {"image_id": 11, "id": 11}]
        document["images"][0]["id"] = 11

    native.edit(INSTANCES, change)
    index = native.index()
    assert index.rejected == []
    assert [(r.reason, r.sample_id, r.detail) for r in index.rejected_regions] == [
        (
            "annotations: unusable image_id",
            "",
            f"{native.root}/{INSTANCES}: annotations[2]: image_id: 'cat' is no number",
        ),
        ("image without instance annotations", "000000000007", f"{native.root}/{INSTANCES}"),
        ("annotation of an image that is not listed", "000000000009", f"{native.root}/{INSTANCES}: annotation 9"),
        ("instance of an image without segments", "000000000011", f"{native.root}/{INSTANCES}: annotation 11"),
    ]


def test_segment_0_is_void_and_counted(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    void = {"id": 0, "category_id": 1, "iscrowd": 0, "area": 708}
    native.edit(PANOPTIC, lambda document: document["annotations"][0]["segments_info"].append(void))
    read = native.read()
    assert len(read.record.regions) == 2
    assert [r.reason for r in read.dropped] == ["segment id 0 is void"]


def test_the_annotation_names_its_png(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    expected = native.read()
    folder = native.root / "panoptic_val2017"
    (folder / "000000000003.png").rename(folder / "segments of 3.png")
    native.edit(PANOPTIC, lambda document: document["annotations"][0].update(file_name="segments of 3.png"))
    assert native.read() == expected


def test_a_second_annotation_of_an_image_is_counted(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    expected = native.read()
    native.edit(PANOPTIC, lambda document: document["annotations"].append(document["annotations"][0]))
    assert native.read() == expected
    assert [(r.reason, r.detail) for r in native.index().rejected_regions] == [
        (
            "annotations: unusable image_id",
            f"{native.root}/{PANOPTIC}: annotations[2]: image_id: 3 has an annotation already",
        )
    ]


def test_a_crowd_segment_is_kept_and_flagged(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.edit(PANOPTIC, lambda document: document["annotations"][0]["segments_info"][0].update(iscrowd=1))
    flags = [(region.kind, region.is_crowd) for region in native.read().record.regions]
    assert flags == [(Kind.PANOPTIC, True), (Kind.INSTANCE, False)]
