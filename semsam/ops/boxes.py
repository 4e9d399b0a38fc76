"""Box formats and overlaps.  The format is always in the name; pixel edges or fractions of the image, as given."""

from __future__ import annotations

import torch
from jaxtyping import Float
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


def _area(low: Float[Tensor, "*m 2"], high: Float[Tensor, "*m 2"]) -> Float[Tensor, "*m"]:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height
