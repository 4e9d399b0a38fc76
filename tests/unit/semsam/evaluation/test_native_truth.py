"""AP of a native dataset's own annotations, as pycocotools reads them from the native file."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from semsam.data.schema import Kind
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.items import ImageItem
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Numbers
from semsam.evaluation.questions import item_of
from semsam.storage import existing_folder
from tests.synthetic_items import perturbed

STATS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")


@pytest.fixture(scope="module")
def items(samples_dir: Path) -> list[ImageItem]:
    source, files = SOURCES["coco_panoptic"], existing_folder(str(samples_dir / "coco"))
    entries = source.index(files, "val").entries
    return [perturbed(item_of(source.read(files, "val", one).record), seed=i) for i, one in enumerate(entries)]


def test_mask_ap_is_that_of_the_instances_in_the_native_file(samples_dir: Path, items: list[ImageItem]) -> None:
    """With their own areas and crowds, not those of the panoptic segments beside them."""
    categories = load_categories("coco_panoptic")
    ids = [row["id"] for row in categories.document["objects"]]
    results = [
        {
            "image_id": int(item.sample_id),
            "category_id": ids[one.object_category],
            "segmentation": {"size": [item.height, item.width], "counts": one.rle.decode()},
            "score": one.score,
        }
        for item in items
        for one in item.instances or ()
        if one.part_category is None
    ]
    assert len(results) > 10
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(samples_dir / "coco" / "annotations" / "instances_val2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.params.imgIds = sorted(int(item.sample_id) for item in items)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    found = average_precision(items, categories.vocabulary, Names.THINGS, Overlap.MASKS)
    assert isinstance(found, Numbers)
    expected = {name: value for name, value in zip(STATS, evaluation.stats, strict=False) if value > -1}
    assert {name: found.values[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    native = [one for one in truth.loadAnns(truth.getAnnIds()) if one["image_id"] in evaluation.params.imgIds]
    ours = [region for item in items for region in item.regions if region.kind is Kind.INSTANCE]
    assert sum(region.is_crowd for region in ours) == sum(one["iscrowd"] for one in native)
    assert sorted(region.area for region in ours) == pytest.approx(sorted(one["area"] for one in native), rel=1e-6)
