"""Masks, scores and names for clicks and boxes on one image: the way to use a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from semsam.config import settings
from semsam.model.predictions import Predictions
from semsam.model.semantic_sam import SemanticSam

CLICK_RADIUS = 3  # A click is the box of +-3 network-input pixels around it, as in training.


@settings
class ImageSize:
    """How an image is resized for the network; the paper evaluates at 800 and at most 1333."""

    short_side: int = 800
    max_long_side: int = 1333

    def __post_init__(self) -> None:
        if not 32 <= self.short_side <= self.max_long_side:
            raise ValueError(f"short_side {self.short_side} must be from 32 to max_long_side {self.max_long_side}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image, at least one pixel each."""
        scale = min(self.short_side / min(height, width), self.max_long_side / max(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)


@dataclass(frozen=True)
class Answer:
    """What the model says to `n` prompts on an image of `h` x `w` pixels, at `k` levels each."""

    masks: Bool[np.ndarray, "n k h w"]
    boxes_xyxy: Float[np.ndarray, "n k 4"]  # In the image's pixels.
    iou_predictions: Float[np.ndarray, "n k"]
    object_scores: Float[np.ndarray, "n k x"]  # Sigmoid, one per object name of the vocabulary.
    part_scores: Float[np.ndarray, "n k y"]


class Predictor:
    """Answers prompts on one image at a time; the image is encoded once.

    Prompts do not influence each other.  `object_names` and `part_names` are any strings; `set_vocabulary` replaces
    them without encoding the image again.
    """

    def __init__(self, model: SemanticSam, image_size: ImageSize | None = None) -> None:
        self.model = model.eval()
        self.image_size = image_size or ImageSize()
        self.device = next(model.parameters()).device
        self.set_vocabulary((), ())

    @torch.no_grad()
    def set_vocabulary(self, object_names: Sequence[str], part_names: Sequence[str]) -> None:
        """Use these names from now on."""
        self.object_names, self.part_names = tuple(object_names), tuple(part_names)
        self._objects = self.model.encode_names(self.object_names)
        self._parts = self.model.encode_names(self.part_names)

    @torch.no_grad()
    def set_image(self, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Encode an RGB image; later calls refer to it.  Raises `ValueError` for another shape or type."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}")
        self._size = image.shape[:2]
        self._input = self.image_size.resized(*self._size)
        resized = cv2.resize(image, self._input[::-1], interpolation=_interpolation(self._size, self._input))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].to(self.device)
        self._features = self.model.encode_image(pixels)

    @torch.no_grad()
    def predict(
        self,
        points_xy: Float[np.ndarray, "n 2"] | None = None,
        boxes_xyxy: Float[np.ndarray, "m 4"] | None = None,
    ) -> Answer:
        """Masks for the clicks, then for the boxes, in the image's pixels.  No prompt at all gives empty arrays."""
        prompts, is_box = self._prompts(points_xy, boxes_xyxy)
        last = self.model.decode(
            self._features,
            prompts[None],
            is_box[None],
            self._objects,
            self._parts,
            with_generic=False,
            every_layer=False,
        ).prompts[-1]
        count, levels = len(prompts), self.model.settings.num_levels
        height, width = self._size
        padded_height, padded_width = self._features.padded_size
        # Boxes are relative to the padded input; the image fills only `_input` of it.
        x_scale = padded_width / self._input[1] * width
        y_scale = padded_height / self._input[0] * height
        scale = last.boxes_cxcywh.new_tensor([x_scale, y_scale, x_scale, y_scale])
        cxcywh = last.boxes_cxcywh[0].float() * scale
        boxes = torch.cat([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], dim=1)
        return Answer(
            masks=self._masks(last).reshape(count, levels, height, width),
            boxes_xyxy=boxes.reshape(count, levels, 4).cpu().numpy(),
            iou_predictions=last.iou_predictions[0].float().reshape(count, levels).cpu().numpy(),
            object_scores=_scores(last.object_logits, count, levels),
            part_scores=_scores(last.part_logits, count, levels),
        )

    def _prompts(
        self, points_xy: Float[np.ndarray, "n 2"] | None, boxes_xyxy: Float[np.ndarray, "m 4"] | None
    ) -> tuple[Float[Tensor, "p 4"], Bool[Tensor, " p"]]:
        height, width = self._size
        points = np.zeros((0, 2)) if points_xy is None else np.asarray(points_xy, np.float64).reshape(-1, 2)
        boxes = np.zeros((0, 4)) if boxes_xyxy is None else np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        outside = (points < 0) | (points >= [width, height])
        if outside.any():
            first = points[outside.any(axis=1)][0]
            raise ValueError(f"click ({first[0]:g}, {first[1]:g}) is outside the image of {width} x {height} pixels")
        to_input = np.array([self._input[1] / width, self._input[0] / height])
        points, boxes = points * to_input, boxes * np.tile(to_input, 2)
        sides = np.full((len(points), 2), 2.0 * CLICK_RADIUS)
        centres = np.concatenate([points, (boxes[:, :2] + boxes[:, 2:]) / 2])
        sides = np.concatenate([sides, boxes[:, 2:] - boxes[:, :2]])
        if (sides <= 0).any():
            raise ValueError(f"box {boxes[(sides[len(points) :] <= 0).any(axis=1)][0].tolist()} has no area")
        padded_height, padded_width = self._features.padded_size
        relative = np.concatenate([centres, sides], axis=1) / np.tile([padded_width, padded_height], 2)
        is_box = np.arange(len(centres)) >= len(points)
        return torch.from_numpy(relative).float().to(self.device), torch.from_numpy(is_box).to(self.device)

    def _masks(self, predictions: Predictions) -> Bool[np.ndarray, "q h w"]:
        logits = predictions.mask_logits().float()
        if logits.shape[1] == 0:
            return np.zeros((0, *self._size), bool)
        # Two steps, as in the published model: to the padded input, cropped, then to the image.
        logits = F.interpolate(logits, self._features.padded_size, mode="bilinear", align_corners=False)
        logits = logits[:, :, : self._input[0], : self._input[1]]
        if self._input != self._size:
            logits = F.interpolate(logits, self._size, mode="bilinear", align_corners=False)
        return (logits[0] > 0).cpu().numpy()


def _scores(logits: Float[Tensor, "1 q x"], count: int, levels: int) -> Float[np.ndarray, "n k x"]:
    return logits[0].float().sigmoid().reshape(count, levels, logits.shape[2]).cpu().numpy()


def _interpolation(old: tuple[int, int], new: tuple[int, int]) -> int:
    return cv2.INTER_AREA if new[0] < old[0] else cv2.INTER_LINEAR
