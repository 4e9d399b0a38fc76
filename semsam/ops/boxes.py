"""Box formats and overlaps.  The format is always in the name; pixel edges or fractions of the image, as given."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

EPSILON = 1e-6  # Added to union and hull: two empty boxes have GIoU zero, not NaN.


def cxcywh_to_xyxy(boxes_cxcywh: Float[Tensor, "*m 4"]) -> Float[Tensor, "*m 4"]:
    """Corners of boxes given by centre and size."""
    centre, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Float[Tensor, "*m 4"]) -> Float[Tensor, "*m 4"]:
    """Centre and size of boxes given by their corners."""
    low, high = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def generalized_iou(a_xyxy: Float[Tensor, "*m 4"], b_xyxy: Float[Tensor, "*m 4"]) -> Float[Tensor, "*m"]:
    """Generalized IoU (arXiv 1902.09630) of each pair of boxes, in (-1, 1]; leading dimensions broadcast."""
    low_a, high_a = a_xyxy[..., :2], a_xyxy[..., 2:]
    low_b, high_b = b_xyxy[..., :2], b_xyxy[..., 2:]
    intersection = _area(torch.maximum(low_a, low_b), torch.minimum(high_a, high_b))
    union = _area(low_a, high_a) + _area(low_b, high_b) - intersection
    hull = _area(torch.minimum(low_a, low_b), torch.maximum(high_a, high_b))
    return intersection / (union + EPSILON) - (hull - union) / (hull + EPSILON)


def pairwise_generalized_iou(
    a_xyxy: Float[Tensor, "*b n 4"], b_xyxy: Float[Tensor, "*b m 4"]
) -> Float[Tensor, "*b n m"]:
    """Generalized IoU of every box of `a` with every box of `b`."""
    return generalized_iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :])


def non_maximum_suppression(
    boxes_xyxy: Float[np.ndarray, "m 4"],
    scores: Float[np.ndarray, " m"],
    max_iou: float,
    classes: Int[np.ndarray, " m"] | None = None,
) -> Int64[np.ndarray, " k"]:
    """The positions of the boxes that no better kept box overlaps by an IoU of more than `max_iou`, best first.

    Of equal scores the earlier box is the better one.  With `classes` only boxes of the same class suppress each other.
    On the host: which box goes next depends on all before, and a thousand steps of a device would wait for each other.
    """
    left = np.argsort(-scores, kind="stable")
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(min=0).prod(axis=1)
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = np.maximum(boxes_xyxy[best, :2], boxes_xyxy[left, :2])
        high = np.minimum(boxes_xyxy[best, 2:], boxes_xyxy[left, 2:])
        shared = (high - low).clip(min=0).prod(axis=1)
        suppressed = shared > max_iou * (areas[best] + areas[left] - shared)
        if classes is not None:
            suppressed &= classes[left] == classes[best]
        left = left[~suppressed]
    return np.array(kept, np.int64)


def _area(low: Float[Tensor, "*m 2"], high: Float[Tensor, "*m 2"]) -> Float[Tensor, "*m"]:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
