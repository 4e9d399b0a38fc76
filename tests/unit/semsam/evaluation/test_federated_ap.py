"""Federated AP is that of a slow version written from LVIS's rules, detection by detection."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from semsam.data import rle
from semsam.data.schema import Kind, Region
from semsam.evaluation.federated_ap import federated_average_precision
from semsam.evaluation.items import ImageItem, NamedMask
from semsam.evaluation.matches import Matches
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from tests.synthetic_items import NAMES, federated, synthetic_items

SIZES = {"": (0, 1e10), "_small": (0, 32**2), "_medium": (32**2, 96**2), "_large": (96**2, 1e10)}


def classes(names: Names) -> list[tuple[int | None, int | None]]:
    """Object and part of every class; None: any."""
    if names is Names.THINGS:
        return [(o, None) for o in range(len(NAMES.objects)) if NAMES.things[o]]
    return list(NAMES.object_parts) if names is Names.OBJECT_PARTS else [(None, p) for p in range(len(NAMES.parts))]


def is_of(one: Region | NamedMask, name: tuple[int | None, int | None], names: Names) -> bool:
    if isinstance(one, Region) and (one.kind is Kind.PANOPTIC or one.is_crowd):
        return False
    if names is Names.PARTS:
        return one.part_category is not None and one.part_category == name[1]
    return (one.object_category, one.part_category) == name


def slow_federated_ap(items: list[ImageItem], names: Names, overlap: Overlap, limit: int = 300) -> dict[str, float]:
    thresholds = np.linspace(0.5, 0.95, 10)
    recalls = np.linspace(0, 1, 101)
    values: dict[str, list[float]] = {}
    for name in classes(names):
        for suffix, (low, high) in SIZES.items():
            for t, threshold in enumerate(thresholds):
                scored, regions = [], 0
                for item in items:
                    found, of_image = one_image(item, name, names, overlap, (low, high), threshold, limit)
                    scored += found
                    regions += of_image
                if not regions:
                    continue
                scored.sort(key=lambda one: -one[0])
                tp = np.cumsum([one[1] for one in scored])
                precision = np.append(tp / (np.arange(len(scored)) + 1 + np.spacing(1)), 0)
                place = np.searchsorted(tp / regions, recalls) if scored else np.zeros(101, int)
                ap = float(np.mean([precision[p:].max() for p in place]))
                values.setdefault(f"ap{suffix}", []).append(ap)
                values.setdefault(f"ar{suffix or limit}", []).append(tp[-1] / regions if scored else 0)
                if not suffix and t in (0, 5):
                    values.setdefault({0: "ap50", 5: "ap75"}[t], []).append(ap)
    return {key: float(np.mean(value)) for key, value in values.items()}


def one_image(
    item: ImageItem,
    name: tuple[int | None, int | None],
    names: Names,
    overlap: Overlap,
    size: tuple[float, float],
    threshold: float,
    limit: int,
) -> tuple[list[tuple[float, bool]], int]:
    """Score and truth of the detections that count, and the number of regions that do."""
    truth = [region for region in item.regions if is_of(region, name, names)]
    if not truth and not is_checked(item, name):
        return [], 0
    answers = sorted(item.instances or (), key=lambda one: -one.score)[:limit]
    answers = [answer for answer in answers if is_of(answer, name, names)]
    counts = [size[0] <= region.area <= size[1] for region in truth]
    free = set(range(len(truth)))
    scored = []
    for answer in answers:
        ious = {g: iou(answer, truth[g], overlap, item.height, item.width) for g in free}
        for wanted in (True, False):
            fitting = [g for g in free if counts[g] == wanted and ious[g] >= threshold]
            if fitting:
                best = max(fitting, key=lambda g: (ious[g], g))
                free.remove(best)
                if wanted:
                    scored.append((answer.score, True))
                break
        else:
            inside = size[0] <= area(answer, overlap, item) <= size[1]
            if inside and not is_partly_marked(item, name):
                scored.append((answer.score, False))
    return scored, sum(counts)


def is_checked(item: ImageItem, name: tuple[int | None, int | None]) -> bool:
    looked_for = [(item.checked_objects, name[0]), (item.checked_parts, name[1])]
    return all(one is None or checked is None or one in checked for checked, one in looked_for)


def is_partly_marked(item: ImageItem, name: tuple[int | None, int | None]) -> bool:
    owners = [o for o, p in NAMES.object_parts if p == name[1]] if name[0] is None else [name[0]]
    return any(owner in (item.not_exhaustive_objects or ()) for owner in owners)


@functools.cache
def iou(answer: NamedMask, region: Region, overlap: Overlap, height: int, width: int) -> float:
    if overlap is Overlap.MASKS:
        one, other = (rle.decode(mask.rle or b"", height, width) for mask in (answer, region))
        return float((one & other).sum() / (one | other).sum())
    pair = [np.array([[x1, y1, x2 - x1, y2 - y1]]) for x1, y1, x2, y2 in (answer.box_xyxy, region.box_xyxy)]
    return float(coco_mask.iou(*pair, [0])[0, 0])


def area(answer: NamedMask, overlap: Overlap, item: ImageItem) -> float:
    x1, y1, x2, y2 = answer.box_xyxy
    pixels = rle.area(answer.rle) if overlap is Overlap.MASKS else (x2 - x1) * (y2 - y1)
    return pixels * (item.original_height * item.original_width / (item.height * item.width))


def numbers(items: list[ImageItem], names: Names = Names.THINGS, overlap: Overlap = Overlap.MASKS) -> Numbers:
    result = federated_average_precision(items, NAMES, names, overlap)
    assert isinstance(result, Numbers), result
    return result


@pytest.mark.parametrize("names", Names)
@pytest.mark.parametrize(
    ("overlap", "count"),
    [
        (Overlap.BOXES, 50),
        pytest.param(Overlap.BOXES, 500, marks=pytest.mark.slow),
        pytest.param(Overlap.MASKS, 500, marks=pytest.mark.slow),
    ],
)
def test_numbers_are_those_of_the_slow_version(names: Names, overlap: Overlap, count: int) -> None:
    items = federated(synthetic_items(count, seed=11), seed=3)
    result = numbers(items, names, overlap)
    expected = slow_federated_ap(items, names, overlap)
    assert dict(result.values) == pytest.approx(expected, abs=1e-12)
    assert isinstance(result.images, Matches)
    assert result.images.values() == pytest.approx(expected, abs=1e-12)


def answered(**checked: tuple[int, ...] | None) -> ImageItem:
    """A dog that is found, a car seen with less certainty on its left half, and a cup seen best of all."""
    dog = rle.encode(np.ones((20, 30), bool))
    half = rle.encode(np.arange(30)[None].repeat(20, 0) < 15)
    region = Region("0", dog, (0.0, 0.0, 30.0, 20.0), 600.0, Kind.INSTANCE, 0)
    answers = (
        NamedMask(half, (0.0, 0.0, 15.0, 20.0), 0, None, 0.9),
        NamedMask(dog, (0.0, 0.0, 30.0, 20.0), 0, None, 0.8),
        NamedMask(half, (0.0, 0.0, 15.0, 20.0), 1, None, 0.7),
    )
    return ImageItem("photo", 20, 30, 20, 30, (region,), instances=answers, **checked)


def test_a_detection_beside_the_marked_ones_is_no_mistake_where_not_all_are_marked() -> None:
    strict = numbers([answered(checked_objects=(0,), not_exhaustive_objects=())]).values["ap75"]
    mild = numbers([answered(checked_objects=(0,), not_exhaustive_objects=(0,))]).values["ap75"]
    assert strict == pytest.approx(0.5, abs=1e-12)
    assert mild == pytest.approx(1, abs=1e-12)


def test_an_unchecked_name_costs_nothing_and_a_checked_one_does() -> None:
    car = dataclasses.replace(answered(checked_objects=(1,)), sample_id="car")
    car = dataclasses.replace(car, regions=(car.regions[0]._replace(object_category=1),))
    unchecked = answered(checked_objects=(0,), not_exhaustive_objects=(0,))
    checked = answered(checked_objects=(0, 1), not_exhaustive_objects=(0,))
    table = [numbers([one, car]).images.per_class()["car"]["ap50"] for one in (unchecked, checked)]
    assert table[0] > table[1]


def test_without_any_word_of_checked_names_all_were() -> None:
    items = synthetic_items(30, seed=11)
    everything = tuple(range(len(NAMES.objects)))
    said = [dataclasses.replace(item, checked_objects=everything, not_exhaustive_objects=()) for item in items]
    assert numbers(items).values == numbers(said).values


def test_of_an_image_three_hundred_detections_count_whatever_their_names() -> None:
    item = answered(checked_objects=(0, 1))
    assert item.instances is not None
    cars = tuple(dataclasses.replace(item.instances[2], score=0.85) for _ in range(300))
    crowded = dataclasses.replace(item, instances=(*cars, *item.instances))
    assert numbers([crowded]).values["ap75"] == 0


def test_what_cannot_be_measured_says_so() -> None:
    item = answered(checked_objects=(0,))
    assert isinstance(federated_average_precision([item], NAMES, Names.PARTS, Overlap.MASKS), Absent)
    unanswered = dataclasses.replace(item, instances=None)
    assert isinstance(federated_average_precision([item, unanswered], NAMES, Names.THINGS, Overlap.MASKS), Absent)
    with pytest.raises(ValueError, match="no images"):
        federated_average_precision([], NAMES, Names.THINGS, Overlap.MASKS)
