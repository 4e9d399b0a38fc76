"""The protocols end to end on an untrained model: what is measured, not how well it does."""

from __future__ import annotations

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.schema import Kind, Record, Region
from semsam.evaluation.baselines import BaselineFit
from semsam.evaluation.pictures import click_row, encode_png, grid
from semsam.evaluation.protocols import Protocols, fit_baselines, measure
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    predictor = Predictor(SemanticSam.untrained("debug", seed=0), ImageSize(64, 96))
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    return predictor


def box_region(x1: int, y1: int, x2: int, y2: int, **fields: object) -> Region:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    values = {"annotation_id": "1", "rle": rle.encode(mask), "area": float(mask.sum()), "kind": Kind.INSTANCE, **fields}
    return Region(box_xyxy=(x1, y1, x2, y2), **values)  # type: ignore[arg-type]


def record_of(*regions: Region) -> Record:
    image = encode_jpeg(np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    return Record("paco", "val", "7", image, HEIGHT, WIDTH, HEIGHT, WIDTH, regions)


def measured(predictor: Predictor, record: Record) -> Protocols:
    fit, protocols = BaselineFit(), Protocols()
    fit_baselines(record, fit)
    measure(predictor, record, fit.compute(6), protocols, chunk=1)
    return protocols


CAR = box_region(8, 8, 56, 40, object_category=0)
WHEEL = box_region(12, 28, 24, 40, object_category=0, part_category=0, parent=0, kind=Kind.PART)


def test_every_protocol_measures_what_is_annotated(predictor: Predictor) -> None:
    protocols = measured(predictor, record_of(CAR, WHEEL))
    assert protocols.one_click.count("miou_oracle") == 2
    assert protocols.box_prompt.count("miou") == 2
    assert protocols.granularity.count("miou_all") == 3  # The car's click lies on the car alone, the wheel's on both.
    assert protocols.classes.count("object_top1") == 2
    assert protocols.classes.count("part_top1") == 1
    numbers = protocols.compute("paco")
    assert numbers["baseline/classes/paco/object_top1"] == 1.0
    assert numbers["baseline/one_click/paco/miou_oracle"] > 0.5  # A disc fits a square.
    assert 0 <= numbers["one_click/paco/miou_max"] <= numbers["one_click/paco/miou_oracle"] <= 1


@pytest.mark.slow
def test_sums_travel_between_processes(predictor: Predictor) -> None:
    one, other = measured(predictor, record_of(CAR, WHEEL)), measured(predictor, record_of(CAR))
    both = Protocols()
    for protocols in (one, other):
        both.merge_sums(protocols.sums())
    assert both.one_click.count("miou_oracle") == 3


def test_boxes_without_masks_are_measured_by_name_alone(predictor: Predictor) -> None:
    boxed = Region("1", None, (8.0, 8.0, 56.0, 40.0), 1536.0, Kind.INSTANCE, object_category=1)
    protocols = measured(predictor, record_of(boxed))
    assert set(protocols.compute("objects365")) == {"box_prompt/objects365/object_top1"} | {
        name for name in protocols.compute("objects365") if name.startswith("baseline/")
    }
    assert protocols.one_click.compute() == {}


@pytest.mark.parametrize("regions", [(), (box_region(8, 8, 56, 40, object_category=0, is_crowd=True),)])
def test_an_image_without_regions_or_all_crowd_adds_nothing(predictor: Predictor, regions: tuple[Region, ...]) -> None:
    assert measured(predictor, record_of(*regions)).compute("paco") == {}


def test_names_are_not_measured_where_there_are_none(predictor: Predictor) -> None:
    protocols = measured(predictor, record_of(box_region(0, 0, 10, 10, kind=Kind.CLASS_AGNOSTIC)))
    assert protocols.classes.compute() == {}
    assert protocols.one_click.count("miou_max") == 1


def test_a_picture_shows_the_click_the_truth_and_six_levels(predictor: Predictor) -> None:
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    predictor.set_image(image)
    row = click_row(predictor, image, (20, 20), np.ones((HEIGHT, WIDTH), bool), ("paco 7", "car"))
    assert len(row.cells) == 8
    assert encode_png(grid([row, row])).startswith(b"\x89PNG")
    assert (row.cells[0][20, 20] != 0).any()
    assert row.captions[0] == ("paco 7", "car")
    with pytest.raises(ValueError, match="at least one row"):
        grid([])
