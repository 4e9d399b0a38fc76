"""COCO: panoptic segments with the PNG's pixels, and instances beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pipelines.files import open_root
from pipelines.sources import SOURCES
from pipelines.sources.source import BadSample, Read
from semsam.data import rle
from semsam.data.schema import Kind

PANOPTIC = "annotations/panoptic_val2017.json"


def read_real(samples_dir: Path, image_id: int) -> Read:
    source, files = SOURCES["coco_panoptic"], open_root(str(samples_dir / "coco"))
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


def test_a_crowd_segment_is_kept_and_flagged(write_native: Any) -> None:
    native = write_native("coco_panoptic")
    native.edit(PANOPTIC, lambda document: document["annotations"][0]["segments_info"][0].update(iscrowd=1))
    flags = [(region.kind, region.is_crowd) for region in native.read().record.regions]
    assert flags == [(Kind.PANOPTIC, True), (Kind.INSTANCE, False)]
