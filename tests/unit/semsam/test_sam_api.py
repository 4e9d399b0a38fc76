"""SAM's dialect: results are the predictor's, in SAM's forms, and what there is none of is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings
from semsam.data import rle
from semsam.model.presets import PRESETS
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import RELEASED, ImageSize, Predictor, PromptStyle
from semsam.sam_api import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from semsam.sam_choice import in_order, mask_iou, three_of
from semsam.sam_dictionaries import PADDING_LOGIT, ResizeLongestSide, low_size

HEIGHT, WIDTH = 48, 80
CLICKS = np.array([[20.0, 10.0], [60, 40], [70, 5]])
BOX = np.array([5.0, 5, 40, 40])
EVERYTHING = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def new_model(further_clicks: bool) -> SemanticSam:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = SemanticSam(replace(PRESETS["debug"], further_clicks=further_clicks)).eval()
        torch.nn.init.normal_(model.mask_decoder.heads.box.last.weight, std=0.1)  # Boxes move.
    return model


MODELS = {"one click": new_model(False), "several": new_model(True)}


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def new_predictor(model: str, image: np.ndarray, style: PromptStyle | None = None) -> SamPredictor:
    found = SamPredictor(Predictor(MODELS[model], ImageSize(64, 128), style))
    found.set_image(image)
    return found


@pytest.fixture(scope="module")
def one_click(image: np.ndarray) -> SamPredictor:
    return new_predictor("one click", image)


@pytest.fixture(scope="module")
def several(image: np.ndarray) -> SamPredictor:
    return new_predictor("several", image)


def assert_is_chosen(found: tuple[np.ndarray, np.ndarray, np.ndarray], predictor: Predictor, **prompt: Any) -> None:
    """What SAM's call gives is what ours answers with where only one mask may be."""
    expected = predictor.predict(**prompt)
    masks, scores, logits = found
    assert masks.shape == (1, HEIGHT, WIDTH)
    assert logits.shape == (1, 256, 256)
    level = expected.chosen[0]
    np.testing.assert_array_equal(masks[0], expected.masks[0, level])
    np.testing.assert_array_equal(scores[0], expected.iou_predictions[0, level])


@pytest.mark.parametrize("model", MODELS)
def test_one_click_or_box_gives_the_predictors_answer(model: str, image: np.ndarray) -> None:
    for style in (PromptStyle(), RELEASED):
        sam = new_predictor(model, image, style)
        found = sam.predict(CLICKS[:1], np.array([1]), multimask_output=False)
        assert_is_chosen(found, sam.predictor, points_xy=CLICKS[:1])
        assert_is_chosen(sam.predict(box=BOX, multimask_output=False), sam.predictor, boxes_xyxy=BOX[None])


def test_several_clicks_a_box_and_a_mask_give_the_predictors_answer(several: SamPredictor) -> None:
    labels = np.array([1, 0, 1])
    found = several.predict(CLICKS, labels, multimask_output=False)
    assert_is_chosen(found, several.predictor, points_xy=CLICKS, labels=labels)
    found = several.predict(CLICKS[1:2], np.array([0]), BOX, multimask_output=False)
    assert_is_chosen(found, several.predictor, points_xy=CLICKS[1:2], labels=[0], boxes_xyxy=BOX[None])
    last = several.predict(CLICKS[:1], np.array([1]), multimask_output=False)[2]
    height, width = low_size(several.predictor.image)  # type: ignore[arg-type]
    assert (height, width) == (154, 256)
    masks = last[:, :height, :width]
    found = several.predict(CLICKS, labels, mask_input=last, multimask_output=False)
    assert_is_chosen(found, several.predictor, points_xy=CLICKS, labels=labels, last_masks=masks)
    found = several.predict(box=BOX, mask_input=last, multimask_output=False)
    assert_is_chosen(found, several.predictor, boxes_xyxy=BOX[None], last_masks=masks)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("labels", [[1], [1, 0], [1, 1, 0]])
def test_three_masks_are_levels_from_part_to_whole_with_the_best_among_them(
    model: str, labels: list[int], image: np.ndarray
) -> None:
    sam = new_predictor(model, image)
    points, of = CLICKS[: len(labels)], np.array(labels)
    masks, scores, logits = sam.predict(points, of)
    assert masks.shape == (3, HEIGHT, WIDTH)
    assert masks.dtype == bool
    assert scores.shape == (3,)
    assert logits.shape == (3, 256, 256)
    assert logits.dtype == np.float32
    areas = masks.sum(axis=(1, 2))
    assert (np.diff(areas) >= 0).all()
    best = sam.predict(points, of, multimask_output=False)[0][0]
    assert any(np.array_equal(best, mask) for mask in masks)
    if labels == [1]:
        np.testing.assert_array_equal(masks[scores.argmax()], best)
        every = sam.predictor.predict(points).masks[0]
        assert all(any(np.array_equal(mask, level) for level in every) for mask in masks)


def test_answers_of_single_clicks_compete_where_a_model_takes_one(one_click: SamPredictor) -> None:
    labels = np.array([1, 1, 0])
    answer = one_click.predictor.predict(CLICKS[:2])
    masks, predicted = answer.masks.reshape(-1, HEIGHT, WIDTH), answer.iou_predictions.reshape(-1)
    right = np.array([[mask[int(y), int(x)] == label for (x, y), label in zip(CLICKS, labels)] for mask in masks])  # noqa: B905
    expected = max(range(len(masks)), key=lambda place: (right[place].sum(), predicted[place]))
    found, scores, _ = one_click.predict(CLICKS, labels, multimask_output=False)
    np.testing.assert_array_equal(found[0], masks[expected])
    assert scores[0] == pytest.approx(predicted[expected], abs=1e-6)


def test_a_box_with_clicks_is_answered_by_the_boxs_masks(one_click: SamPredictor) -> None:
    found, _, _ = one_click.predict(CLICKS[:2], np.array([0, 1]), BOX, multimask_output=False)
    every = one_click.predictor.predict(boxes_xyxy=BOX[None]).masks[0]
    right = [int(not mask[10, 20]) + int(mask[40, 60]) for mask in every]
    [place] = [place for place, mask in enumerate(every) if np.array_equal(mask, found[0])][:1]
    assert right[place] == max(right)


def test_mask_input_prefers_masks_like_it(one_click: SamPredictor) -> None:
    """A model that sees no masks still answers with the level that is most like the one given."""
    every = one_click.predictor.predict(CLICKS[:1]).masks[0]
    masks, _, logits = one_click.predict(CLICKS[:1], np.array([1]))
    for mask, last in zip(masks, logits, strict=True):
        found, _, _ = one_click.predict(CLICKS[:1], np.array([1]), mask_input=last[None], multimask_output=False)
        assert any(np.array_equal(found[0], level) for level in every)
        assert mask_iou(found[0], mask) >= max(mask_iou(level, mask) for level in every) * 0.8


def test_logits_are_of_the_square_and_say_the_same_as_the_masks(several: SamPredictor) -> None:
    masks, _, low = several.predict(CLICKS[:1], np.array([1]))
    soft, _, _ = several.predict(CLICKS[:1], np.array([1]), return_logits=True)
    assert soft.dtype == np.float32
    np.testing.assert_array_equal(soft > 0, masks)
    height, width = low_size(several.predictor.image)  # type: ignore[arg-type]
    assert (low[:, height:] == PADDING_LOGIT).all()
    assert (low[:, :, width:] == PADDING_LOGIT).all()
    back = torch.nn.functional.interpolate(
        torch.from_numpy(low[:, None, :height, :width]), (HEIGHT, WIDTH), mode="bilinear"
    )[:, 0].numpy()
    assert ((back > 0) != masks).mean() < 0.02


def test_prompts_of_predict_torch_are_those_of_predict(several: SamPredictor, one_click: SamPredictor) -> None:
    boxes = np.stack([BOX, BOX + np.array([20, 2, 30, 3])])
    for sam in (several, one_click):
        given = sam.transform.apply_boxes_torch(torch.from_numpy(boxes), (HEIGHT, WIDTH))
        masks, scores, low = sam.predict_torch(None, None, given, multimask_output=False)
        assert masks.shape == (2, 1, HEIGHT, WIDTH)
        assert low.shape == (2, 1, 256, 256)
        for place, box in enumerate(boxes):
            one = sam.predict(box=box, multimask_output=False)
            assert (masks[place].numpy() != one[0]).mean() < 1e-3
            np.testing.assert_allclose(scores[place].numpy(), one[1], atol=1e-4)
        points = sam.transform.apply_coords_torch(torch.from_numpy(CLICKS[:2])[None], (HEIGHT, WIDTH))
        labels = torch.tensor([[1, 0]])
        clicked = sam.predict_torch(points, labels, mask_input=low[:1])
        expected = sam.predict(CLICKS[:2], np.array([1, 0]), mask_input=low[0].numpy())
        np.testing.assert_allclose(clicked[1][0].numpy(), expected[1], atol=1e-3)


def test_the_square_is_sams() -> None:
    transform = ResizeLongestSide(1024)
    assert transform.get_preprocess_shape(1200, 1800, 1024) == (683, 1024)
    np.testing.assert_allclose(transform.apply_coords(np.array([[900.0, 600]]), (1200, 1800)), [[512, 341.5]])
    assert transform.apply_image(np.zeros((30, 60, 3), np.uint8)).shape == (512, 1024, 3)
    np.testing.assert_allclose(transform.back(np.array([[512, 341.5]]), (1200, 1800)), [[900, 600]])


def test_bgr_is_turned(image: np.ndarray) -> None:
    one, other = SamPredictor(MODELS["one click"]), SamPredictor(MODELS["one click"])
    one.set_image(image)
    other.set_image(np.ascontiguousarray(image[..., ::-1]), image_format="BGR")
    torch.testing.assert_close(one.get_image_embedding(), other.get_image_embedding())
    with pytest.raises(ValueError, match="image_format is RGB or BGR, not 'RGBA'"):
        one.set_image(image, "RGBA")


def test_an_image_is_set_and_reset(image: np.ndarray) -> None:
    sam = SamPredictor(MODELS["one click"])
    assert not sam.is_image_set
    for question in (sam.predict, sam.get_image_embedding):
        with pytest.raises(ValueError, match="no image yet: call set_image"):
            question()
    sam.set_image(image)
    assert sam.is_image_set
    assert sam.original_size == (HEIGHT, WIDTH)
    sam.reset_image()
    assert not sam.is_image_set


ONE = np.array([1])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({}, r"a prompt needs a positive click \(point_labels 1\) or a box"),
        ({"point_coords": CLICKS[:1]}, "point_coords and point_labels belong together"),
        ({"point_coords": CLICKS[:1], "point_labels": np.array([0])}, "a prompt needs a positive click"),
        ({"point_coords": CLICKS, "point_labels": ONE}, "labels of shape"),
        ({"point_coords": CLICKS[:1], "point_labels": np.array([3])}, "labels are 1 .on the object."),
        ({"point_coords": np.array([[20, 10], [99, 3]]), "point_labels": np.array([1, 0])}, r"\(99, 3\) is outside"),
        ({"point_coords": np.array([[np.nan, 3]]), "point_labels": ONE}, r"point_coords: \(nan, 3\) is outside"),
        ({"box": np.array([5, 5, 5, 9])}, "has no area"),
        ({"box": np.array([5, 5, np.nan, 9])}, "box: .* are not all numbers"),
        ({"box": np.stack([BOX, BOX]), "point_coords": CLICKS[:1], "point_labels": ONE}, "2 boxes for 1 prompts"),
        ({"box": BOX, "mask_input": np.zeros((1, 48, 80), np.float32)}, r"mask_input: .* not float32 of \[1, 48, 80\]"),
        ({"box": BOX, "mask_input": np.zeros((1, 256, 256), bool)}, "mask_input: .* not bool"),
        ({"mask_input": np.zeros((1, 256, 256), np.float32)}, "a prompt needs a positive click"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(
    model: str, arguments: dict[str, Any], fault: str, one_click: SamPredictor, several: SamPredictor
) -> None:
    with pytest.raises(ValueError, match=fault):
        {"one click": one_click, "several": several}[model].predict(**arguments)


def test_three_masks_differ_where_there_are_so_many() -> None:
    masks = np.zeros((5, 10, 10), bool)
    for place, rows in enumerate((8, 8, 2, 5, 1)):
        masks[place, :rows] = True
    assert three_of(np.array([0, 1, 2, 3, 4]), masks).tolist() == [2, 3, 0]
    assert three_of(np.array([0, 1]), masks).tolist() == [0, 1]
    assert three_of(np.array([1, 0, 2]), masks[:3]).tolist() == [2, 1, 0]
    assert three_of(np.arange(3), np.zeros((3, 4, 4), bool)).tolist() == [0, 1, 2]


def test_clicks_count_for_more_than_predictions() -> None:
    masks = np.ones((3, 4, 4), bool)
    predicted = np.array([0.9, 0.2, 0.3])
    assert in_order(PromptStyle(), predicted, masks, None, np.array([1, 2, 2])).tolist() == [2, 1, 0]
    likeness = np.array([0.1, 1.0, 0.5])
    assert in_order(PromptStyle(), predicted, masks, None, np.zeros(3, int), likeness).tolist() == [1, 2, 0]


def test_the_generator_gives_the_automatic_masks_as_dictionaries(image: np.ndarray) -> None:
    predictor = Predictor(MODELS["one click"], ImageSize(64, 128))
    settings = AutomaticMaskSettings(
        points_per_side=4, points_per_batch=64, min_iou=-10, min_stability=0, max_overlap=1, min_region_area=0
    )
    expected = AutomaticMasks(predictor, settings).of_image(image)
    assert len(expected) > 1
    found = SamAutomaticMaskGenerator(predictor, **EVERYTHING).generate(image)  # type: ignore[arg-type]
    assert len(found) == len(expected)
    for place, (one, mask) in enumerate(zip(found, expected.masks(), strict=True)):
        assert sorted(one) == sorted(
            ("segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box")
        )
        np.testing.assert_array_equal(one["segmentation"], mask)
        assert one["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        assert one["bbox"] == [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
        assert one["predicted_iou"] == expected.iou_predictions[place]
        assert one["stability_score"] == expected.stability_scores[place]
        assert one["point_coords"] == [expected.points_xy[place].tolist()]
        assert one["crop_box"] == [0, 0, WIDTH, HEIGHT]


def test_run_lengths_are_cocos(image: np.ndarray) -> None:
    model = MODELS["one click"]
    binary, numbers, text = (
        SamAutomaticMaskGenerator(model, output_mode=mode, **EVERYTHING).generate(image)  # type: ignore[arg-type]
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    assert binary
    for mask, runs, string in zip(binary, numbers, text, strict=True):
        assert runs["segmentation"]["size"] == string["segmentation"]["size"] == [HEIGHT, WIDTH]
        assert sum(runs["segmentation"]["counts"]) == HEIGHT * WIDTH
        assert rle.encode_counts(np.array(runs["segmentation"]["counts"])).decode() == string["segmentation"]["counts"]
        decoded = rle.decode(string["segmentation"]["counts"].encode(), HEIGHT, WIDTH)
        np.testing.assert_array_equal(decoded, mask["segmentation"])


def test_a_grid_of_ones_own_is_clicked(image: np.ndarray) -> None:
    model, grid = MODELS["one click"], np.array([[0.25, 0.5], [0.75, 0.5]])
    options = EVERYTHING | {"points_per_side": None}
    found = SamAutomaticMaskGenerator(model, point_grids=[grid], **options).generate(image)  # type: ignore[arg-type]
    assert {tuple(one["point_coords"][0]) for one in found} == {(20.0, 24.0), (60.0, 24.0)}


def test_names_of_a_vocabulary_are_kept(image: np.ndarray) -> None:
    predictor = Predictor(MODELS["one click"], ImageSize(64, 128))
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    [first, *_] = SamAutomaticMaskGenerator(predictor, **EVERYTHING).generate(image)  # type: ignore[arg-type]
    assert first["object_name"] in ("car", "dog")
    assert 0 < first["object_score"] < 1
    assert first["part_name"] == "wheel"


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"crop_n_layers": 1}, "crop_n_layers 1: only whole images are looked at"),
        ({"points_per_side": None}, "give points_per_side or point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "give points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [np.ones((1, 2))]}, "point_grids: an array of n x 2 fractions"),
        ({"points_per_side": None, "point_grids": [np.zeros((1, 2))] * 2}, "point_grids: one array"),
        ({"output_mode": "png"}, "output_mode is one of .* not 'png'"),
        ({"stability_score_thresh": 2.0}, "min_stability"),
    ],
)
def test_what_the_generator_does_not_do_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        SamAutomaticMaskGenerator(MODELS["one click"], **options)


def test_the_registry_reads_checkpoints_and_says_what_is_none(tmp_path: Path) -> None:
    MODELS["several"].save(tmp_path / "mine")
    for name in ("default", "vit_h", "debug"):
        loaded = sam_model_registry[name](checkpoint=str(tmp_path / "mine"))
        assert loaded.settings.further_clicks
    assert sam_model_registry["debug"]().settings == PRESETS["debug"]
    (tmp_path / "sam_vit_h_4b8939.pth").write_bytes(b"SAM")
    with pytest.raises(ValueError, match=r"sam_vit_h_4b8939.pth is a file; this model's checkpoints are folders"):
        sam_model_registry["vit_h"](checkpoint=str(tmp_path / "sam_vit_h_4b8939.pth"))
    with pytest.raises(ValueError, match="checkpoint: name a checkpoint folder"):
        sam_model_registry["vit_b"]()
