"""What a model answers is measured as its full masks would have it, though these are never made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region
from semsam.evaluation import asking
from semsam.evaluation.asking import ask, level_ious
from semsam.evaluation.items import Ask, ImageItem, Prompted
from semsam.evaluation.overlaps import as_bits
from semsam.evaluation.questions import Questions
from semsam.everything import find_everything
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor, PromptStyle

HEIGHT, WIDTH = 48, 71


def new_predictor(style: PromptStyle | None = None) -> Predictor:
    predictor = Predictor(SemanticSam.untrained("debug", seed=0), ImageSize(64, 96), style)
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    return predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return new_predictor()


def region(y1: int, x1: int, y2: int, x2: int, **fields: object) -> Region:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    values = {"annotation_id": "1", "rle": rle.encode(mask), "area": 1.0, "kind": Kind.INSTANCE, **fields}
    return Region(box_xyxy=(x1, y1, x2, y2), **values)  # type: ignore[arg-type]


def record(*regions: Region) -> Record:
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    return Record("paco", "val", "7", encode_jpeg(image), HEIGHT, WIDTH, HEIGHT, WIDTH, regions)


CAR = region(8, 8, 40, 56, object_category=1)
WHEEL = region(28, 12, 40, 24, object_category=1, part_category=0, parent=0, kind=Kind.PART)
BOXED = Region("3", None, (2.0, 3.0, 30.0, 40.0), 1.0, Kind.INSTANCE, 0)
CROWD = region(0, 0, 9, 9, is_crowd=True)


def prompted(item: ImageItem) -> Prompted:
    assert item.prompted is not None
    return item.prompted


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_answers_are_those_of_the_full_masks(predictor: Predictor) -> None:
    some = record(CAR, CROWD, WHEEL, BOXED)
    found = prompted(ask(predictor, some, Questions()))
    is_box = found.ask == Ask.BOX
    boxes = [some.regions[i].box_xyxy for i in found.region[is_box]]
    answer = predictor.predict(points_xy=found.click_xy[~is_box] + 0.5, boxes_xyxy=np.array(boxes))
    np.testing.assert_allclose(found.iou_predictions, answer.iou_predictions, atol=1e-6)
    np.testing.assert_array_equal(found.chosen, answer.chosen)
    for prompt, masks in enumerate(answer.masks):
        truth = some.regions[found.region[prompt]].rle
        expected = [np.nan if truth is None else iou(mask, rle.decode(truth, HEIGHT, WIDTH)) for mask in masks]
        np.testing.assert_allclose(found.ious[prompt], expected, atol=1e-6)
        under = slice(found.under_starts[prompt], found.under_starts[prompt + 1])
        for place, ious in zip(found.under[under], found.under_ious[under], strict=True):
            counts = some.regions[place].rle
            assert counts is not None
            true = rle.decode(counts, HEIGHT, WIDTH)
            assert true[tuple(found.click_xy[prompt][::-1])]
            np.testing.assert_allclose(ious, [iou(mask, true) for mask in masks], atol=1e-6)
    names = np.take_along_axis(answer.object_scores, found.objects[:, :, :1].astype(int), axis=2)[:, :, 0]
    np.testing.assert_allclose(names, answer.object_scores.max(axis=2), atol=1e-6)
    np.testing.assert_allclose(found.true_object_score[0], answer.object_scores[0, :, 1], atol=1e-6)
    assert np.isnan(found.true_part_score[found.region == 0]).all()


def test_prompts_a_few_at_a_time_are_answered_alike(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    some = record(CAR, WHEEL, BOXED)
    at_once = prompted(ask(predictor, some, Questions()))
    monkeypatch.setattr(asking, "LOGIT_BYTES", 1)
    apart = prompted(ask(predictor, some, Questions()))
    for field in dataclasses.fields(Prompted):
        np.testing.assert_allclose(getattr(apart, field.name), getattr(at_once, field.name), atol=1e-5)


@pytest.mark.parametrize("regions", [(), (CROWD,)])
def test_an_image_without_regions_has_an_item_without_prompts(
    predictor: Predictor, regions: tuple[Region, ...]
) -> None:
    item = ask(predictor, record(*regions), Questions())
    assert len(prompted(item)) == 0
    assert item.regions == regions


def test_a_box_is_answered_by_the_level_whose_mask_fits_it() -> None:
    boxes = np.array([[[0, 0, 4, 4], [0, 0, 0, 0], [1, 1, 9, 9]], [[0, 0, 0, 0]] * 3], float)
    asked, predicted = np.array([[0.0, 0, 9, 9], [2, 2, 4, 4]]), np.array([[0.1, 0.9, 0.2], [0.1, 0.2, 0.3]])
    assert PromptStyle().choose(predicted, boxes, asked).tolist() == [2, 0]
    assert PromptStyle().choose(predicted, boxes, None).tolist() == [1, 2]
    assert PromptStyle(box_choice="predicted_iou").choose(predicted, boxes, asked).tolist() == [1, 2]


def test_answers_that_are_no_numbers_are_refused_by_the_samples_name() -> None:
    predictor = new_predictor()
    head = predictor.model.mask_decoder.heads.iou  # Any head will do.
    for parameter in head.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="^paco val 7: the model's answers are not finite"):
        ask(predictor, record(CAR), Questions())


def test_levels_are_compared_with_each_other() -> None:
    masks = np.zeros((1, 3, 4, 4), bool)
    masks[0, 0, :2] = masks[0, 1, 0] = True
    np.testing.assert_allclose(level_ious(as_bits(masks.reshape(1, 3, 16)))[0], [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])


VOCABULARY = Vocabulary(("car", "dog"), ("wheel",), (True, False), ((0, 0),))


def test_with_a_vocabulary_everything_is_asked_for(predictor: Predictor) -> None:
    item = ask(predictor, record(CAR), Questions(), VOCABULARY)
    expected = find_everything(predictor.image, predictor.generic_queries(), VOCABULARY)  # type: ignore[arg-type]
    assert expected.instances
    assert item.instances == expected.instances
    assert item.panoptic == expected.panoptic
    assert item.semantic == expected.semantic


def test_segments_are_asked_for_where_there_is_stuff_alone(predictor: Predictor) -> None:
    things = dataclasses.replace(VOCABULARY, things=(True, True))
    item = ask(predictor, record(CAR), Questions(), things)
    assert item.instances is not None
    assert item.panoptic is item.semantic is None


def test_without_names_there_is_nothing_to_find(predictor: Predictor) -> None:
    item = ask(predictor, record(CAR), Questions(), Vocabulary(()))
    assert item.instances is item.panoptic is item.semantic is None
