"""Which images and regions an evaluation shows, and the pictures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from semsam.data import rle
from semsam.data.images import decode_jpeg
from semsam.data.named_mask import NamedMask
from semsam.data.schema import Record, Region
from semsam.evaluation.items import Ask, ImageItem
from semsam.evaluation.pictures import Row, click_row, coloured_masks
from semsam.evaluation.questions import AskedRegions
from semsam.predictor import Predictor

LEAST_SHARE = 0.5  # Of the best instance's score, to be shown: after a short training all scores are low.
MOST_MASKS = 12  # In one picture, the largest.


class Click(NamedTuple):
    """A click on a region of an image."""

    image: int  # Position among the images that were evaluated.
    region: int  # In the record.
    xy: tuple[int, int]
    iou: float  # Of the level that fits best.


def extremes(items: Iterable[Sequence[ImageItem]], count: int) -> tuple[list[Click], list[Click]]:
    """The clicks that were answered worst and best by the level that fits best, one of each image; worst comes first.

    Of equally good ones the first.
    """
    worst: list[Click] = []
    best: list[Click] = []
    image = 0
    for some in items:
        for item in some:
            clicks = _clicks(item, image)
            if clicks:
                worst = sorted([*worst, min(clicks, key=lambda one: one.iou)], key=lambda one: one.iou)[:count]
                best = sorted([*best, max(clicks, key=lambda one: one.iou)], key=lambda one: -one.iou)[:count]
            image += 1
    return worst, best


def middle_click(record: Record, image: int) -> Click | None:
    """A click on the middle-sized region with a mask; None where there is none."""
    asked = AskedRegions.of(record)
    clicks, areas = asked.innermost_clicks(), asked.atoms.areas()
    if not clicks:
        return None
    column = sorted(clicks, key=lambda one: int(areas[one]))[len(clicks) // 2]
    return Click(image, int(asked.places[column]), clicks[column], float("nan"))


def draw_click(predictor: Predictor, record: Record, click: Click) -> Row:
    """The click with what is true there, and the model's six answers."""
    image, region = np.ascontiguousarray(decode_jpeg(record.image)), record.regions[click.region]
    predictor.set_image(image)
    truth = rle.decode(region.rle or b"", record.height, record.width)
    title = (f"{record.dataset} {record.sample_id}", ", ".join(_names(predictor, region)))
    return click_row(predictor, image, click.xy, truth, title)


def draw_found(predictor: Predictor, record: Record, item: ImageItem) -> Row:
    """The image, what is annotated there, and what is found there: segments, or the surest instances."""
    image = np.ascontiguousarray(decode_jpeg(record.image))
    asked = AskedRegions.of(record)
    true = [(region.rle, _names(predictor, region)) for region in asked.regions if region.rle is not None]
    masks = item.panoptic if item.panoptic is not None else _sure(item.instances or ())
    found = [(one.rle, _names(predictor, one)) for one in masks]
    title = (f"{record.dataset} {record.sample_id}", f"{record.width} x {record.height}")
    cells, captions = [image], [title]
    for what, some in (("annotated", true), ("found", found)):
        largest = sorted(some, key=lambda one: -rle.area(one[0]))[:MOST_MASKS]
        cells.append(coloured_masks(image, [counts for counts, _ in largest]))
        captions.append((f"{what}: {len(some)}", _counted([names[-1] for _, names in some if names])))
    return Row(tuple(cells), tuple(captions))


def _clicks(item: ImageItem, image: int) -> list[Click]:
    asked = item.prompted
    if asked is None:
        return []
    return [
        Click(
            image,
            int(asked.region[i]),
            (int(asked.click_xy[i, 0]), int(asked.click_xy[i, 1])),
            float(asked.ious[i].max()),
        )
        for i in np.flatnonzero(asked.ask == Ask.INNERMOST)
    ]


def _sure(instances: Sequence[NamedMask]) -> list[NamedMask]:
    best = max((one.score for one in instances), default=0.0)
    return [one for one in instances if one.score >= LEAST_SHARE * best]


def _counted(names: Sequence[str]) -> str:
    """The names, the commonest first, each with how often it is there."""
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in Counter(names).most_common())


def _names(predictor: Predictor, one: Region | NamedMask) -> list[str]:
    names = [] if one.object_category is None else [predictor.object_names[one.object_category]]
    return names + ([] if one.part_category is None else [predictor.part_names[one.part_category]])
