"""Semantic segmentation: IoU of each object name's pixels over the whole dataset, and its mean over names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind
from semsam.evaluation.class_sums import ClassSums, mean_where, ratio
from semsam.evaluation.disjoint_segments import overlaps
from semsam.evaluation.items import ImageItem
from semsam.evaluation.numbers import Absent, Numbers, check_not_empty, unanswered

_INTERSECTION, _PREDICTED, _TRUE = range(3)
_CONVENTION = "mean over names that occur in truth (detectron2); unlabelled pixels do not count"


@dataclass(frozen=True)
class SemanticSums(ClassSums):
    """Of each image and name its pixels that are labelled: those in both, those predicted, those of truth."""

    def class_numbers(self, totals: Float64[np.ndarray, "r c 3"]) -> dict[str, Float64[np.ndarray, "r c"]]:
        """IoU and accuracy of the names that occur in truth."""
        true = totals[..., _TRUE]
        union = true + totals[..., _PREDICTED] - totals[..., _INTERSECTION]
        return {
            "iou": ratio(totals[..., _INTERSECTION], np.where(true > 0, union, 0)),
            "accuracy": ratio(totals[..., _INTERSECTION], true),
        }

    def headline(self, totals: Float64[np.ndarray, "r c 3"]) -> dict[str, Float64[np.ndarray, " r"]]:
        """Means over names, and over pixels."""
        of_class = self.class_numbers(totals)
        true = totals[..., _TRUE]
        all_true = true.sum(1)
        return {
            "miou": mean_where(of_class["iou"], true > 0),
            "frequency_weighted_iou": ratio((np.nan_to_num(of_class["iou"]) * true).sum(1), all_true),
            "mean_accuracy": mean_where(of_class["accuracy"], true > 0),
            "pixel_accuracy": ratio(totals[..., _INTERSECTION].sum(1), all_true),
        }


def semantic_iou(items: Sequence[ImageItem], vocabulary: Vocabulary) -> Numbers | Absent:
    """mIoU over the names that occur in truth, and its relatives: frequency-weighted IoU, accuracy by name and pixel.

    Truth are the panoptic segments (crowds too, they have a name), united by name.  A labelled pixel without answer
    is a miss.  Raises `ValueError` for an empty dataset and for overlapping masks.
    """
    check_not_empty(items)
    if absent := unanswered(items, "semantic"):
        return absent
    if not any(region.kind is Kind.PANOPTIC for item in items for region in item.regions):
        return Absent("no panoptic segments to take a semantic map from")
    rows = [_sums_of(item, len(vocabulary.objects)) for item in items]
    sums = SemanticSums(
        len(items),
        vocabulary.objects,
        image=np.repeat(np.arange(len(items)), [len(classes) for classes, _ in rows]),
        category=np.concatenate([classes for classes, _ in rows]),
        sums=np.concatenate([values for _, values in rows]),
    )
    return Numbers(_CONVENTION, sums.values(), lambda: sums)


def _sums_of(item: ImageItem, num_objects: int) -> tuple[np.ndarray, Float64[np.ndarray, "s 3"]]:
    """The names of one image and their sums."""
    assert item.semantic is not None
    truth = [r for r in item.regions if r.kind is Kind.PANOPTIC and r.rle is not None and r.object_category is not None]
    try:
        pixels = overlaps(
            [region.rle for region in truth if region.rle is not None],
            [mask.rle for mask in item.semantic],
            item.height,
            item.width,
        )
    except ValueError as error:
        raise ValueError(f"{item.sample_id}: {error}") from None
    rows = np.array([region.object_category for region in truth], np.int64)
    columns = np.array([mask.object_category for mask in item.semantic], np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= num_objects):
        raise ValueError(f"{item.sample_id}: a semantic mask has name {columns.max()}, of {num_objects} names")
    labelled = pixels[:-1]  # The last row is what truth has no name for.
    names, place = np.unique(np.concatenate([rows, columns]), return_inverse=True)
    of_row, of_column = place[: len(rows)], place[len(rows) :]
    sums = np.zeros((len(names), 3))
    np.add.at(sums[:, _TRUE], of_row, labelled.sum(1))
    np.add.at(sums[:, _PREDICTED], of_column, labelled[:, :-1].sum(0))
    same = of_row[:, None] == of_column[None]
    np.add.at(sums[:, _INTERSECTION], of_row, np.where(same, labelled[:, :-1], 0).sum(1))
    return names, sums
