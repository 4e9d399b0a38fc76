"""Which clicks and images are shown, and that they can be drawn."""

from __future__ import annotations

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region
from semsam.evaluation.asking import ask
from semsam.evaluation.dataset_numbers import measure_dataset
from semsam.evaluation.items import Ask
from semsam.evaluation.pictures import encode_png, grid
from semsam.evaluation.questions import Questions, item_of
from semsam.evaluation.shown import Click, draw_click, draw_found, ends_of, middle_click, worst_click
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor
from tests.unit.semsam.evaluation.test_protocols import VOCABULARY, answer, item

HEIGHT, WIDTH = 48, 64


def region(y1: int, x1: int, y2: int, x2: int, **fields: object) -> Region:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    values = {"annotation_id": "1", "rle": rle.encode(mask), "area": 1.0, "kind": Kind.INSTANCE, **fields}
    return Region(box_xyxy=(x1, y1, x2, y2), **values)  # type: ignore[arg-type]


def record(*regions: Region) -> Record:
    image = encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return Record("paco", "val", "7", image, HEIGHT, WIDTH, HEIGHT, WIDTH, regions)


SMALL, MIDDLE, LARGE = region(0, 0, 4, 4), region(8, 8, 24, 24, object_category=1), region(4, 4, 40, 60)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    predictor = Predictor(SemanticSam.untrained("debug"), ImageSize(64, 96))
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    return predictor


def test_the_click_that_was_answered_worst_is_found() -> None:
    some = item(answer([0.5, 0.75]), answer([0.25, 0.5]), answer([0.0, 0.0], Ask.BOX), answer([0.5, 0.0]))
    found = worst_click(some, 3)
    assert found is not None
    assert (found.image, found.region) == (3, 0)
    assert worst_click(item(), 0) is worst_click(item_of(record(SMALL)), 0) is None


def test_images_at_either_end_of_a_protocol_are_shown() -> None:
    numbers = measure_dataset([[item(answer([iou, 0.0])) for iou in (0.5, 0.25, 1.0)]], VOCABULARY)
    assert ends_of(numbers, 9)


def test_the_middle_sized_region_stands_for_an_image() -> None:
    found = middle_click(record(LARGE, SMALL, MIDDLE), 5)
    assert found is not None
    assert (found.image, found.region) == (5, 2)
    assert middle_click(record(), 0) is None


def test_a_click_is_drawn_with_the_truth_and_six_levels(predictor: Predictor) -> None:
    row = draw_click(predictor, record(LARGE, MIDDLE), Click(0, 1, (10, 10)))
    assert len(row.cells) == 8
    assert row.captions[:2] == (("paco 7", "dog"), ("true region", "256 px"))


def test_what_is_found_is_drawn_beside_what_is_annotated(predictor: Predictor) -> None:
    some = record(LARGE, MIDDLE, region(30, 30, 34, 34, object_category=1, part_category=0))
    vocabulary = Vocabulary(("car", "dog"), ("wheel",), (True, False))
    row = draw_found(predictor, some, ask(predictor, some, Questions(), vocabulary))
    assert len(row.cells) == 3
    assert row.captions[1] == ("annotated: 3", "dog, wheel")
    assert (row.cells[1][10, 10] != row.cells[1][45, 62]).any()
    unasked = draw_found(predictor, some, item_of(some))
    assert unasked.captions[2] == ("found: 0", "")


def test_rows_of_different_lengths_stand_under_each_other(predictor: Predictor) -> None:
    some = record(LARGE)
    rows = [draw_found(predictor, some, item_of(some)), draw_click(predictor, some, Click(0, 0, (10, 10)))]
    picture = grid(rows)
    assert picture.shape == (2 * 222, 8 * 196, 3)
    assert (picture[:222, 3 * 196 :] == 255).all()
    assert encode_png(picture).startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="at least one row"):
        grid([])
