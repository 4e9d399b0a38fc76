"""Panoptic quality is that of a slow version written from the published semantics, on maps of segments."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import pytest
from hotcoco import COCO
from hotcoco.panoptic import PanopticEval
from jaxtyping import Bool

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.items import ImageItem, NamedMask
from semsam.evaluation.numbers import Absent, Numbers
from semsam.evaluation.panoptic_quality import PanopticSums, panoptic_quality
from tests.synthetic_items import NAMES, synthetic_items


def slow_panoptic_quality(items: list[ImageItem], names: Vocabulary) -> dict[str, float]:
    """PQ, SQ and RQ as the paper defines them, from dense masks; of several crowds of a name the last one counts."""
    iou_sum: dict[int, float] = defaultdict(float)
    tp: dict[int, int] = defaultdict(int)
    fp: dict[int, int] = defaultdict(int)
    fn: dict[int, int] = defaultdict(int)
    for item in items:
        size = item.height, item.width
        truth = [(r, rle.decode(r.rle or b"", *size)) for r in item.regions if r.kind is Kind.PANOPTIC]
        answers = [(a, rle.decode(a.rle, *size)) for a in item.panoptic or ()]
        void = ~np.any([mask for _, mask in truth] + [np.zeros(size, bool)], axis=0)
        used = set()
        for region, true in truth:
            if region.is_crowd:
                continue
            for place, (answer, mask) in enumerate(answers):
                both = (true & mask).sum()
                iou = both / (true.sum() + mask.sum() - both - (mask & void).sum())
                if answer.object_category == region.object_category and iou > 0.5:
                    iou_sum[answer.object_category] += iou
                    tp[answer.object_category] += 1
                    used.add(place)
                    break
            else:
                fn[region.object_category or 0] += 1
        crowds = {region.object_category: mask for region, mask in truth if region.is_crowd}
        for place, (answer, mask) in enumerate(answers):
            unmarked = void | crowds.get(answer.object_category, np.zeros(size, bool))
            if place not in used and (mask & unmarked).sum() / mask.sum() <= 0.5:
                fp[answer.object_category] += 1
    rows = {}
    for name in range(len(names.objects)):
        if tp[name] + fp[name] + fn[name]:
            segments = tp[name] + fp[name] / 2 + fn[name] / 2
            sq = iou_sum[name] / tp[name] if tp[name] else 0.0
            rows[name] = {"pq": iou_sum[name] / segments, "sq": sq, "rq": tp[name] / segments}
    values = {}
    for suffix, wanted in (("", (True, False)), ("_things", (True,)), ("_stuff", (False,))):
        chosen = [row for name, row in rows.items() if names.things[name] in wanted]
        values |= {key + suffix: float(np.mean([row[key] for row in chosen])) for key in ("pq", "sq", "rq") if chosen}
    return values


def numbers(items: list[ImageItem], names: Vocabulary = NAMES) -> Numbers:
    result = panoptic_quality(items, names)
    assert isinstance(result, Numbers), result
    return result


@pytest.mark.parametrize(("count", "seed"), [(60, 1), pytest.param(600, 7, marks=pytest.mark.slow)])
def test_numbers_are_those_of_the_slow_version(count: int, seed: int) -> None:
    items = synthetic_items(count, seed)
    expected = slow_panoptic_quality(items, NAMES)
    assert len(expected) == 9
    assert numbers(items).values == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.samples
def test_numbers_of_photos_are_those_of_the_slow_version(photo_items: list[ImageItem], photo_names: Vocabulary) -> None:
    expected = slow_panoptic_quality(photo_items, photo_names)
    assert numbers(photo_items, photo_names).values == pytest.approx(expected, abs=1e-12)


def test_images_measured_one_by_one_give_the_library_numbers_of_all_at_once() -> None:
    items = synthetic_items(60, seed=2)
    truth, answers, images = [], [], []
    for number, item in enumerate(items):
        images.append({"id": number + 1, "height": item.height, "width": item.width})
        size = [item.height, item.width]
        for region in item.regions:
            if region.kind is Kind.PANOPTIC:
                where = {"segmentation": {"size": size, "counts": region.rle}, "bbox": [0, 0, 1, 1], "area": 1}
                ids = {"id": len(truth) + 1, "image_id": number + 1, "category_id": (region.object_category or 0) + 1}
                truth.append({**ids, **where, "iscrowd": int(region.is_crowd)})
        for one in item.panoptic or ():
            where = {"segmentation": {"size": size, "counts": one.rle}, "bbox": [0, 0, 1, 1], "score": 1.0}
            answers.append({"image_id": number + 1, "category_id": one.object_category + 1, **where})
    categories = [{"id": i + 1, "name": name, "isthing": int(NAMES.things[i])} for i, name in enumerate(NAMES.objects)]
    true = COCO({"images": images, "annotations": truth, "categories": categories})
    evaluation = PanopticEval(true, true.load_res(answers))
    evaluation.evaluate()
    result = evaluation.results()
    values = numbers(items).values
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for key in ("pq", "sq", "rq"):
            assert values[key + suffix] == pytest.approx(result[group][key], abs=1e-12)


def test_the_sums_of_images_add_up_to_the_numbers() -> None:
    items = synthetic_items(60, seed=1)
    whole = numbers(items)
    weights = np.ones((1, 60), np.int64)
    assert {k: v[0] for k, v in whole.images.resampled(weights).items()} == whole.values
    half = numbers(items[:30])
    weights[0, 30:] = 0
    chosen = {k: v[0] for k, v in whole.images.resampled(weights).items()}
    assert chosen == pytest.approx(dict(half.values), abs=1e-12)


def test_numbers_of_images_are_those_of_the_image_alone() -> None:
    items = synthetic_items(12, seed=1)
    of_image = numbers(items).images.per_image()
    for number, item in enumerate(items):
        values = panoptic_quality([item], NAMES)
        alone = values.values if isinstance(values, Numbers) else {}
        for key in ("pq", "sq_stuff"):
            assert of_image[key][number] == pytest.approx(alone.get(key, np.nan), nan_ok=True, abs=1e-12)


def test_classes_have_their_own_numbers() -> None:
    table = numbers(synthetic_items(60, seed=1)).images.per_class()
    assert set(table) <= set(NAMES.objects)
    things = [
        table[name]["pq"] for name, thing in zip(NAMES.objects, NAMES.things, strict=True) if thing and name in table
    ]
    assert np.mean(things) == pytest.approx(numbers(synthetic_items(60, seed=1)).values["pq_things"], abs=1e-12)


def box(y1: int, y2: int, x1: int, x2: int) -> Bool[np.ndarray, "40 60"]:
    mask = np.zeros((40, 60), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def image(truth: list[tuple[int, np.ndarray, bool]], answers: list[tuple[int, np.ndarray]]) -> ImageItem:
    regions = tuple(
        Region("0", rle.encode(mask), (0.0, 0.0, 1.0, 1.0), 1.0, Kind.PANOPTIC, name, is_crowd=crowd)
        for name, mask, crowd in truth
    )
    found = tuple(NamedMask(rle.encode(mask), (0.0, 0.0, 1.0, 1.0), name, None, 1.0) for name, mask in answers)
    return ImageItem("photo", 40, 60, 40, 60, regions, panoptic=found)


CASES = {
    "perfect": ([(0, box(0, 10, 0, 10), False)], [(0, box(0, 10, 0, 10))], (1.0, 1, 0, 0)),
    "void does not shrink the fit": ([(0, box(0, 10, 0, 10), False)], [(0, box(0, 10, 0, 20))], (1.0, 1, 0, 0)),
    "an IoU of a half is no match": ([(0, box(0, 10, 0, 10), False)], [(0, box(0, 10, 0, 5))], (0, 0, 1, 1)),
    "in void": ([(0, box(0, 10, 0, 10), False)], [(0, box(20, 30, 0, 10))], (0, 0, 0, 1)),
    "by half in void": ([(2, box(0, 10, 0, 10), False)], [(0, box(0, 10, 5, 15))], (0, 0, 1, 0)),
    "in a crowd of its name": ([(0, box(0, 10, 0, 10), True)], [(0, box(0, 10, 0, 5))], (0, 0, 0, 0)),
    "in a crowd of another name": ([(1, box(0, 10, 0, 10), True)], [(0, box(0, 10, 0, 5))], (0, 0, 1, 0)),
    "an empty segment is none": ([(0, box(0, 0, 0, 0), False)], [(0, box(0, 0, 0, 0))], (0, 0, 0, 0)),
    "no answer": ([(0, box(0, 10, 0, 10), False)], [], (0, 0, 0, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_void_and_crowds_are_treated_as_published(case: str) -> None:
    truth, answers, expected = CASES[case]
    sums = numbers([image(truth, answers)]).images
    assert isinstance(sums, PanopticSums)
    of_dog = sums.sums[sums.category == 0]
    assert of_dog.sum(0) == pytest.approx(expected, abs=1e-12)


def test_overlapping_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="photo: segments overlap"):
        panoptic_quality([image([(0, box(0, 9, 0, 9), False)], [(0, box(0, 9, 0, 9)), (1, box(8, 20, 8, 20))])], NAMES)


def test_names_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="photo: a segment has name 7, of 7 names"):
        panoptic_quality([image([(0, box(0, 9, 0, 9), False)], [(7, box(0, 9, 0, 9))])], NAMES)


def test_without_answers_or_truth_there_are_no_numbers() -> None:
    item = image([(0, box(0, 9, 0, 9), False)], [])
    missing = dataclasses.replace(item, sample_id="other", panoptic=None)
    assert panoptic_quality([item, missing], NAMES) == Absent(
        "1 of 2 images have no panoptic answers, the first of them other"
    )
    assert isinstance(panoptic_quality([dataclasses.replace(item, regions=())], NAMES), Absent)
    with pytest.raises(ValueError, match="no images"):
        panoptic_quality([], NAMES)
