"""Answers for `supervision`: class ids, confidences and names are kept, and empty answers are none."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import supervision as sv

from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings
from semsam.everything import EverythingSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor

HEIGHT, WIDTH = 48, 64
POINTS = [[10.0, 10], [40, 20]]
EVERYTHING = AutomaticMaskSettings(points_per_side=2, min_iou=-10, min_stability=0, max_overlap=1)


def new_predictor(objects: list[str], parts: list[str]) -> Predictor:
    found = Predictor(SemanticSam.untrained("debug"), ImageSize(64, 96))
    found.set_vocabulary(objects, parts)
    found.set_image(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    return found


@pytest.fixture(scope="module")
def named() -> Predictor:
    return new_predictor(["car", "dog", "road"], ["wheel", "leg"])


@pytest.fixture(scope="module")
def nameless() -> Predictor:
    return new_predictor([], [])


def test_the_chosen_masks_of_an_answer_are_detections(named: Predictor) -> None:
    answer = named.predict(POINTS)
    found = answer.to_supervision()
    assert len(found) == 2
    for place, level in enumerate(answer.chosen):
        name, score = answer.best_object(place, level) or ("", 0.0)
        np.testing.assert_array_equal(found.mask[place], answer.masks[place, level])
        np.testing.assert_array_equal(found.xyxy[place], answer.boxes_xyxy[place, level])
        assert found["class_name"][place] == name == answer.object_names[found.class_id[place]]
        assert found.confidence[place] == pytest.approx(score * answer.iou_predictions[place, level])
        assert found["part_name"][place] == (answer.best_part(place, level) or ("", 0.0))[0]
        assert found["level"][place] == answer.levels[place, level]
        assert found["object_score"][place] == score
    every = answer.to_supervision(every_level=True)
    assert every["prompt"].tolist() == [0] * 6 + [1] * 6
    np.testing.assert_array_equal(every.mask, answer.masks.reshape(-1, HEIGHT, WIDTH))


def test_an_answer_without_names_has_no_classes(nameless: Predictor) -> None:
    answer = nameless.predict(POINTS)
    found = answer.to_supervision()
    assert found.class_id is None
    assert found["class_name"].tolist() == [None, None]
    np.testing.assert_allclose(found.confidence, answer.iou_predictions[[0, 1], answer.chosen])


@pytest.mark.parametrize("predictor", ["named", "nameless"])
def test_no_prompts_are_no_detections(predictor: str, named: Predictor, nameless: Predictor) -> None:
    found = {"named": named, "nameless": nameless}[predictor].predict().to_supervision()
    assert len(found) == 0
    assert found.mask.shape == (0, HEIGHT, WIDTH)


def test_automatic_masks_are_detections(named: Predictor, nameless: Predictor) -> None:
    assert named.image is not None
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    masks = AutomaticMasks(named, EVERYTHING).of_image(pixels)
    found = masks.to_supervision(named.object_names)
    assert len(found) == len(masks) > 2
    np.testing.assert_array_equal(found.mask, masks.masks())
    np.testing.assert_array_equal(found.xyxy, masks.boxes_xyxy)
    assert [named.object_names[place] for place in found.class_id] == list(masks.object_names)
    assert found["class_name"].tolist() == list(masks.object_names)
    np.testing.assert_allclose(found.confidence, masks.iou_predictions * masks.object_scores)
    with pytest.raises(ValueError, match="object_names: '(car|dog|road)' is a mask's name"):
        masks.to_supervision()
    unnamed = AutomaticMasks(nameless, EVERYTHING).of_image(pixels).to_supervision()
    assert unnamed.class_id is None
    assert len(masks.take(np.zeros(0, np.int64)).to_supervision(named.object_names)) == 0


def test_everything_is_detections(named: Predictor) -> None:
    found = named.everything(things=["car", "dog"], object_parts=[("car", "wheel"), ("dog", "leg")])
    for what, segments in (
        ("instances", found.instances),
        ("panoptic", found.panoptic),
        ("semantic", found.semantic),
    ):
        assert segments is not None
        detected = found.to_supervision(what)  # type: ignore[arg-type]
        assert len(detected) == len(segments)
        assert detected.mask.shape == (len(segments), HEIGHT, WIDTH)
        assert detected.class_id.tolist() == [one.object_category for one in segments]
        assert detected.confidence.tolist() == [one.score for one in segments]
        assert detected["class_name"].tolist() == [named.object_names[one.object_category] for one in segments]
        parts = [None if one.part_category is None else named.part_names[one.part_category] for one in segments]
        assert detected["part_name"].tolist() == parts
    instances = found.to_supervision()
    assert set(instances["part_name"]) >= {None, "wheel"}
    wheels = instances[instances["part_name"] == "wheel"]
    assert set(wheels["class_name"]) == {"car"}


def test_what_was_not_looked_for_is_said(named: Predictor) -> None:
    found = named.everything(settings=EverythingSettings(panoptic=False))
    with pytest.raises(ValueError, match="what: panoptic was not looked for"):
        found.to_supervision("panoptic")


def test_supervision_draws_and_filters_what_it_gets(named: Predictor) -> None:
    detected = named.predict(POINTS).to_supervision(every_level=True)
    scene = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn = sv.MaskAnnotator().annotate(scene.copy(), detected)
    drawn = sv.LabelAnnotator().annotate(drawn, detected, labels=list(detected["class_name"]))
    assert (drawn != scene).any()
    assert len(detected.with_nms(0.1, class_agnostic=True)) < len(detected)
    assert len(sv.Detections.merge([detected, detected[:3]])) == len(detected) + 3


def test_without_the_library_it_is_said_what_to_install(named: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match=r"to_supervision needs supervision of the extra \[supervision\]"):
        named.predict(POINTS).to_supervision()
