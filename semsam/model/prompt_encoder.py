"""Clicks and boxes to queries: one per granularity level, all starting at the prompt's place."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semsam.model.heads import inverse_sigmoid

CLICK, BOX = 0, 1  # Rows of `kinds`.  The released model is used with row 0 for clicks.


class PromptEncoder(nn.Module):
    """A prompt becomes `num_levels` queries; its box (a click is a small one) becomes their reference."""

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.any_prompt = nn.Embedding(1, channels)
        self.kinds = nn.Embedding(2, channels)
        self.levels = nn.Embedding(num_levels, channels)

    def forward(
        self, boxes_cxcywh: Float[Tensor, "b n 4"], is_box: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b q c"], Float[Tensor, "b q 4"]]:
        """Content and references of the queries, prompt by prompt; boxes relative to the padded image."""
        device = boxes_cxcywh.device
        kind = self.any_prompt(torch.zeros(1, dtype=torch.long, device=device)) + self.kinds(is_box.long())
        content = kind[:, :, None] + self.levels(torch.arange(self.num_levels, device=device))
        references = inverse_sigmoid(boxes_cxcywh.float()).sigmoid()
        return content.flatten(1, 2), references.repeat_interleave(self.num_levels, dim=1)
