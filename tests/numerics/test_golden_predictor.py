"""The predictor against the published one: the released style gives its masks, scores and boxes, and so does our own
style for each click alone."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from semsam.model.presets import PRESETS
from semsam.model.released_weights import from_released
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings
from semsam.predictor import RELEASED, Answer, ImageSize, Predictor

TOLERANCE = 1e-4
HEIGHT, WIDTH = 221, 331
PADDED_XY = np.array([352, 224, 352, 224])


@pytest.fixture(scope="module")
def golden(reference_dir: Path) -> dict[str, np.ndarray]:
    folder = reference_dir / "golden_dog"
    return {**np.load(folder / "outputs.npz"), "image": np.load(folder / "input.npz")["image"]}


@pytest.fixture(scope="module")
def predictor(golden: dict[str, np.ndarray], reference_dir: Path) -> Predictor:
    spec = importlib.util.spec_from_file_location("deterministic_weights", reference_dir / "deterministic_weights.py")
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    settings = replace(PRESETS["swin_tiny"], text=TextSettings(kind="byte_ngrams"))
    model = SemanticSam(settings)
    index = next(buffer for name, buffer in model.named_buffers() if name.endswith("relative"))
    released = {}
    for key, shape, _ in json.loads((reference_dir / "released_keys_swin_t.json").read_text()):
        made = tools.gen_weight(key, shape)
        released[key] = index if made is None else torch.from_numpy(made)
    weights = from_released(released, settings).weights
    model.load_weights({**model.state_dict(), **weights}, "deterministic weights")
    predictor = Predictor(model, ImageSize(HEIGHT, WIDTH))  # The image is at the network's size already.
    predictor.set_image(np.ascontiguousarray(golden["image"].transpose(1, 2, 0)))
    return predictor


def answer(predictor: Predictor, golden: dict[str, np.ndarray], joint: bool) -> Answer:
    predictor.prompt_style = replace(RELEASED, joint_attention=joint)
    return predictor.predict(golden["points_xy_rel"] * [WIDTH, HEIGHT])


def check(found: Answer, boxes_cxcywh: np.ndarray, ious: np.ndarray) -> None:
    np.testing.assert_allclose(found.iou_predictions, ious.reshape(4, 6), atol=TOLERANCE)
    centre, size = np.split(boxes_cxcywh.reshape(4, 6, 4), 2, axis=2)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=2) * PADDED_XY
    boxes = boxes.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    np.testing.assert_allclose(found.boxes_xyxy / PADDED_XY, boxes / PADDED_XY, atol=TOLERANCE)


def test_the_released_style_gives_the_published_answer(predictor: Predictor, golden: dict[str, np.ndarray]) -> None:
    found = answer(predictor, golden, joint=True)
    check(found, golden["pred_boxes_all"][-1], golden["out.ious"])
    # A logit within rounding of zero may fall on either side.
    assert np.abs(found.masks.sum(axis=(2, 3)).ravel() - golden["out.mask_area"]).max() <= 2


def test_isolated_clicks_give_the_published_answers_to_each_alone(
    predictor: Predictor, golden: dict[str, np.ndarray]
) -> None:
    found = answer(predictor, golden, joint=False)
    check(found, golden["blockmask.pred_boxes"], golden["blockmask.pred_ious"])
    alone = np.concatenate([golden[f"alone{i}.pred_ious"] for i in range(4)])
    np.testing.assert_allclose(found.iou_predictions, alone.reshape(4, 6), atol=TOLERANCE)
