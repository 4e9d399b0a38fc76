"""Regions and the detections to compare them with, of all images, as columns: what every average precision starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from hotcoco import mask as hotcoco_mask
from hotcoco.primitives import bbox_iou, mask_iou
from jaxtyping import Bool, Float64, Int64

from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.items import ImageItem, NamedMask
from semsam.evaluation.matches import Matches
from semsam.evaluation.matching import AREA_RANGES, Group, match


class Names(StrEnum):
    """What counts as one class; its value belongs in a metric's name."""

    THINGS = "things"  # Whole objects that can be counted.
    OBJECT_PARTS = "object_parts"  # Each part of each object, `dog:head` (PartImageNet, VLPart, PACO).
    PARTS = "parts"  # Parts by bare name: every head, whoever's it is; the predicted object does not matter.


class Overlap(StrEnum):
    """What of two regions is laid over one another."""

    BOXES = "boxes"
    MASKS = "masks"


@dataclass(frozen=True)
class Regions:
    """The regions of all images; `category` is a position in the names that are compared."""

    image: Int64[np.ndarray, " g"]
    category: Int64[np.ndarray, " g"]
    box_xywh: Float64[np.ndarray, "g 4"]
    area: Float64[np.ndarray, " g"]  # In the annotated image's pixels, as COCO's sizes are.
    is_crowd: Bool[np.ndarray, " g"]
    rles: list[dict[str, object]]  # As the libraries take masks; empty where boxes are compared.


@dataclass(frozen=True)
class Detections:
    """The detections of all images: those of a class and image the best first, of equal scores in the item's order."""

    image: Int64[np.ndarray, " d"]
    category: Int64[np.ndarray, " d"]
    rank: Int64[np.ndarray, " d"]  # In its image and class.
    box_xywh: Float64[np.ndarray, "d 4"]
    area: Float64[np.ndarray, " d"]  # Of what is compared, box or mask, in the annotated image's pixels.
    score: Float64[np.ndarray, " d"]
    rles: list[dict[str, object]]


@dataclass(frozen=True)
class NamedRegions:
    """Truth and answers of a dataset under one way to name them."""

    names: tuple[str, ...]
    overlap: Overlap
    image_sizes: Int64[np.ndarray, "n 2"]
    truth: Regions
    detections: Detections

    def groups(self) -> Iterator[tuple[int, int, Int64[np.ndarray, " d"], Int64[np.ndarray, " g"]]]:
        """Image, class, detections and regions wherever an image has both."""
        num_names = len(self.names)
        of_truth = self.truth.image * num_names + self.truth.category
        by_key = np.argsort(of_truth, kind="stable")
        of_truth = of_truth[by_key]
        of_detection = self.detections.image * num_names + self.detections.category
        keys = np.intersect1d(of_truth, of_detection)
        edges = [np.searchsorted(column, keys, side).tolist() for column in (of_truth, of_detection) for side in SIDES]
        rows = np.arange(len(of_detection))
        for key, start, stop, first, last in zip(keys.tolist(), *edges, strict=True):
            yield key // num_names, key % num_names, rows[first:last], by_key[start:stop]

    def ious(self, detections: Int64[np.ndarray, " d"], regions: Int64[np.ndarray, " g"]) -> Float64[np.ndarray, "d g"]:
        """IoU of each detection with each region; with a crowd, the share of the detection that lies in it."""
        crowd = self.truth.is_crowd[regions]
        if self.overlap is Overlap.BOXES:
            return bbox_iou(self.detections.box_xywh[detections], self.truth.box_xywh[regions], crowd)
        masks = [self.detections.rles[i] for i in detections], [self.truth.rles[i] for i in regions]
        return mask_iou(*masks, crowd)

    def match(
        self,
        max_detections: tuple[int, ...],
        groups: Sequence[Group] | None = None,
        unmatched_is_ignored: Bool[np.ndarray, " d"] | None = None,
    ) -> Matches:
        """Every detection's fate; `groups` are those with other IoUs than `ious` gives.

        A detection without a region is ignored where its size is not asked for, and where `unmatched_is_ignored`.
        """
        truth, detections = self.truth, self.detections
        if groups is None:
            groups = [Group(self.ious(rows, regions), rows, regions) for _, _, rows, regions in self.groups()]
        low, high = AREA_RANGES[:, :1], AREA_RANGES[:, 1:]
        counts = ~truth.is_crowd & (truth.area >= low) & (truth.area <= high)
        is_matched, is_ignored = match(groups, truth.is_crowd, ~counts, len(detections.image))
        is_outside = (detections.area < low) | (detections.area > high)
        if unmatched_is_ignored is not None:
            is_outside |= unmatched_is_ignored
        is_ignored |= ~is_matched & is_outside
        order = np.lexsort((detections.rank, detections.image, -detections.score, detections.category))
        return Matches(
            num_images=len(self.image_sizes),
            names=self.names,
            max_detections=max_detections,
            image=detections.image[order],
            category=detections.category[order],
            rank=detections.rank[order],
            score=detections.score[order],
            is_true=(is_matched & ~is_ignored)[..., order],
            is_ignored=is_ignored[..., order],
            truth_image=truth.image,
            truth_category=truth.category,
            truth_counts=counts,
        )


SIDES = ("left", "right")


def named_regions(
    items: Sequence[ImageItem],
    vocabulary: Vocabulary,
    names: Names,
    overlap: Overlap,
    max_of_class: int,
    max_of_image: int | None = None,
) -> NamedRegions:
    """Truth and answers of all images, of the latter the best of each class and image, and before that of each image.

    Raises `ValueError`, naming the image, for names outside the vocabulary and for numbers that are none.
    """
    labels, class_of = _classes(vocabulary, names)
    is_wanted = _is_whole_object if names is Names.THINGS else _is_part
    kept, found = [], []
    for position, item in enumerate(items):
        for region in item.regions:
            if is_wanted(region) and (category := class_of(region)) >= 0:
                kept.append((position, category, region))
        answers = _best(item, max_of_image)
        for answer in answers:
            _check(item, answer, vocabulary)
            if (answer.part_category is None) == (names is Names.THINGS) and (category := class_of(answer)) >= 0:
                found.append((position, category, answer))
    sizes = np.array([(item.height, item.width) for item in items], np.int64)
    original = np.array([(item.original_height, item.original_width) for item in items], np.int64)
    return NamedRegions(
        labels, overlap, sizes, _regions(kept, sizes, overlap), _detections(found, sizes, original, overlap, max_of_class)
    )


def has_masks(items: Sequence[ImageItem], names: Names) -> bool:
    """Whether all that is to be found has a mask, not a box only."""
    is_wanted = _is_whole_object if names is Names.THINGS else _is_part
    return all(region.rle is not None for item in items for region in item.regions if is_wanted(region))


def _is_whole_object(region: Region) -> bool:
    return region.part_category is None and region.kind in (Kind.INSTANCE, Kind.DERIVED)


def _is_part(region: Region) -> bool:
    return region.part_category is not None


def _classes(
    vocabulary: Vocabulary, names: Names
) -> tuple[tuple[str, ...], Callable[[Region | NamedMask], int]]:
    """The names that are compared, and the position among them of a region's; -1: it is none of them."""
    if names is Names.PARTS:
        return vocabulary.parts, lambda one: -1 if one.part_category is None else one.part_category
    if names is Names.OBJECT_PARTS:
        pairs = {pair: place for place, pair in enumerate(vocabulary.object_parts)}
        labels = tuple(f"{vocabulary.objects[o]}:{vocabulary.parts[p]}" for o, p in vocabulary.object_parts)
        return labels, lambda one: pairs.get((one.object_category, one.part_category), -1)
    things = vocabulary.things or (True,) * len(vocabulary.objects)
    places = {name: place for place, name in enumerate(np.flatnonzero(things).tolist())}
    return tuple(vocabulary.objects[name] for name in places), lambda one: places.get(one.object_category, -1)


def _best(item: ImageItem, limit: int | None) -> Sequence[NamedMask]:
    """The answers, or the best `limit` of them, of equal scores the first."""
    answers = item.instances or ()
    if limit is None or len(answers) <= limit:
        return answers
    return sorted(answers, key=lambda answer: -answer.score)[:limit]


def _check(item: ImageItem, answer: NamedMask, vocabulary: Vocabulary) -> None:
    if not np.isfinite((answer.score, *answer.box_xyxy)).all():
        raise ValueError(f"{item.sample_id}: an answer has score {answer.score} and box {answer.box_xyxy}")
    part = answer.part_category
    if not 0 <= answer.object_category < len(vocabulary.objects) or not (part is None or 0 <= part < len(vocabulary.parts)):
        raise ValueError(f"{item.sample_id}: an answer has names ({answer.object_category}, {part}), not in vocabulary")


def _regions(
    kept: list[tuple[int, int, Region]], sizes: Int64[np.ndarray, "n 2"], overlap: Overlap
) -> Regions:
    return Regions(
        image=np.array([position for position, _, _ in kept], np.int64),
        category=np.array([category for _, category, _ in kept], np.int64),
        box_xywh=_xywh([region.box_xyxy for _, _, region in kept]),
        area=np.array([region.area for _, _, region in kept], np.float64),
        is_crowd=np.array([region.is_crowd for _, _, region in kept], bool),
        rles=_rles([(position, region.rle) for position, _, region in kept], sizes, overlap),
    )


def _detections(
    found: list[tuple[int, int, NamedMask]],
    sizes: Int64[np.ndarray, "n 2"],
    original: Int64[np.ndarray, "n 2"],
    overlap: Overlap,
    max_of_class: int,
) -> Detections:
    image = np.array([position for position, _, _ in found], np.int64)
    category = np.array([category for _, category, _ in found], np.int64)
    score = np.array([answer.score for _, _, answer in found], np.float64)
    order = np.lexsort((-score, category, image))  # Stable: equal scores stay in the item's order.
    image, category, score = image[order], category[order], score[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (image[1:] != image[:-1]) | (category[1:] != category[:-1])
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    is_kept = rank < max_of_class
    order, image, category, score, rank = (column[is_kept] for column in (order, image, category, score, rank))
    answers = [found[i][2] for i in order.tolist()]
    boxes = _xywh([answer.box_xyxy for answer in answers])
    rles = _rles([(int(i), answer.rle) for i, answer in zip(image, answers, strict=True)], sizes, overlap)
    area = boxes[:, 2] * boxes[:, 3]
    if overlap is Overlap.MASKS:
        area = np.asarray(hotcoco_mask.area(rles), np.float64) if rles else np.zeros(0)
    scale = original.prod(1) / sizes.prod(1)  # Records of train splits are resized; areas are those before.
    return Detections(image, category, rank, boxes, area * scale[image], score, rles)


def _xywh(boxes_xyxy: Sequence[tuple[float, float, float, float]]) -> Float64[np.ndarray, "n 4"]:
    boxes = np.array(boxes_xyxy, np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _rles(
    masks: list[tuple[int, bytes | None]], sizes: Int64[np.ndarray, "n 2"], overlap: Overlap
) -> list[dict[str, object]]:
    """As the libraries take them; those of an image share the list with its size."""
    if overlap is Overlap.BOXES:
        return []
    size_of = sizes.tolist()
    return [{"size": size_of[position], "counts": counts} for position, counts in masks]
