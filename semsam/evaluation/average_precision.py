"""Average precision and recall of boxes and masks: of things, and of parts under either name that is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from hotcoco import COCO, COCOeval
from jaxtyping import Float64

from semsam.data.manifest import Vocabulary
from semsam.evaluation.items import ImageItem
from semsam.evaluation.matches import Matches
from semsam.evaluation.named_regions import NamedRegions, Names, Overlap, has_masks, named_regions, no_collections
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty, present, unanswered

MAX_DETECTIONS = (1, 10, 100)
_SAME = 1e-9


def average_precision(
    items: Sequence[ImageItem], vocabulary: Vocabulary, names: Names, overlap: Overlap
) -> Numbers | Absent:
    """ap, ap50, ap75, ap_small|medium|large, ar1|10|100 and ar_small|medium|large, 0 to 1, as pycocotools has them.

    Truth are whole objects (instances, or the unions of their parts), or parts.  Of each class and image the best 100
    detections count.  Areas are the native ones, so sizes are those of the annotated image.

    Raises `ValueError` for an empty dataset and for answers that are no numbers or outside the vocabulary.
    """
    check_not_empty(items)
    if absent := why_absent(items, vocabulary, names, overlap):
        return absent
    if any(item.checked_objects is not None for item in items):
        return Absent("names were looked for in some images only: federated AP is what measures this dataset")
    regions = named_regions(items, vocabulary, names, overlap, MAX_DETECTIONS[-1])
    if regions.truth.is_crowd.all():
        return Absent(f"no {names.value} are annotated here")
    evaluation = COCOeval(*coco_pair(regions), "bbox" if overlap is Overlap.BOXES else "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = curves(evaluation)
    values = present(
        {
            "ap": mean_known(precision[:, :, :, 0, 2]),
            "ap50": mean_known(precision[0, :, :, 0, 2]),
            "ap75": mean_known(precision[5, :, :, 0, 2]),
            "ap_small": mean_known(precision[:, :, :, 1, 2]),
            "ap_medium": mean_known(precision[:, :, :, 2, 2]),
            "ap_large": mean_known(precision[:, :, :, 3, 2]),
            **{f"ar{most}": mean_known(recall[:, :, 0, m]) for m, most in enumerate(MAX_DETECTIONS)},
            "ar_small": mean_known(recall[:, :, 1, 2]),
            "ar_medium": mean_known(recall[:, :, 2, 2]),
            "ar_large": mean_known(recall[:, :, 3, 2]),
        }
    )
    convention = f"COCO, {overlap.value} of {names.value}, at most 100 of a class and image"
    return Numbers(convention, values, lambda: checked(regions.match(MAX_DETECTIONS), values))


def why_absent(items: Sequence[ImageItem], vocabulary: Vocabulary, names: Names, overlap: Overlap) -> Absent | None:
    """What keeps any average precision from being computed."""
    if absent := unanswered(items, "instances"):
        return absent
    if not (vocabulary.objects if names is Names.THINGS else vocabulary.parts):
        return Absent(f"the dataset has no names of {names.value}")
    if overlap is Overlap.MASKS and not has_masks(items, names):
        return Absent(f"{names.value} are annotated with boxes only")
    return None


@no_collections()
def coco_pair(regions: NamedRegions, **of_image: Sequence[list[int]]) -> tuple[COCO, COCO]:
    """Truth and answers as the library takes them; `of_image` has further fields of every image.

    Ids are ours and begin with 1: that 0 means "no match" to many tools has cost others their numbers.
    """
    truth, detections = regions.truth, regions.detections
    images = [
        {"id": i + 1, "height": height, "width": width, **{name: values[i] for name, values in of_image.items()}}
        for i, (height, width) in enumerate(regions.image_sizes.tolist())
    ]
    # LVIS asks for how frequent names are; no such number is read.
    categories = [{"id": c + 1, "name": name, "frequency": "f"} for c, name in enumerate(regions.names)]
    true = COCO.from_arrays(
        images,
        categories,
        truth.image + 1,
        truth.category + 1,
        truth.box_xywh,
        ids=np.arange(1, len(truth.image) + 1),
        area=truth.area,
        iscrowd=truth.is_crowd.astype(np.int64),
        segmentation=truth.rles or None,
    )
    answers = np.column_stack(
        [detections.image + 1, detections.box_xywh, detections.score, detections.category + 1]
    ).astype(np.float64)
    found = true.load_res(answers, segmentation=detections.rles or None)
    found.update_anns(ids=np.arange(1, len(answers) + 1), area=detections.area)
    return true, found


def curves(evaluation: COCOeval) -> tuple[Float64[np.ndarray, "t r c a m"], Float64[np.ndarray, "t c a m"]]:
    """Precision and recall by threshold, recall, class, size and limit of detections."""
    assert evaluation.eval is not None
    return evaluation.eval["precision"], evaluation.eval["recall"]


def mean_known(values: np.ndarray) -> float:
    """Mean of what the library could compute (-1: no truth); NaN where that is nothing."""
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")


def checked(matches: Matches, values: Mapping[str, float]) -> Matches:
    """The matches, once it is sure that intervals and tables made of them speak of the library's numbers."""
    ours = matches.values()
    assert ours.keys() == values.keys(), (ours, values)
    assert all(abs(ours[name] - value) < _SAME for name, value in values.items()), (ours, values)
    return matches
