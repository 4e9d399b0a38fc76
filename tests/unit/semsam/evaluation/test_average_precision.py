"""Average precision and recall are pycocotools' to the last digit, and say so where there is nothing to measure."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.items import ImageItem, NamedMask, from_table, to_table
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from tests.synthetic_items import NAMES, federated, synthetic_items

NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def category_of(names: Names) -> Callable[[int | None, int | None], int | None]:
    """The native category id of an object and part name; None: is not measured."""

    def of(object_category: int | None, part_category: int | None) -> int | None:
        if names is Names.THINGS:
            return object_category if part_category is None and NAMES.things[object_category or 0] else None
        if names is Names.PARTS:
            return part_category
        pair = (object_category, part_category)
        return NAMES.object_parts.index(pair) if pair in NAMES.object_parts else None  # type: ignore[arg-type]

    return of


def pycocotools_evaluation(items: list[ImageItem], names: Names, overlap: Overlap) -> COCOeval:
    """The evaluation by pycocotools, ready to run: its own ids, its own readers of results."""
    category = category_of(names)
    truth, found, areas = [], [], []
    for image, item in enumerate(items):
        for region in item.regions:
            name = category(region.object_category, region.part_category)
            if region.kind is Kind.PANOPTIC or name is None:
                continue
            x1, y1, x2, y2 = region.box_xyxy
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": name,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": region.area,
                    "iscrowd": int(region.is_crowd),
                    "segmentation": {"size": [item.height, item.width], "counts": region.rle},
                }
            )
        for answer in item.instances or ():
            name = category(answer.object_category, answer.part_category)
            if name is None:
                continue
            x1, y1, x2, y2 = answer.box_xyxy
            mask = {"size": [item.height, item.width], "counts": answer.rle}
            where = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if overlap is Overlap.BOXES else {"segmentation": mask}
            found.append({"image_id": image, "category_id": name, "score": answer.score, **where})
            areas.append(item.original_height * item.original_width / (item.height * item.width))
    classes = {Names.THINGS: NAMES.objects, Names.PARTS: NAMES.parts, Names.OBJECT_PARTS: NAMES.object_parts}[names]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": one.height, "width": one.width} for i, one in enumerate(items)],
            "annotations": truth,
            "categories": [{"id": c, "name": str(name)} for c, name in enumerate(classes)],
        }
        coco.createIndex()
        answers = coco.loadRes(found)
        for answer, scale in zip(answers.dataset["annotations"], areas, strict=True):
            answer["area"] = answer["area"] * scale
    return COCOeval(coco, answers, "bbox" if overlap is Overlap.BOXES else "segm")


def run(evaluation: COCOeval) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: value for name, value in zip(NUMBERS, evaluation.stats, strict=True) if value > -1}


def numbers(items: list[ImageItem], names: Names = Names.THINGS, overlap: Overlap = Overlap.MASKS) -> Numbers:
    result = average_precision(items, NAMES, names, overlap)
    assert isinstance(result, Numbers), result
    return result


def assert_same(values: dict[str, float], expected: dict[str, float]) -> None:
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("names", Names)
@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize("resized", [True, False])
def test_numbers_are_those_of_pycocotools(names: Names, overlap: Overlap, resized: bool) -> None:
    items = synthetic_items(60, seed=1, resized=resized)
    result = numbers(items, names, overlap)
    assert_same(dict(result.values), run(pycocotools_evaluation(items, names, overlap)))
    assert_same(result.images.values(), dict(result.values))  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("names", Names)
@pytest.mark.parametrize("overlap", Overlap)
def test_numbers_of_many_images_are_those_of_pycocotools(names: Names, overlap: Overlap) -> None:
    items = synthetic_items(600, seed=7)
    result = numbers(items, names, overlap)
    assert_same(dict(result.values), run(pycocotools_evaluation(items, names, overlap)))
    assert_same(result.images.values(), dict(result.values))  # type: ignore[attr-defined]
