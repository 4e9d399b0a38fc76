"""Which images and regions an evaluation shows, and the pictures of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semsam.data import rle
from semsam.data.images import decode_jpeg
from semsam.data.named_mask import NamedMask
from semsam.data.schema import Record, Region
from semsam.data.training_sample import regions_to_train
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.extremes import extremes
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


def middle_click(record: Record, image: int) -> Click | None:
    """A click on the middle-sized region with a mask; None where there is none."""
    asked = AskedRegions.of(record)
    clicks, areas = asked.innermost_clicks(), asked.atoms.areas()
    if not clicks:
        return None
    column = sorted(clicks, key=lambda one: int(areas[one]))[len(clicks) // 2]
    return Click(image, int(asked.places[column]), clicks[column])


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
    regions = regions_to_train(record.regions).values()
    true = [(region.rle, _names(predictor, region)) for region in regions if region.rle is not None]
    masks = item.panoptic if item.panoptic is not None else _sure(item.instances or ())
    found = [(one.rle, _names(predictor, one)) for one in masks]
    title = (f"{record.dataset} {record.sample_id}", f"{record.width} x {record.height}")
    cells, captions = [image], [title]
    for what, some in (("annotated", true), ("found", found)):
        largest = sorted(some, key=lambda one: -rle.area(one[0]))[:MOST_MASKS]
        cells.append(coloured_masks(image, [counts for counts, _ in largest]))
        captions.append((f"{what}: {len(some)}", _counted([names[-1] for _, names in some if names])))
    return Row(tuple(cells), tuple(captions))


def ends_of(numbers: DatasetNumbers, most: int) -> list[int]:
    """Positions of the images that protocols are best and worst on, one at either end of each, `most` at most."""
    place = {sample_id: i for i, sample_id in enumerate(numbers.sample_ids)}
    found = extremes(numbers, shown=1).values()
    ends = [sample_id for one in found for sample_id, _ in (*one.worst, *one.best)]
    return [place[sample_id] for sample_id in dict.fromkeys(ends)][:most]


def worst_click(item: ImageItem, image: int) -> Click | None:
    """The click on an innermost pixel that was answered worst by the level that fits best; None without any."""
    asked = item.prompted
    clicks = np.zeros(0, int) if asked is None else np.flatnonzero(asked.ask == Ask.INNERMOST)
    if asked is None or not len(clicks):
        return None
    worst = clicks[asked.ious[clicks].max(axis=1).argmin()]
    x, y = asked.click_xy[worst].tolist()
    return Click(image, int(asked.region[worst]), (x, y))


def _sure(instances: Sequence[NamedMask]) -> list[NamedMask]:
    best = max((one.score for one in instances), default=0.0)
    return [one for one in instances if one.score >= LEAST_SHARE * best]


def _counted(names: Sequence[str]) -> str:
    """The names, the commonest first, each with how often it is there."""
    return ", ".join(name if count == 1 else f"{count} {name}" for name, count in Counter(names).most_common())


def _names(predictor: Predictor, one: Region | NamedMask) -> list[str]:
    names = [] if one.object_category is None else [predictor.object_names[one.object_category]]
    return names + ([] if one.part_category is None else [predictor.part_names[one.part_category]])
