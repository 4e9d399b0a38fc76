"""The pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from pipelines.evaluate.item_files import ItemManifest, chosen_rows
from pipelines.model_pool import use_vocabulary
from semsam.data.schema import Record
from semsam.data.shards import Split
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.extremes import picture_name
from semsam.evaluation.items import ImageItem
from semsam.evaluation.pictures import Row, encode_png, grid
from semsam.evaluation.shown import draw_click, draw_found, ends_of, middle_click, worst_click
from semsam.predictor import Predictor
from semsam.storage import Folder

LOOKED_AT = 20  # Images, for each one in the picture.
MOST_ENDS = 12  # Images of a dataset that are drawn because a protocol is at its best or worst on them.


def draw(
    predictor: Predictor,
    split: Split,
    rows: Sequence[int],
    items: Folder,
    asked: ItemManifest,
    numbers: DatasetNumbers,
    count: int,
) -> dict[str, bytes]:
    """PNGs by name: the same clicks in every evaluation; what is found; and images that a protocol is at its ends on.

    `count` is how many images the first two show; 0: nothing is drawn.  Looks at a bounded number of images: a dataset
    of boxes has no masks in any.
    """
    if not count:
        return {}
    dataset, found = asked.dataset, dict[str, list[Row]]()
    use_vocabulary(predictor, split)
    for row in chosen_rows(split, LOOKED_AT * count):
        if len(found.get(f"{dataset}.png", ())) == count:
            break
        record = split.record(row)
        click = middle_click(record, row)
        if click is not None:
            found.setdefault(f"{dataset}.png", []).append(draw_click(predictor, record, click))
    if not asked.left_out:  # Positions among the answered images are those among the rows.
        ends = ends_of(numbers, MOST_ENDS)
        answered = chain.from_iterable(asked.items(items))
        for image, (row, item) in enumerate(zip(rows, answered, strict=False)):
            if image < count and item.instances is not None:
                found.setdefault(f"{dataset}-found.png", []).append(draw_found(predictor, split.record(row), item))
            if image in ends:
                drawn = _draw_image(predictor, split.record(row), item, image)
                found[picture_name(dataset, item.sample_id)] = drawn
    return {name: encode_png(grid(some)) for name, some in found.items() if some}


def _draw_image(predictor: Predictor, record: Record, item: ImageItem, image: int) -> list[Row]:
    """What is found in an image, and the click that was answered worst."""
    click = worst_click(item, image)
    clicked = [draw_click(predictor, record, click)] if click is not None else []
    return [draw_found(predictor, record, item), *clicked] if item.instances is not None else clicked
