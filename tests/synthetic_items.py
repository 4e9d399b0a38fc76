"""Items with everything that makes numbers go wrong: crowds, void, equal scores, duplicates, empty images, odd ids."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Int64

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.items import ImageItem, NamedMask, join_prompted

NAMES = Vocabulary(
    objects=("dog", "car", "grass", "cat", "sky", "cup", "never"),
    parts=("head", "wheel", "tail", "handle"),
    things=(True, True, False, True, False, True, True),
    object_parts=((0, 0), (0, 2), (1, 1), (3, 0), (3, 2), (5, 3)),
)
_THINGS = (0, 1, 3, 5)
_ZOOMS = (1, 4, 16)  # Annotated images are larger than what is stored: areas of every class of size.


def synthetic_items(count: int, seed: int, resized: bool = True) -> list[ImageItem]:
    """Images with instances, parts and panoptic segments, and answers that are near to them or far off."""
    return list(_items(count, seed, resized))


def federated(items: list[ImageItem], seed: int) -> list[ImageItem]:
    """The items, each of which speaks of some names only."""
    rng = np.random.default_rng(seed)
    return [_federated(rng, item) for item in items]


def without_prompts(item: ImageItem) -> ImageItem:
    """The item as if it had been asked by clicks and boxes, and had no region to ask for."""
    return dataclasses.replace(item, prompted=join_prompted([], 3))


@functools.cache
def _items(count: int, seed: int, resized: bool) -> tuple[ImageItem, ...]:
    rng = np.random.default_rng(seed)
    return tuple(_item(rng, number, int(rng.choice(_ZOOMS)) if resized else 1) for number in range(count))


def perturbed(item: ImageItem, seed: int) -> ImageItem:
    """The item with answers made from its truth: moved about, partly misnamed, some more and some fewer; many tie."""
    rng = np.random.default_rng(seed)
    size = item.height, item.width
    panoptic = [region for region in item.regions if region.kind is Kind.PANOPTIC]
    segments = [(r.object_category or 0, rle.decode(r.rle or b"", *size)) for r in panoptic]
    answers = []
    for region in item.regions:
        for _ in range(rng.choice([0, 1, 1, 2]) if region.kind is Kind.INSTANCE else 0):
            answers.append(_near(rng, _moved(rng, rle.decode(region.rle or b"", *size)), region))
            if rng.random() < 0.3:  # What is not there, under a name that is.
                answers.append(_near(rng, _shape(rng, *size), region))
    answers.sort(key=lambda answer: -answer.score)
    return dataclasses.replace(
        item,
        instances=tuple(answers),
        panoptic=_segment_answers(rng, segments, *size),
        semantic=_semantic_answers(rng, segments, *size),
    )


def _item(rng: np.random.Generator, number: int, zoom: int) -> ImageItem:
    height, width = (int(side) for side in rng.integers(20, 90, 2))
    shapes = [_shape(rng, height, width) for _ in range(0 if number % 9 == 0 else rng.integers(0, 9))]
    segments = _segments(rng, shapes, height, width)
    regions = [
        *(_region(rng, mask, zoom, Kind.INSTANCE, object_category=int(rng.choice(_THINGS))) for mask in shapes),
        *(_part(rng, mask, zoom) for mask in shapes if rng.random() < 0.7),
        *(_region(rng, mask, 1, Kind.PANOPTIC, object_category=name) for name, mask in segments),
    ]
    return ImageItem(
        sample_id=f"{number:06d}",
        height=height,
        width=width,
        original_height=height * zoom,
        original_width=width * zoom,
        regions=tuple(regions),
        instances=_answers(rng, regions, height, width),
        panoptic=_segment_answers(rng, segments, height, width),
        semantic=_semantic_answers(rng, segments, height, width),
    )


def _shape(rng: np.random.Generator, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """A disc or a box, perhaps cut off by the border; never empty."""
    centre = rng.integers(0, (height, width))
    radii = 1 + rng.random(2) ** 2 * (height / 2, width / 2)
    away = np.abs(np.indices((height, width)) - centre[:, None, None]) / radii[:, None, None]
    return (away**2).sum(0) <= 1 if rng.random() < 0.7 else away.max(0) <= 0.9


def _region(rng: np.random.Generator, mask: Bool[np.ndarray, "h w"], zoom: int, kind: Kind, **names: int) -> Region:
    counts = rle.encode(mask)
    return Region(
        annotation_id=str(rng.choice([0, 7, 2**40 + 3, 2**53 + 1])),
        rle=counts,
        box_xyxy=rle.box_xyxy(counts, *mask.shape),
        area=float(mask.sum() * zoom**2),
        kind=kind,
        is_thing=NAMES.things[names["object_category"]],
        is_crowd=bool(rng.random() < 0.15),
        **names,
    )


def _part(rng: np.random.Generator, mask: Bool[np.ndarray, "h w"], zoom: int) -> Region:
    part = mask.copy()
    part[:, np.flatnonzero(mask.any(0)).mean() < np.arange(mask.shape[1])] = False
    pair = NAMES.object_parts[rng.integers(len(NAMES.object_parts))]
    return _region(rng, part, zoom, Kind.PART, object_category=pair[0], part_category=pair[1])


def _answers(rng: np.random.Generator, regions: list[Region], height: int, width: int) -> tuple[NamedMask, ...]:
    answers = []
    for region in regions:
        for _ in range(rng.choice([0, 1, 1, 2]) if region.kind is not Kind.PANOPTIC else 0):
            answers.append(_answer(rng, _moved(rng, rle.decode(region.rle or b"", height, width)), region))
    for _ in range(rng.integers(0, 4)):
        region = _region(rng, _shape(rng, height, width), 1, Kind.INSTANCE, object_category=int(rng.choice(_THINGS)))
        answers.append(_answer(rng, _shape(rng, height, width), region))
    answers.sort(key=lambda answer: -answer.score)
    return tuple(answers)


def _answer(rng: np.random.Generator, mask: Bool[np.ndarray, "h w"], region: Region) -> NamedMask:
    near = _near(rng, mask, region)
    part = near.part_category
    return dataclasses.replace(
        near,
        object_category=near.object_category if rng.random() < 0.8 else int(rng.choice(_THINGS)),
        part_category=part if part is None or rng.random() < 0.8 else int(rng.integers(len(NAMES.parts))),
    )


def _near(rng: np.random.Generator, mask: Bool[np.ndarray, "h w"], region: Region) -> NamedMask:
    """An answer with the region's names, whose box is not quite that of its mask."""
    counts = rle.encode(mask)
    x1, y1, x2, y2 = rle.box_xyxy(counts, *mask.shape)
    jitter = rng.normal(0, 0.5, 2)
    box = (x1, y1, float(np.float32(max(x2 + jitter[0], x1))), float(np.float32(max(y2 + jitter[1], y1))))
    assert region.object_category is not None
    # Few different scores, so that many are equal.
    score = float(np.float32(rng.integers(1, 12) / 12))
    return NamedMask(counts, box, region.object_category, region.part_category, score)


def _moved(rng: np.random.Generator, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask up to three pixels off; sometimes exactly where it is."""
    shift = rng.integers(-3, 4, 2) * (rng.random() < 0.8)
    rows, columns = (np.arange(size) - by for size, by in zip(mask.shape, shift, strict=True))
    inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
    moved = mask[np.ix_(rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1))] & inside
    return moved if moved.any() else mask


def _segments(
    rng: np.random.Generator, shapes: list[Bool[np.ndarray, "h w"]], height: int, width: int
) -> list[tuple[int, Bool[np.ndarray, "h w"]]]:
    """Shapes painted over one another, and what remains of each that is left with pixels; the rest is void."""
    labels = np.zeros((height, width), np.int64)
    shapes = [*shapes, *(_shape(rng, height, width) for _ in range(rng.integers(0, 5)))] if shapes else []
    for number, mask in enumerate(shapes):
        labels[mask] = number + 1
    return [(int(rng.integers(len(NAMES.objects) - 1)), labels == number) for number in np.unique(labels) if number]


def _segment_answers(
    rng: np.random.Generator, segments: list[tuple[int, Bool[np.ndarray, "h w"]]], height: int, width: int
) -> tuple[NamedMask, ...]:
    """The segments moved about and partly misnamed, with one more over them; never overlapping."""
    labels: Int64[np.ndarray, "h w"] = np.zeros((height, width), np.int64)
    names = [0]
    for name, mask in segments:
        if rng.random() < 0.85:
            labels[_moved(rng, mask)] = len(names)
            names.append(name if rng.random() < 0.85 else int(rng.integers(len(NAMES.objects))))
    if rng.random() < 0.6:
        labels[_shape(rng, height, width)] = len(names)
        names.append(int(rng.integers(len(NAMES.objects))))
    return tuple(_segment(names[number], labels == number) for number in np.unique(labels) if number)


def _semantic_answers(
    rng: np.random.Generator, segments: list[tuple[int, Bool[np.ndarray, "h w"]]], height: int, width: int
) -> tuple[NamedMask, ...]:
    """One mask of each name, without overlaps; some pixels have no answer."""
    labels: Int64[np.ndarray, "h w"] = np.full((height, width), -1)
    for answer in _segment_answers(rng, segments, height, width):
        labels[rle.decode(answer.rle, height, width)] = answer.object_category
    return tuple(_segment(int(name), labels == name) for name in np.unique(labels) if name >= 0)


def _segment(name: int, mask: Bool[np.ndarray, "h w"]) -> NamedMask:
    counts = rle.encode(mask)
    return NamedMask(counts, rle.box_xyxy(counts, *mask.shape), name, None, 1.0)


def _federated(rng: np.random.Generator, item: ImageItem) -> ImageItem:
    objects = {r.object_category for r in item.regions if r.object_category is not None and r.part_category is None}
    parts = {r.part_category for r in item.regions if r.part_category is not None}
    absent = set(np.flatnonzero(rng.random(len(NAMES.objects)) < 0.4).tolist())
    return dataclasses.replace(
        item,
        checked_objects=tuple(sorted(objects | absent)),
        checked_parts=tuple(sorted(parts | set(np.flatnonzero(rng.random(len(NAMES.parts)) < 0.4).tolist()))),
        not_exhaustive_objects=tuple(sorted(name for name in objects if rng.random() < 0.3)),
    )
