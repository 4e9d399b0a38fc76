"""Average precision where every name was looked for in some images only (PACO, after LVIS, 1908.03195)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
from hotcoco import LVISeval
from jaxtyping import Bool

from semsam.data.manifest import Vocabulary
from semsam.evaluation.average_precision import checked, coco_pair, curves, mean_known, why_absent
from semsam.evaluation.items import ImageItem
from semsam.evaluation.named_regions import Detections, NamedRegions, Names, Overlap, Regions, named_regions
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty, present

MAX_DETECTIONS = 300  # Of an image.


def federated_average_precision(
    items: Sequence[ImageItem], vocabulary: Vocabulary, names: Names, overlap: Overlap
) -> Numbers | Absent:
    """ap, ap50, ap75, ap_small|medium|large, ar300 and ar_small|medium|large, as LVIS has them.

    An image speaks of the names that it has regions of and of those that were looked for; detections of any other are
    left out.  Where not all instances of a name are marked, a detection without a region is no mistake.  Of an image
    the best 300 detections count, objects and parts together.  Part names are recorded without their object, so a
    pair counts as looked for where both its names were.  There are no crowds: a region is found once.

    Raises `ValueError` for an empty dataset and for answers that are no numbers or outside the vocabulary.
    """
    check_not_empty(items)
    if absent := why_absent(items, vocabulary, names, overlap):
        return absent
    regions = named_regions(items, vocabulary, names, overlap, MAX_DETECTIONS, MAX_DETECTIONS)
    regions = _without_crowds(regions)
    if not len(regions.truth.image):
        return Absent(f"no {names.value} are annotated here")
    looked_for, not_exhaustive = _names_of_images(items, vocabulary, names)
    has_region = np.zeros_like(looked_for)
    has_region[regions.truth.image, regions.truth.category] = True
    detections = regions.detections
    regions = _with_detections(regions, (looked_for | has_region)[detections.image, detections.category])
    detections = regions.detections
    is_no_mistake = not_exhaustive[detections.image, detections.category]
    evaluation = LVISeval(
        *coco_pair(
            regions,
            neg_category_ids=[(np.flatnonzero(row) + 1).tolist() for row in looked_for & ~has_region],
            not_exhaustive_category_ids=[(np.flatnonzero(row) + 1).tolist() for row in not_exhaustive],
        ),
        "bbox" if overlap is Overlap.BOXES else "segm",
    )
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = (curve[..., 0] for curve in curves(evaluation))
    sizes = ("small", "medium", "large")
    values = present(
        {
            "ap": mean_known(precision[..., 0]),
            "ap50": mean_known(precision[0, :, :, 0]),
            "ap75": mean_known(precision[5, :, :, 0]),
            **{f"ap_{size}": mean_known(precision[..., a + 1]) for a, size in enumerate(sizes)},
            f"ar{MAX_DETECTIONS}": mean_known(recall[..., 0]),
            **{f"ar_{size}": mean_known(recall[..., a + 1]) for a, size in enumerate(sizes)},
        }
    )
    convention = f"LVIS, {overlap.value} of {names.value}, at most 300 of an image"
    return Numbers(
        convention,
        values,
        lambda: checked(regions.match((MAX_DETECTIONS,), unmatched_is_ignored=is_no_mistake), values),
    )


def _names_of_images(
    items: Sequence[ImageItem], vocabulary: Vocabulary, names: Names
) -> tuple[Bool[np.ndarray, "n c"], Bool[np.ndarray, "n c"]]:
    """Which classes each image speaks of, and of which of them it does not have all regions."""
    objects = _table(items, lambda item: item.checked_objects, len(vocabulary.objects), True)
    partly = _table(items, lambda item: item.not_exhaustive_objects, len(vocabulary.objects), False)
    if names is Names.THINGS:
        things = np.array(vocabulary.things or [True] * len(vocabulary.objects), bool)
        return objects[:, things], partly[:, things]
    parts = _table(items, lambda item: item.checked_parts, len(vocabulary.parts), True)
    of_object, of_part = np.array(vocabulary.object_parts, np.int64).reshape(-1, 2).T
    if names is Names.OBJECT_PARTS:
        return objects[:, of_object] & parts[:, of_part], partly[:, of_object]
    # A bare name is not all there as soon as it is not on one of the objects that have it.
    not_exhaustive = np.zeros_like(parts)
    for o, p in vocabulary.object_parts:
        not_exhaustive[:, p] |= partly[:, o]
    return parts, not_exhaustive


def _table(
    items: Sequence[ImageItem], names_of: Callable[[ImageItem], tuple[int, ...] | None], size: int, if_unsaid: bool
) -> Bool[np.ndarray, "n names"]:
    table = np.zeros((len(items), size), bool)
    for row, item in zip(table, items, strict=True):
        listed = names_of(item)
        row[:] = if_unsaid and listed is None
        row[list(listed or ())] = True
    return table


def _without_crowds(regions: NamedRegions) -> NamedRegions:
    truth = regions.truth
    kept = ~truth.is_crowd
    return replace(
        regions,
        truth=Regions(
            image=truth.image[kept],
            category=truth.category[kept],
            box_xywh=truth.box_xywh[kept],
            area=truth.area[kept],
            is_crowd=truth.is_crowd[kept],
            rles=list(compress(truth.rles, kept)),
        ),
    )


def _with_detections(regions: NamedRegions, is_kept: Bool[np.ndarray, " d"]) -> NamedRegions:
    found = regions.detections
    return replace(
        regions,
        detections=Detections(
            image=found.image[is_kept],
            category=found.category[is_kept],
            rank=found.rank[is_kept],
            box_xywh=found.box_xywh[is_kept],
            area=found.area[is_kept],
            score=found.score[is_kept],
            rles=list(compress(found.rles, is_kept)),
        ),
    )
