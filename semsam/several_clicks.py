"""A prompt of several clicks, positive and negative, or of the last answer's mask: from what a user gives to tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int64

from semsam.encoded_image import EncodedImage, Prompts, prompt_boxes
from semsam.model.prompt_encoder import FurtherTokens

_STRIDE = 4  # Of the mask features.

# A label for each click: 1 on the object, 0 beside it, -1 for what fills a row up.
Labels = np.ndarray | Sequence[int] | Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class SeveralClicks:
    """The clicks of `n` prompts, at most `t` of each, in the image's pixels."""

    xy: Float[np.ndarray, "n t 2"]
    labels: Int64[np.ndarray, "n t"]  # 1, 0, or -1 for none.

    @staticmethod
    def of(points_xy: Prompts, labels: Labels) -> SeveralClicks:
        """Clicks with their labels, of several prompts or of a single one.  Raises `ValueError` for anything else."""
        xy, of = np.asarray([] if points_xy is None else points_xy, np.float64), np.asarray(labels)
        if of.ndim < 2 and xy.ndim < 3:
            xy, of = xy.reshape(1, -1, 2) if not xy.size else xy[None], of[None]
        if xy.shape != (*of.shape, 2):
            raise ValueError(f"labels of shape {list(of.shape)} do not fit clicks of shape {list(xy.shape)}")
        if not np.isin(of, (-1, 0, 1)).all():
            raise ValueError(f"labels are 1 (on the object), 0 (beside it) or -1 (no click), not {of.ravel().tolist()}")
        return SeveralClicks(xy, of.astype(np.int64))

    def first(self) -> tuple[Float[np.ndarray, "n 2"], SeveralClicks]:
        """The first positive click of each prompt, and all others.  Raises `ValueError` for a prompt without one."""
        is_positive = self.labels == 1
        if not is_positive.any(axis=1).all():
            raise ValueError("a prompt needs a positive click (label 1) or a box")
        rows, place = np.arange(len(self.labels)), is_positive.argmax(axis=1)
        labels = self.labels.copy()
        labels[rows, place] = -1
        return self.xy[rows, place], SeveralClicks(self.xy, labels)

    def tokens(self, image: EncodedImage, click_side: float | None) -> FurtherTokens:
        """The clicks as further tokens of their prompts.  Raises `ValueError` for one outside of the image."""
        given = self.labels >= 0
        features = image.features.mask_features
        boxes = torch.full((*given.shape, 4), 0.5)
        boxes[torch.from_numpy(given)] = prompt_boxes(self.xy[given], None, image, click_side)[0]
        is_positive = torch.from_numpy(self.labels == 1)
        device, dim = features.device, features.shape[1]
        given_there = torch.from_numpy(given)[None].to(device)
        return FurtherTokens.of_clicks(boxes[None].to(device), is_positive[None].to(device), given_there, dim)

    def agreement(self, masks: Bool[np.ndarray, "n k h w"]) -> Int64[np.ndarray, "n k"]:
        """How many clicks of its prompt each mask is right about."""
        prompt, place = np.nonzero(self.labels >= 0)
        x, y = self.xy[prompt, place].astype(np.int64).T
        is_right = masks[prompt, :, y, x] == (self.labels[prompt, place] == 1)[:, None]
        found = np.zeros(masks.shape[:2], np.int64)
        np.add.at(found, prompt, is_right)
        return found


def mask_tokens(masks: np.ndarray, image: EncodedImage) -> FurtherTokens:
    """The last answers' masks as tokens, one for each prompt.

    A mask covers the image, at any size: true or false, or numbers before the sigmoid.  An empty one says nothing.
    Raises `ValueError` for anything that is no stack of masks.
    """
    if masks.ndim != 3 or not (masks.dtype == bool or np.issubdtype(masks.dtype, np.floating)) or 0 in masks.shape[1:]:
        raise ValueError(f"last_masks are n x h x w, bool or float, not {masks.dtype} of {list(masks.shape)}")
    inside = masks if masks.dtype == bool else masks > 0
    soft = torch.from_numpy(masks.astype(np.float32))
    soft = soft if masks.dtype == bool else soft.sigmoid()
    features = image.features.mask_features
    height, width = (max(round(side / _STRIDE), 1) for side in image.input_size)
    own = F.interpolate(soft[None], (height, width), mode="area")
    padded = F.pad(own, (0, features.shape[3] - width, 0, features.shape[2] - height))
    boxes = torch.from_numpy(_relative_boxes(inside, image))
    valid = torch.from_numpy(inside.any(axis=(1, 2)))
    return FurtherTokens.of_masks(
        padded.to(features.device), boxes[None].to(features.device), features.float(), valid[None].to(features.device)
    )


def _relative_boxes(masks: Bool[np.ndarray, "n y x"], image: EncodedImage) -> Float32[np.ndarray, "n 4"]:
    """Tight boxes (centre and size) relative to the padded input; the whole for an empty mask."""
    size = np.array(image.input_size) / np.array(image.features.padded_size)
    ends = []
    for axis, share in ((1, size[1]), (0, size[0])):  # Columns of pixels, then rows.
        found = np.asarray(masks.any(axis=2 - axis))
        count = found.shape[1]
        low, high = found.argmax(axis=1), count - found[:, ::-1].argmax(axis=1)
        ends.append((low / count * share, high / count * share))
    (left, right), (top, bottom) = ends
    boxes = np.stack([left + right, top + bottom, 2 * (right - left), 2 * (bottom - top)], axis=1) / 2
    return boxes.astype(np.float32)
