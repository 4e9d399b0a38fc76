"""Numbers of real photos are those that pycocotools and slow versions find in the native files themselves."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from semsam.data import rle
from semsam.data.schema import Kind, Region
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.items import ImageItem
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Numbers
from semsam.evaluation.panoptic_quality import panoptic_quality
from semsam.evaluation.questions import item_of
from semsam.evaluation.semantic_iou import semantic_iou
from semsam.storage import existing_folder
from tests.synthetic_items import perturbed
from tests.unit.semsam.evaluation.test_average_precision import NUMBERS, pycocotools_evaluation, run
from tests.unit.semsam.evaluation.test_panoptic_quality import slow_panoptic_quality
from tests.unit.semsam.evaluation.test_semantic_iou import slow_numbers

pytestmark = pytest.mark.samples

INSTANCES = "annotations/instances_{split}2017.json"
ADE_FOLDERS = {"train": "training", "val": "validation"}


def items_of(dataset: str, folder: Path, split: str) -> list[ImageItem]:
    """What the dataset's source makes of its native files, with answers near to it."""
    source = dataclasses.replace(SOURCES[dataset], allow_absent=("instances",))
    files = existing_folder(str(folder))
    records = [source.read(files, split, entry).record for entry in source.index(files, split).entries]
    return [perturbed(item_of(record), seed=seed) for seed, record in enumerate(records)]


@pytest.fixture(scope="module")
def coco_folders(samples_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """COCO's samples, and photos of which there are instances alone: a file without segments is put beside them."""
    folder = tmp_path_factory.mktemp("coco_tiny")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        name = INSTANCES.format(split=split)
        (folder / name).write_bytes((samples_dir / "coco_tiny" / name).read_bytes())
        (folder / f"{split}2017").symlink_to(samples_dir / "coco_tiny" / f"{split}2017")
        (folder / f"panoptic_{split}2017").mkdir()
        document = json.loads((folder / name).read_text())
        segments = []
        for image in document["images"]:
            png = image["file_name"].replace(".jpg", ".png")
            Image.new("RGB", (image["width"], image["height"])).save(folder / f"panoptic_{split}2017" / png)
            segments.append({"image_id": image["id"], "file_name": png, "segments_info": []})
        panoptic = document | {"annotations": segments}
        (folder / name.replace("instances", "panoptic")).write_text(json.dumps(panoptic))
    return {"coco": samples_dir / "coco", "coco_tiny": folder}


@pytest.fixture(scope="module", params=[("coco", "val"), ("coco_tiny", "train"), ("coco_tiny", "val")])
def coco(request: pytest.FixtureRequest, coco_folders: dict[str, Path]) -> tuple[COCO, list[ImageItem]]:
    """The native instances as pycocotools reads them, and items of their photos."""
    name, split = request.param
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco_folders[name] / INSTANCES.format(split=split)))
    return truth, items_of("coco_panoptic", coco_folders[name], split)


@pytest.mark.parametrize("overlap", Overlap)
def test_ap_is_that_of_the_instances_in_the_native_file(coco: tuple[COCO, list[ImageItem]], overlap: Overlap) -> None:
    """With their own areas, boxes and crowds, not those of the panoptic segments beside them or of their masks."""
    truth, items = coco
    categories = load_categories("coco_panoptic")
    ids = [row["id"] for row in categories.document["objects"]]
    results = [
        {
            "image_id": int(item.sample_id),
            "category_id": ids[one.object_category],
            "score": one.score,
            **(
                {"bbox": [one.box_xyxy[0], one.box_xyxy[1], *np.subtract(one.box_xyxy[2:], one.box_xyxy[:2]).tolist()]}
                if overlap is Overlap.BOXES
                else {"segmentation": {"size": [item.height, item.width], "counts": one.rle.decode()}}
            ),
        }
        for item in items
        for one in item.instances or ()
    ]
    assert len(results) > 10
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox" if overlap is Overlap.BOXES else "segm")
    evaluation.params.imgIds = sorted(int(item.sample_id) for item in items)
    expected = run(evaluation)
    found = average_precision(items, categories.vocabulary, Names.THINGS, overlap)
    assert isinstance(found, Numbers)
    assert 0.1 < found.values["ap"] < 0.9
    assert found.values == pytest.approx(expected, abs=1e-12)
    assert set(found.values) <= set(NUMBERS)


def test_areas_crowds_and_boxes_are_those_of_the_native_file(coco: tuple[COCO, list[ImageItem]]) -> None:
    truth, items = coco
    native = truth.loadAnns(truth.getAnnIds(imgIds=[int(item.sample_id) for item in items], iscrowd=None))
    ours = {
        (int(item.sample_id), int(region.annotation_id)): region
        for item in items
        for region in item.regions
        if region.kind is Kind.INSTANCE
    }
    assert len(ours) == len(native)
    for row in native:
        region = ours[row["image_id"], row["id"]]
        x, y, w, h = row["bbox"]
        assert region.is_crowd == row["iscrowd"]
        assert region.area == pytest.approx(row["area"], rel=1e-6)
        assert region.box_xyxy == pytest.approx((x, y, x + w, y + h), abs=1e-4)


def native_ade20k(samples_dir: Path, item: ImageItem, split: str) -> ImageItem:
    """The item with its truth taken from the PNGs alone, by the table of classes that lies beside the samples."""
    root, folder = samples_dir / "ade20k" / "ADEChallengeData2016", ADE_FOLDERS[split]
    table = json.loads((samples_dir / "categories" / "ade20k_150.json").read_text())["categories"]
    classes = np.asarray(Image.open(root / f"annotations/{folder}/{item.sample_id}.png"))
    path = root / f"annotations_instance/{folder}/{item.sample_id}.png"
    instances = np.asarray(Image.open(path)) if path.exists() else np.zeros((*classes.shape, 3), np.uint8)
    name_of_red = {row["instance100_id"]: row["id"] for row in table if row["isthing"]}

    def found() -> Iterator[tuple[Kind, int, np.ndarray, bool]]:
        for red, green in sorted({tuple(one) for one in instances[..., :2].reshape(-1, 2).tolist()} - {(0, 0)}):
            mask = (instances[..., 0] == red) & (instances[..., 1] == green)
            yield Kind.INSTANCE, name_of_red[red], mask, False
            yield Kind.PANOPTIC, name_of_red[red], mask, False
        for row in table:
            mask = (classes == row["png_value"]) & ~instances[..., :2].any(-1)
            # Where there is no PNG of instances its things cannot be told apart; elsewhere what is in none is void.
            if mask.any() and not (row["isthing"] and path.exists()):
                yield Kind.PANOPTIC, row["id"], mask, bool(row["isthing"])

    regions = []
    for kind, name, mask, is_crowd in found():
        ys, xs = np.nonzero(mask)
        box = (float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1))
        regions.append(Region("", rle.encode(mask), box, float(mask.sum()), kind, name, is_crowd=is_crowd))
    return dataclasses.replace(item, regions=tuple(regions))


@pytest.fixture(scope="module")
def ade20k(samples_dir: Path) -> list[tuple[ImageItem, ImageItem]]:
    """Each photo's item, and the same with the truth of its PNGs: two with instances and two without."""
    folder, items = samples_dir / "ade20k" / "ADEChallengeData2016", []
    for split in ("train", "val"):
        found = items_of("ade20k", folder, split)
        items += [(item, native_ade20k(samples_dir, item, split)) for item in found]
    assert len(items) == 4
    return items


@pytest.mark.parametrize("overlap", Overlap)
def test_ap_of_ade20k_is_that_of_the_instances_in_the_png(
    ade20k: list[tuple[ImageItem, ImageItem]], overlap: Overlap
) -> None:
    ours, native = zip(*ade20k, strict=True)
    names = load_categories("ade20k").vocabulary
    assert sum(region.kind is Kind.INSTANCE for item in native for region in item.regions) > 10
    found = average_precision(ours, names, Names.THINGS, overlap)
    assert isinstance(found, Numbers)
    assert 0.1 < found.values["ap"] < 0.9
    expected = run(pycocotools_evaluation(list(native), Names.THINGS, overlap, names))
    assert found.values == pytest.approx(expected, abs=1e-12)


def test_panoptic_quality_of_ade20k_is_that_of_the_segments_in_the_png(
    ade20k: list[tuple[ImageItem, ImageItem]],
) -> None:
    ours, native = zip(*ade20k, strict=True)
    names = load_categories("ade20k").vocabulary
    found = panoptic_quality(ours, names)
    assert isinstance(found, Numbers)
    assert len(found.values) == 9
    assert found.values == pytest.approx(slow_panoptic_quality(list(native), names), abs=1e-12)


def test_miou_of_ade20k_is_that_of_the_classes_in_the_png(ade20k: list[tuple[ImageItem, ImageItem]]) -> None:
    ours, native = zip(*ade20k, strict=True)
    names = load_categories("ade20k").vocabulary
    found = semantic_iou(ours, names)
    assert isinstance(found, Numbers)
    assert found.values == pytest.approx(slow_numbers(list(native), len(names.objects)), abs=1e-12)
