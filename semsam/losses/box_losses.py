"""Losses and matching costs of boxes."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from semsam.ops.boxes import cxcywh_to_xyxy, generalized_iou, pairwise_generalized_iou


def box_losses(
    boxes_cxcywh: Float[Tensor, "*l m 4"], targets_cxcywh: Float[Tensor, "*l m 4"]
) -> tuple[Float[Tensor, "*l m"], Float[Tensor, "*l m"]]:
    """L1 distance (summed over the four coordinates) and one minus generalized IoU of each pair."""
    l1 = (boxes_cxcywh - targets_cxcywh).abs().sum(-1)
    return l1, 1 - generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(targets_cxcywh))


def box_costs(
    boxes_cxcywh: Float[Tensor, "b q 4"], targets_cxcywh: Float[Tensor, "b m 4"]
) -> tuple[Float[Tensor, "b q m"], Float[Tensor, "b q m"]]:
    """L1 distance and *negated* generalized IoU of every prediction and every target."""
    l1 = (boxes_cxcywh[:, :, None] - targets_cxcywh[:, None]).abs().sum(-1)
    return l1, -pairwise_generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(targets_cxcywh))
