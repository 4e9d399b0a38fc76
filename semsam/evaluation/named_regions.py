"""Regions and detections of all images as columns: what every average precision starts from."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, compress
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
from hotcoco import mask as hotcoco_mask
from hotcoco.primitives import bbox_iou, mask_iou
from jaxtyping import Bool, Float64, Int64

from semsam.data.manifest import Vocabulary
from semsam.data.named_mask import NamedMask
from semsam.data.schema import Kind, Region
from semsam.evaluation.items import ImageItem
from semsam.evaluation.matches import Matches
from semsam.evaluation.matching import AREA_RANGES, Group, match

_Named = TypeVar("_Named", Region, NamedMask)
_ClassOf: TypeAlias = Callable[[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]], Int64[np.ndarray, " n"]]
_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")


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
    rles: list[Any]  # As the libraries take masks; empty where boxes are compared.


@dataclass(frozen=True)
class Detections:
    """The detections of all images: those of a class and image the best first, of equal scores in the item's order."""

    image: Int64[np.ndarray, " d"]
    category: Int64[np.ndarray, " d"]
    rank: Int64[np.ndarray, " d"]  # In its image and class.
    box_xywh: Float64[np.ndarray, "d 4"]
    area: Float64[np.ndarray, " d"]  # Of what is compared, box or mask, in the annotated image's pixels.
    score: Float64[np.ndarray, " d"]
    rles: list[Any]


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
        edges = [np.searchsorted(column, keys, side).tolist() for column in (of_truth, of_detection) for side in _SIDES]
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


@contextmanager
def no_collections() -> Iterator[None]:
    """No garbage collection: it would walk through every item a few times over, and what is made here is kept."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@no_collections()
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
    regions = _Columns.of([[region for region in item.regions if is_wanted(region)] for item in items])
    answers = _Columns.of([_best(item, max_of_image) for item in items])
    scores = np.array([answer.score for answer in answers.named], np.float64)
    _check(items, answers, scores, vocabulary)
    sizes = np.array([(item.height, item.width) for item in items], np.int64)
    original = np.array([(item.original_height, item.original_width) for item in items], np.int64)
    scale = original.prod(1) / sizes.prod(1)  # Records of train splits are resized; areas are those before.
    truth = _regions(regions, class_of(regions.objects, regions.parts), sizes, overlap)
    category = class_of(answers.objects, answers.parts)
    return NamedRegions(
        labels, overlap, sizes, truth, _detections(answers, scores, category, sizes, scale, overlap, max_of_class)
    )


def has_masks(items: Sequence[ImageItem], names: Names) -> bool:
    """Whether all that is to be found has a mask, not a box only."""
    is_wanted = _is_whole_object if names is Names.THINGS else _is_part
    return not any(region.rle is None and is_wanted(region) for item in items for region in item.regions)


def _is_whole_object(region: Region) -> bool:
    return region.part_category is None and (region.kind is Kind.INSTANCE or region.kind is Kind.DERIVED)


def _is_part(region: Region) -> bool:
    return region.part_category is not None


def _classes(vocabulary: Vocabulary, names: Names) -> tuple[tuple[str, ...], _ClassOf]:
    """The names that are compared, and the position among them of object and part names; -1: is none of them."""
    if names is Names.PARTS:
        return vocabulary.parts, lambda objects, parts: parts
    # One more row and column, for those without a name: the last, which is where -1 points to.
    places = np.full((len(vocabulary.objects) + 1, len(vocabulary.parts) + 1), -1)
    if names is Names.OBJECT_PARTS:
        for place, pair in enumerate(vocabulary.object_parts):
            places[pair] = place
        labels = tuple(f"{vocabulary.objects[o]}:{vocabulary.parts[p]}" for o, p in vocabulary.object_parts)
    else:
        is_thing = vocabulary.things or (True,) * len(vocabulary.objects)
        labels = tuple(compress(vocabulary.objects, is_thing))
        places[np.flatnonzero(is_thing), -1] = np.arange(len(labels))
    return labels, lambda objects, parts: places[objects, parts]


def _best(item: ImageItem, limit: int | None) -> Sequence[NamedMask]:
    """The answers, or the best `limit` of them, of equal scores the first."""
    answers = item.instances or ()
    if limit is None or len(answers) <= limit:
        return answers
    return sorted(answers, key=lambda answer: -answer.score)[:limit]


@dataclass(frozen=True)
class _Columns(Generic[_Named]):
    """Regions or answers of all images in one list, with their names as columns; -1: has none."""

    named: list[_Named]
    image: Int64[np.ndarray, " n"]
    objects: Int64[np.ndarray, " n"]
    parts: Int64[np.ndarray, " n"]
    box_xyxy: Float64[np.ndarray, "n 4"]

    @staticmethod
    def of(of_images: Sequence[Sequence[_Named]]) -> _Columns[_Named]:
        named = list(chain.from_iterable(of_images))
        corners = chain.from_iterable([one.box_xyxy for one in named])
        return _Columns(
            named,
            np.repeat(np.arange(len(of_images)), [len(one) for one in of_images]),
            np.array([-1 if one.object_category is None else one.object_category for one in named], np.int64),
            np.array([-1 if one.part_category is None else one.part_category for one in named], np.int64),
            np.fromiter(corners, np.float64, 4 * len(named)).reshape(-1, 4),
        )


def _check(
    items: Sequence[ImageItem],
    answers: _Columns[NamedMask],
    scores: Float64[np.ndarray, " n"],
    vocabulary: Vocabulary,
) -> None:
    """Raises `ValueError` for an answer that is no number or has a name that is not in the vocabulary."""
    is_number = np.isfinite(scores) & np.isfinite(answers.box_xyxy).all(1)
    is_named = (answers.objects >= 0) & (answers.objects < len(vocabulary.objects))
    is_named &= (answers.parts >= -1) & (answers.parts < len(vocabulary.parts))
    is_right = is_number & is_named
    if not is_right.all():
        place = int(is_right.argmin())
        answer = answers.named[place]
        raise ValueError(
            f"{items[answers.image[place]].sample_id}: an answer has score {answer.score}, box {answer.box_xyxy} and"
            f" names ({answer.object_category}, {answer.part_category}), of {len(vocabulary.objects)} objects and"
            f" {len(vocabulary.parts)} parts"
        )


def _regions(
    regions: _Columns[Region], category: Int64[np.ndarray, " n"], sizes: Int64[np.ndarray, "n 2"], overlap: Overlap
) -> Regions:
    kept = np.flatnonzero(category >= 0)
    named = [regions.named[i] for i in kept.tolist()]
    return Regions(
        image=regions.image[kept],
        category=category[kept],
        box_xywh=_xywh(regions.box_xyxy[kept]),
        area=np.array([region.area for region in named], np.float64),
        is_crowd=np.array([region.is_crowd for region in named], bool),
        rles=_rles(named, regions.image[kept], sizes, overlap),
    )


def _detections(
    answers: _Columns[NamedMask],
    scores: Float64[np.ndarray, " n"],
    category: Int64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, "n 2"],
    scale: Float64[np.ndarray, " images"],
    overlap: Overlap,
    max_of_class: int,
) -> Detections:
    order = np.lexsort((-scores, category, answers.image))  # Stable: equal scores stay in the item's order.
    order = order[category[order] >= 0]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (np.diff(answers.image[order]) != 0) | (np.diff(category[order]) != 0)
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    order, rank = order[rank < max_of_class], rank[rank < max_of_class]
    image = answers.image[order]
    boxes = _xywh(answers.box_xyxy[order])
    rles = _rles([answers.named[i] for i in order.tolist()], image, sizes, overlap)
    area = boxes[:, 2] * boxes[:, 3]
    if overlap is Overlap.MASKS:
        area = np.asarray(hotcoco_mask.area(rles), np.float64) if rles else np.zeros(0)
    return Detections(image, category[order], rank, boxes, area * scale[image], scores[order], rles)


def _xywh(box_xyxy: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    return np.concatenate([box_xyxy[:, :2], box_xyxy[:, 2:] - box_xyxy[:, :2]], 1)


def _rles(
    named: Sequence[_Named],
    image: Int64[np.ndarray, " n"],
    sizes: Int64[np.ndarray, "n 2"],
    overlap: Overlap,
) -> list[Any]:
    """Masks as the libraries take them; those of an image share the list with its size."""
    if overlap is Overlap.BOXES:
        return []
    size_of = sizes.tolist()
    return [{"size": size_of[i], "counts": one.rle} for i, one in zip(image.tolist(), named, strict=True)]
