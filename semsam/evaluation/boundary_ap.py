"""Boundary AP (2103.16562): as mask AP, but masks must fit along their outlines too.

The library gives the IoUs; what follows from them is that of every other AP (`Matches`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from vernier.instance import CocoDataset, ResultAnnotation, evaluate_boundary_grid

from semsam.data.manifest import Vocabulary
from semsam.evaluation.average_precision import MAX_DETECTIONS, why_absent
from semsam.evaluation.items import ImageItem
from semsam.evaluation.matching import Group
from semsam.evaluation.named_regions import Detections, NamedRegions, Names, Overlap, named_regions, no_collections
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty

_RATIO = 0.02  # The width of what counts as outline, as a share of the image's diagonal.
_IMAGES_AT_ONCE = 200


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
    matches = regions.match(MAX_DETECTIONS, _groups(regions))
    convention = f"boundary AP of {names.value}, outline {_RATIO:.0%} of the diagonal"
    return Numbers(convention, matches.values(), lambda: matches)


@no_collections()
def _groups(regions: NamedRegions) -> list[Group]:
    """The groups with the library's IoUs; a few images at a time, because it keeps all of their masks' pixels."""
    groups = list(regions.groups())
    edges = np.searchsorted(
        [image for image, *_ in groups], np.arange(0, len(regions.image_sizes) + _IMAGES_AT_ONCE, _IMAGES_AT_ONCE)
    )
    found = []
    for first, last in itertools.pairwise(edges.tolist()):
        ious = _ious(regions, groups[first:last])
        found += [Group(ious[i, c], detections, truth) for i, c, detections, truth in groups[first:last]]
    return found


def _ious(
    regions: NamedRegions, groups: Sequence[tuple[int, int, Int64[np.ndarray, " d"], Int64[np.ndarray, " g"]]]
) -> dict[tuple[int, int], Float64[np.ndarray, "d g"]]:
    """IoUs by image and class.  Strict: as in the published code."""
    if not groups:
        return {}
    images = np.unique([image for image, *_ in groups])
    kept = np.concatenate([truth for *_, truth in groups])
    truth = regions.truth
    dataset = CocoDataset.from_arrays(
        {
            "id": images,
            "height": np.ascontiguousarray(regions.image_sizes[images, 0]),
            "width": np.ascontiguousarray(regions.image_sizes[images, 1]),
        },
        {
            "id": kept + 1,
            "image_id": truth.image[kept],
            "category_id": truth.category[kept],
            "bbox": truth.box_xywh[kept],
            "area": truth.area[kept],
            "iscrowd": truth.is_crowd[kept],
            "segmentation": [truth.rles[i] for i in kept.tolist()],
        },
        [{"id": c, "name": name} for c, name in enumerate(regions.names)],
    )
    grid = evaluate_boundary_grid(
        dataset,
        [_answer(regions.detections, place) for *_, places, _ in groups for place in places.tolist()],
        parity_mode="strict",
        max_dets_per_image=MAX_DETECTIONS[-1],
        use_cats=True,
        dilation_ratio=_RATIO,
        retain_iou=True,
        num_threads=1,
    )
    return grid.ious()


def _answer(detections: Detections, place: int) -> ResultAnnotation:
    return {
        "image_id": int(detections.image[place]),
        "category_id": int(detections.category[place]),
        "bbox": detections.box_xywh[place].tolist(),
        "score": float(detections.score[place]),
        "segmentation": detections.rles[place],
    }
