"""Panoptic quality (1801.00868): how well segments are found and how well they fit, over things and stuff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from hotcoco import COCO
from hotcoco.panoptic import PanopticEval
from jaxtyping import Bool, Float64

from semsam.data.manifest import Vocabulary
from semsam.data.named_mask import NamedMask
from semsam.data.schema import Kind, Region
from semsam.evaluation.class_sums import ClassSums, mean_where, ratio
from semsam.evaluation.disjoint_segments import with_pixels
from semsam.evaluation.items import ImageItem
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty, unanswered

_Segment = TypeVar("_Segment", Region, NamedMask)
_IOU, _TP, _FP, _FN = range(4)
_CONVENTION = "panopticapi: mean over names that are in truth or answers; void and crowds are no mistakes"


@dataclass(frozen=True)
class PanopticSums(ClassSums):
    """Of each image and name the IoUs of its matches, summed, and how many segments matched or did not."""

    is_thing: Bool[np.ndarray, " c"]

    def class_numbers(self, totals: Float64[np.ndarray, "r c 4"]) -> dict[str, Float64[np.ndarray, "r c"]]:
        """Quality of panoptic, segmentation and recognition of the names that occur in truth or answers."""
        iou, tp, fp, fn = np.moveaxis(totals, -1, 0)
        segments = tp + fp / 2 + fn / 2
        return {
            "pq": ratio(iou, segments),
            # Where nothing matched there is no fit to speak of; the published tables count it as 0.
            "sq": np.where(segments > 0, np.nan_to_num(ratio(iou, tp)), np.nan),
            "rq": ratio(tp, segments),
        }

    def headline(self, totals: Float64[np.ndarray, "r c 4"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """Means over all names, things and stuff."""
        of_class = self.class_numbers(totals)
        counts = ~np.isnan(of_class["pq"])
        groups = {"": np.ones_like(self.is_thing), "_things": self.is_thing, "_stuff": ~self.is_thing}
        return {
            name + suffix: mean_where(of_class[name], counts & group)
            for suffix, group in groups.items()
            for name in ("pq", "sq", "rq")
        }


def panoptic_quality(items: Sequence[ImageItem], vocabulary: Vocabulary) -> Numbers | Absent:
    """PQ, SQ and RQ of all names, things and stuff, 0 to 1.

    Truth are the panoptic segments.  What lies by more than half in void (in no segment) or in a crowd of its own name
    is no false positive; of several crowds of one name the last one counts, as in the published code.  The library
    matches the segments image by image, because its totals over a dataset do not say what an image added.

    Raises `ValueError` for an empty dataset, for names outside the vocabulary and for overlapping segments.
    """
    check_not_empty(items)
    if absent := unanswered(items, "panoptic"):
        return absent
    if not any(region.kind is Kind.PANOPTIC for item in items for region in item.regions):
        return Absent("no panoptic segments to compare with")
    is_thing = np.array(vocabulary.things or [True] * len(vocabulary.objects), bool)
    image, category, sums = [], [], []
    for position, item in enumerate(items):
        for name, row in _match(item, is_thing).items():
            image.append(position)
            category.append(name)
            sums.append(row)
    numbers = PanopticSums(
        len(items),
        vocabulary.objects,
        image=np.array(image, np.int64),
        category=np.array(category, np.int64),
        sums=np.array(sums, np.float64).reshape(-1, 4),
        is_thing=is_thing,
    )
    return Numbers(_CONVENTION, numbers.values(), lambda: numbers)


def _match(item: ImageItem, is_thing: Bool[np.ndarray, " c"]) -> dict[int, list[float]]:
    """Sum of IoUs, true positives, false positives and false negatives of each name in an image."""
    truth = _shown([region for region in item.regions if region.kind is Kind.PANOPTIC], item)
    predicted = _shown(item.panoptic or (), item)
    names = sorted({_name(region) for region in truth} | {_name(answer) for answer in predicted})
    if not names:
        return {}
    if not 0 <= names[0] <= names[-1] < len(is_thing):
        raise ValueError(f"{item.sample_id}: a segment has name {names[-1]}, of {len(is_thing)} names")
    # Ids are ours and begin with 1: that 0 means "no match" to many tools has cost others their numbers.
    true = COCO.from_arrays(
        [{"id": 1, "height": item.height, "width": item.width}],
        [{"id": name + 1, "name": str(name), "isthing": int(is_thing[name])} for name in names],
        np.ones(len(truth), np.int64),
        np.array([1 + _name(region) for region in truth], np.int64),
        np.zeros((len(truth), 4)),
        ids=np.arange(1, len(truth) + 1),
        area=np.ones(len(truth)),  # Is asked for, and not read.
        iscrowd=np.array([region.is_crowd for region in truth], np.int64),
        segmentation=[_rle(region, item) for region in truth],
    )
    answers = np.zeros((len(predicted), 7))
    answers[:, 0] = 1
    answers[:, 6] = [1 + _name(mask) for mask in predicted]
    evaluation = PanopticEval(true, true.load_res(answers, segmentation=[_rle(mask, item) for mask in predicted]))
    evaluation.evaluate()
    rows = evaluation.results()["per_class"]
    return {id_ - 1: [row["iou"], row["tp"], row["fp"], row["fn"]] for id_, row in rows.items()}


def _shown(segments: Sequence[_Segment], item: ImageItem) -> list[_Segment]:
    """The segments that have pixels."""
    segments = [segment for segment in segments if segment.rle is not None]
    try:
        is_shown = with_pixels([segment.rle or b"" for segment in segments], item.height, item.width)
    except ValueError as error:
        raise ValueError(f"{item.sample_id}: {error}") from None
    return [segment for segment, is_one in zip(segments, is_shown.tolist(), strict=True) if is_one]


def _name(segment: Region | NamedMask) -> int:
    assert segment.object_category is not None
    return segment.object_category


def _rle(segment: Region | NamedMask, item: ImageItem) -> dict[str, object]:
    return {"size": [item.height, item.width], "counts": segment.rle}
