"""Sigmoid focal loss (arXiv 1708.02002) over the names that each sample speaks of, and its matching cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

ALPHA = 0.25  # Weight of a positive; a negative weighs 1 - ALPHA.
GAMMA = 2


@dataclass(frozen=True)
class ClassBlock:
    """The part of one image's logits that enters the loss: some queries of each layer, and a range of names."""

    image: int
    queries: Int64[Tensor, "l r"]
    names: slice  # Encloses all names the sample speaks of: a dataset's names are neighbours.
    positive: Int64[Tensor, " r"]  # The name of each query's target in the joint vocabulary; -1: none.
    counted: Bool[Tensor, "r names"]  # Pairs of a query and a name in that range that are taught.


def focal_losses(logits: Float[Tensor, "l b q x"], blocks: Sequence[ClassBlock]) -> Float[Tensor, " l"]:
    """The focal loss of each layer, summed over what the blocks count."""
    apply: Callable[..., Tensor] = _FocalLosses.apply
    return apply(logits, blocks)


class _FocalLosses(torch.autograd.Function):
    """Computes the gradient along with the loss: one pass over the few logits that count, one buffer for the rest."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, blocks: Sequence[ClassBlock]) -> Tensor:  # type: ignore[override]
        losses = logits.new_zeros(len(logits))
        gradient = torch.zeros_like(logits)
        layers = torch.arange(len(logits), device=logits.device)[:, None]
        for block in blocks:
            chosen = logits[:, block.image, :, block.names][layers, block.queries]
            names = torch.arange(block.names.start, block.names.stop, device=logits.device)
            positive = block.positive[:, None] == names
            # Where the truth is "no", the logit itself says how wrong the prediction is; where "yes", its negative.
            sign = torch.where(positive, -1.0, 1.0)
            weight = torch.where(positive, ALPHA, 1 - ALPHA) * block.counted
            wrong = chosen * sign
            probability, entropy = torch.sigmoid(wrong), F.softplus(wrong)
            focus = weight * probability.square()
            losses += (focus * entropy).sum((1, 2))
            slope = focus * (GAMMA * (1 - probability) * entropy + probability) * sign
            gradient[:, block.image, :, block.names][layers, block.queries] = slope
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_losses: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_losses[:, None, None, None], None


def class_costs(logits: Float[Tensor, "b q x"], names: Int64[Tensor, "b m"]) -> Float[Tensor, "b q m"]:
    """What it would cost to call query q by the name of region m, less what it costs not to; zero without a name."""
    if logits.shape[2] == 0:
        return logits.new_zeros((*logits.shape[:2], names.shape[1]))
    known = names >= 0
    at_name = logits.gather(2, names.clamp(min=0)[:, None].expand(-1, logits.shape[1], -1))
    probability = at_name.sigmoid()
    yes = ALPHA * (1 - probability).square() * F.softplus(-at_name)
    no = (1 - ALPHA) * probability.square() * F.softplus(at_name)
    return (yes - no) * known[:, None]
