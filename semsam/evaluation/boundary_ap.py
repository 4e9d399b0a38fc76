"""Boundary AP (2103.16562): as mask AP, but masks must fit along their outlines too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from vernier.instance import CocoDataset, evaluate_boundary_grid

from semsam.data.manifest import Vocabulary
from semsam.evaluation.average_precision import MAX_DETECTIONS, checked, why_absent
from semsam.evaluation.items import ImageItem
from semsam.evaluation.matches import Matches
from semsam.evaluation.matching import Group
from semsam.evaluation.named_regions import NamedRegions, Names, Overlap, named_regions
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty

_RATIO = 0.02  # The width of what counts as outline, as a share of the image's diagonal.
_STATISTICS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *(f"ar{most}" for most in MAX_DETECTIONS),
    *("ar_small", "ar_medium", "ar_large"),
)


def boundary_average_precision(
    items: Sequence[ImageItem], vocabulary: Vocabulary, names: Names = Names.THINGS
) -> Numbers | Absent:
    """The numbers of `average_precision`, where IoU is the lower of masks' and of outlines' IoU.

    An outline is what of a mask lies within 2% of the image's diagonal from its edge.  A crowd's outline says nothing,
    so there masks alone count.

    Raises `ValueError` for an empty dataset and for answers that are no numbers or outside the vocabulary.
    """
    check_not_empty(items)
    if absent := why_absent(items, vocabulary, names, Overlap.MASKS):
        return absent
    if any(item.checked_objects is not None for item in items):
        return Absent("names were looked for in some images only, and boundary AP takes all names as looked for")
    regions = named_regions(items, vocabulary, names, Overlap.MASKS, MAX_DETECTIONS[-1])
    if regions.truth.is_crowd.all():
        return Absent(f"no {names.value} are annotated here")
    ious, statistics = _evaluate(regions)
    values = {name: value for name, value in zip(_STATISTICS, statistics, strict=True) if value > -1}

    def contribute() -> Matches:
        groups = [Group(ious[image + 1, name + 1], rows, places) for image, name, rows, places in regions.groups()]
        return checked(regions.match(MAX_DETECTIONS, groups), values)

    return Numbers(f"boundary AP of {names.value}, outline {_RATIO:.0%} of the diagonal", values, contribute)


def _evaluate(regions: NamedRegions) -> tuple[dict[tuple[int, int], Float64[np.ndarray, "d g"]], list[float]]:
    """IoUs by image and class (ids from 1), and the twelve numbers.  Strict: as in the published code."""
    truth, detections = regions.truth, regions.detections
    dataset = CocoDataset.from_arrays(
        {
            "id": np.arange(1, len(regions.image_sizes) + 1),
            "height": np.ascontiguousarray(regions.image_sizes[:, 0]),
            "width": np.ascontiguousarray(regions.image_sizes[:, 1]),
        },
        {
            "id": np.arange(1, len(truth.image) + 1),
            "image_id": truth.image + 1,
            "category_id": truth.category + 1,
            "bbox": truth.box_xywh,
            "area": truth.area,
            "iscrowd": truth.is_crowd,
            "segmentation": truth.rles,
        },
        [{"id": c + 1, "name": name} for c, name in enumerate(regions.names)],
    )
    columns = (detections.image + 1, detections.category + 1, detections.box_xywh, detections.score, detections.area)
    fields = ("image_id", "category_id", "bbox", "score", "area")
    answers = [
        dict(zip(fields, row, strict=True), segmentation=mask)
        for *row, mask in zip(*(column.tolist() for column in columns), detections.rles, strict=True)
    ]
    grid = evaluate_boundary_grid(
        dataset,
        answers,
        parity_mode="strict",
        max_dets_per_image=MAX_DETECTIONS[-1],
        use_cats=True,
        dilation_ratio=_RATIO,
        retain_iou=True,
        dt_area="supplied",
        num_threads=1,
    )
    limits = list(MAX_DETECTIONS)
    return grid.ious(), grid.accumulate(limits).summarize(limits).stats
