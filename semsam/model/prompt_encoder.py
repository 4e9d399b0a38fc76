"""A prompt becomes `num_levels` queries: one for each granularity, all starting from the prompt's box."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class PromptEncoder(nn.Module):
    """The content of prompt queries; where they look is given by their boxes alone.

    A click has kind 0 and a box kind 1.  Released weights fit this: their inference gives clicks row 0, and row 1,
    which their training gave to clicks drawn as small boxes, is the best they have for boxes.
    """

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.levels = nn.Embedding(num_levels, dim)
        self.kinds = nn.Embedding(2, dim)
        # Row 1 is never read, here or in the release; it is there so that released checkpoints fit.
        self.prompt = nn.Embedding(2, dim)

    def forward(self, is_box: Bool[Tensor, "b n"]) -> Float[Tensor, "b q c"]:
        """The queries' content, prompt by prompt and level by level."""
        levels = self.levels(torch.arange(self.num_levels, device=is_box.device))
        prompt = self.prompt(torch.zeros(1, dtype=torch.long, device=is_box.device))
        return (self.kinds(is_box.long())[:, :, None] + levels + prompt).flatten(1, 2)
