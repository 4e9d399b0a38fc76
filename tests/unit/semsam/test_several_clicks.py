"""Prompts of several clicks and of the last answer's mask: whom they influence, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.model.presets import preset
from semsam.model.prompt_encoder import LAST_MASK, FurtherTokens
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import RELEASED, Answer, ImageSize, Predictor, PromptStyle
from semsam.several_clicks import SeveralClicks, mask_tokens

HEIGHT, WIDTH = 50, 70
SETTINGS = replace(preset("debug"), further_clicks=True)
CLICKS = np.array([[3.0, 4.0], [60, 40], [30, 30]])


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = SemanticSam(SETTINGS)
    torch.nn.init.normal_(model.mask_decoder.heads.box.last.weight, std=0.1)  # Boxes move.
    found = Predictor(model, ImageSize(64, 96))
    found.set_vocabulary(["car"], ["wheel"])
    found.set_image(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
    return found


def assert_same(found: Answer, expected: Answer) -> None:
    for name in ("iou_predictions", "boxes_xyxy", "object_scores", "part_scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=2e-4)
    assert (found.masks != expected.masks).mean() < 1e-4


def differ(one: Answer, other: Answer) -> bool:
    return bool(np.abs(one.iou_predictions - other.iou_predictions).max() > 1e-4)


def test_one_positive_click_is_a_click(predictor: Predictor) -> None:
    assert_same(predictor.predict(CLICKS[:1], labels=[1]), predictor.predict(CLICKS[:1]))
    by_prompt = predictor.predict(CLICKS[:, None], labels=[[1], [1], [1]])
    assert_same(by_prompt, predictor.predict(CLICKS))


def test_a_further_click_changes_the_answer_and_its_label_does_too(predictor: Predictor) -> None:
    alone, more, less = (predictor.predict(CLICKS[:2], labels=[1, label]) for label in (-1, 1, 0))
    assert_same(alone, predictor.predict(CLICKS[:1]))
    assert differ(more, alone)
    assert differ(less, alone)
    assert differ(more, less)


def test_the_order_of_further_clicks_does_not_matter(predictor: Predictor) -> None:
    assert_same(predictor.predict(CLICKS, labels=[1, 0, 1]), predictor.predict(CLICKS[[0, 2, 1]], labels=[1, 1, 0]))


def test_prompts_and_what_fills_them_up_do_not_influence_each_other(predictor: Predictor) -> None:
    together = predictor.predict([CLICKS, CLICKS[::-1]], labels=[[1, 0, 1], [1, 1, -1]])
    alone = [predictor.predict(CLICKS, labels=[1, 0, 1]), predictor.predict(CLICKS[::-1][:2], labels=[1, 1])]
    for prompt, one in enumerate(alone):
        np.testing.assert_allclose(together.iou_predictions[prompt], one.iou_predictions[0], atol=2e-4)
        assert (together.masks[prompt] != one.masks[0]).mean() < 1e-3


def test_clicks_correct_a_box(predictor: Predictor) -> None:
    box = [[5.0, 5, 40, 40]]
    assert_same(predictor.predict([[0.0, 0]], box, labels=[-1]), predictor.predict(boxes_xyxy=box))
    assert differ(predictor.predict(CLICKS[2:], box, labels=[0]), predictor.predict(boxes_xyxy=box))


def test_the_last_mask_is_seen_at_any_size_as_logits_or_as_a_mask(predictor: Predictor) -> None:
    mask = np.zeros((1, HEIGHT, WIDTH), bool)
    mask[0, 10:30, 20:60] = True
    alone, seen = predictor.predict(CLICKS[:1]), predictor.predict(CLICKS[:1], last_masks=mask)
    assert differ(seen, alone)
    assert_same(predictor.predict(CLICKS[:1], last_masks=np.where(mask, 30.0, -30.0)), seen)
    twice = mask.repeat(2, axis=1).repeat(2, axis=2)
    assert np.abs(predictor.predict(CLICKS[:1], last_masks=twice).iou_predictions - seen.iou_predictions).max() < 1e-2
    assert_same(predictor.predict(CLICKS[:1], last_masks=np.zeros_like(mask)), alone)  # It says nothing.
    assert differ(predictor.predict(CLICKS[:2], labels=[1, 0], last_masks=mask), seen)


def test_a_masks_token_has_its_box_and_the_mean_of_what_is_seen_there(predictor: Predictor) -> None:
    image = predictor.image
    assert image is not None
    mask = np.zeros((2, HEIGHT, WIDTH), bool)
    mask[0, :, : WIDTH // 2] = True
    tokens = mask_tokens(mask, image)
    assert (tokens.kinds == LAST_MASK).all()
    assert tokens.valid[0, :, 0].tolist() == [True, False]
    (height, width), padded = image.input_size, image.features.padded_size
    expected = [width / padded[1] / 4, height / padded[0] / 2, width / padded[1] / 2, height / padded[0]]
    np.testing.assert_allclose(tokens.boxes_cxcywh[0, 0, 0].numpy(), expected, atol=1e-6)
    inside = image.features.mask_features[0, :, : height // 4, : width // 8].mean(dim=(1, 2))
    torch.testing.assert_close(tokens.contents[0, 0, 0], inside, atol=0.1, rtol=0.1)


def test_only_levels_that_agree_with_most_clicks_may_answer() -> None:
    masks = np.zeros((2, 3, 4, 4), bool)
    masks[0, 0], masks[0, 1, :2], masks[0, 2, 0, 0] = True, True, True
    clicks = SeveralClicks(np.array([[[0.0, 0], [3, 1], [3, 3]]] * 2), np.array([[1, 1, 0], [-1, -1, -1]]))
    agreement = clicks.agreement(masks)
    assert agreement.tolist() == [[2, 3, 2], [0, 0, 0]]
    predicted = np.array([[0.9, 0.1, 0.8], [0.2, 0.3, 0.1]])
    assert PromptStyle().choose(predicted, np.zeros((2, 3, 4)), None, agreement).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"points_xy": CLICKS, "labels": [1, 0]}, r"labels of shape \[1, 2\] do not fit clicks of shape \[1, 3, 2\]"),
        ({"points_xy": CLICKS, "labels": [1, 2, 0]}, "labels are 1 .on the object., 0 .beside it. or -1"),
        ({"points_xy": CLICKS, "labels": [0, 0, -1]}, "a prompt needs a positive click"),
        ({"labels": [1]}, "labels of shape"),
        ({"points_xy": [[0, 0], [99, 0]], "labels": [1, 0]}, "click .99, 0. is outside the image"),
        ({"points_xy": CLICKS, "labels": [1, 1, 1], "boxes_xyxy": [[0, 0, 9, 9]] * 2}, "are for 1 prompts, not 2"),
        ({"points_xy": CLICKS, "last_masks": np.ones((1, 4, 4), bool)}, "are for 1 prompts, not 3"),
        ({"points_xy": CLICKS, "last_masks": np.ones((4, 4), bool)}, "last_masks are n x h x w, bool or float"),
        ({"points_xy": CLICKS, "last_masks": np.ones((3, 4, 4), int)}, "last_masks are n x h x w, bool or float"),
        ({"points_xy": CLICKS, "last_masks": np.ones((3, 0, 4), bool)}, "last_masks are n x h x w, bool or float"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(predictor: Predictor, arguments: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        predictor.predict(**arguments)  # type: ignore[arg-type]


def test_a_model_of_one_click_says_so(predictor: Predictor) -> None:
    released = Predictor(SemanticSam.untrained("debug"), ImageSize(64, 96))
    released.set_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(ValueError, match="this model takes one click or one box for a prompt"):
        released.predict(CLICKS[:2], labels=[1, 0])
    jointly = Predictor(predictor.model, ImageSize(64, 96), RELEASED)
    jointly.set_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(
        ValueError, match="joint_attention: prompts that see each other cannot have clicks of their own"
    ):
        jointly.predict(CLICKS[:2], labels=[1, 0])


def test_weights_of_other_models_are_those_that_they_were(predictor: Predictor) -> None:
    own, plain = predictor.model.state_dict(), SemanticSam.untrained("debug").state_dict()
    assert sorted(own.keys() - plain.keys()) == [
        "prompt_encoder.further_kinds.weight",
        "prompt_encoder.last_mask.weight",
    ]
    assert not plain.keys() - own.keys()


def test_no_prompt_at_all_is_legal_beside_further_tokens(predictor: Predictor) -> None:
    image = predictor.image
    assert image is not None
    none = FurtherTokens.of_clicks(
        torch.zeros(1, 0, 2, 4), torch.zeros(1, 0, 2, dtype=torch.bool), torch.zeros(1, 0, 2, dtype=torch.bool), 64
    )
    nothing = torch.zeros(1, 0, dtype=torch.bool)
    names = predictor.model.encode_names(())
    found = predictor.model.decode(image.features, torch.zeros(1, 0, 4), nothing, names, names, further=none)
    assert found.prompts[-1].iou_predictions.shape == (1, 0)
