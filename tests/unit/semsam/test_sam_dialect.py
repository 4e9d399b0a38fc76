"""What users of SAM write, as its README, `supervision` and a Label Studio backend document it, on this model.

The programs are ours, after those documents; what they import as `segment_anything` is `semsam.sam_api`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
import torch

from semsam.data import rle
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import Predictor

HEIGHT, WIDTH = 60, 90


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("checkpoint")
    SemanticSam.untrained("debug", 2).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def segment_anything(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "segment_anything", importlib.import_module("semsam.sam_api"))
    return


def ours(checkpoint: str, image: np.ndarray) -> Predictor:
    found = Predictor.load(checkpoint, device="cpu")
    found.set_image(image)
    return found


def test_the_readmes_predictor(checkpoint: str, image: np.ndarray) -> None:
    from segment_anything import SamPredictor, sam_model_registry

    sam = sam_model_registry["vit_h"](checkpoint=checkpoint)
    sam.to(device="cpu")
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(
        point_coords=np.array([[45, 30]]), point_labels=np.array([1]), multimask_output=True
    )
    assert (masks.shape, scores.shape, logits.shape) == ((3, HEIGHT, WIDTH), (3,), (3, 256, 256))
    expected = ours(checkpoint, image).predict([[45, 30]])
    np.testing.assert_array_equal(masks[np.argmax(scores)], expected.masks[0, expected.chosen[0]])
    masks, scores, _ = predictor.predict(
        point_coords=np.array([[45, 30], [60, 10]]),
        point_labels=np.array([1, 0]),
        mask_input=logits[np.argmax(scores), :, :][None, :, :],
        multimask_output=False,
    )
    assert masks.shape == (1, HEIGHT, WIDTH)
    boxes = torch.tensor([[10, 10, 50, 40], [30, 5, 80, 55]], device=predictor.device)
    transformed = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
    masks, scores, _ = predictor.predict_torch(
        point_coords=None, point_labels=None, boxes=transformed, multimask_output=False
    )
    assert masks.shape == (2, 1, HEIGHT, WIDTH)
    answer = ours(checkpoint, image).predict(boxes_xyxy=boxes.tolist())
    chosen = answer.iou_predictions[[0, 1], answer.chosen]
    np.testing.assert_allclose(scores[:, 0].numpy(), chosen, atol=1e-4)


GENERATOR: dict[str, Any] = {"points_per_side": 3, "pred_iou_thresh": -10, "stability_score_thresh": 0}


@pytest.mark.parametrize("mode", ["binary_mask", "coco_rle"])
def test_supervisions_detections_of_a_generator(checkpoint: str, image: np.ndarray, mode: str) -> None:
    from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

    sam = sam_model_registry["vit_b"](checkpoint=checkpoint).to(device=torch.device("cpu"))
    result = SamAutomaticMaskGenerator(sam, output_mode=mode, **GENERATOR).generate(image)
    detections = sv.Detections.from_sam(sam_result=result)
    assert len(detections) == len(result) > 0
    largest = max(result, key=lambda one: one["area"])
    assert detections.mask[0].sum() == largest["area"]
    x, y, width, height = largest["bbox"]
    assert detections.xyxy[0].tolist() == [x, y, x + width, y + height]
    annotated = sv.MaskAnnotator(color_lookup=sv.ColorLookup.INDEX).annotate(image.copy(), detections)
    assert (annotated != image).any()


class LabelStudioBackend:
    """The way of a request to masks: key points and a rectangle in percent of the image, run lengths back."""

    def __init__(self, checkpoint: str) -> None:
        from segment_anything import SamPredictor, sam_model_registry

        self.predictor = SamPredictor(sam_model_registry["vit_h"](checkpoint=checkpoint))

    def predict(self, image: np.ndarray, context: dict[str, Any]) -> dict[str, Any]:
        self.predictor.set_image(image)
        points, labels, box = [], [], None
        for one in context["result"]:
            width, height, value = one["original_width"], one["original_height"], one["value"]
            x, y = value["x"] * width / 100, value["y"] * height / 100
            if one["type"] == "keypointlabels":
                points.append([int(x), int(y)])
                labels.append(int(one["is_positive"]))
            else:
                box = [int(x), int(y), int(x + value["width"] * width / 100), int(y + value["height"] * height / 100)]
        masks, probs, _ = self.predictor.predict(
            point_coords=np.array(points) if points else None,
            point_labels=np.array(labels) if labels else None,
            box=np.array(box) if box else None,
            multimask_output=False,
        )
        mask = masks[0, :, :].astype(np.uint8)
        return {"rle": rle.encode(mask.astype(bool)), "score": float(probs[0])}


def key_point(x: float, y: float, is_positive: bool) -> dict[str, Any]:
    value = {"x": x, "y": y, "width": 0.3, "keypointlabels": ["car"]}
    return {
        "type": "keypointlabels",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "value": value,
        "is_positive": is_positive,
    }


def test_a_label_studio_backend(checkpoint: str, image: np.ndarray, tmp_path: Path) -> None:
    backend = LabelStudioBackend(checkpoint)
    found = backend.predict(image, {"result": [key_point(50, 50, True)]})
    answer = ours(checkpoint, image).predict([[45, 30]])
    level = answer.chosen[0]
    np.testing.assert_array_equal(rle.decode(found["rle"], HEIGHT, WIDTH), answer.masks[0, level])
    assert found["score"] == pytest.approx(answer.iou_predictions[0, level], abs=1e-6)
    rectangle = key_point(10, 10, True) | {"type": "rectanglelabels"}
    rectangle["value"] = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["car"]}
    boxed = backend.predict(image, {"result": [rectangle]})
    answer = ours(checkpoint, image).predict(boxes_xyxy=[[9, 6, 54, 36]])
    np.testing.assert_array_equal(rle.decode(boxed["rle"], HEIGHT, WIDTH), answer.masks[0, answer.chosen[0]])
    several = backend.predict(image, {"result": [key_point(50, 50, True), key_point(90, 90, False)]})
    single = ours(checkpoint, image).predict([[45, 30]])
    mask = rle.decode(several["rle"], HEIGHT, WIDTH)
    assert any(np.array_equal(mask, level) for level in single.masks[0])
