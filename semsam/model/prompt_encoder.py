"""A prompt becomes `num_levels` queries: one for each granularity, all starting from the prompt's box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

NEGATIVE, POSITIVE, LAST_MASK = range(3)  # Kinds of further tokens.


@dataclass(frozen=True)
class FurtherTokens:
    """What `n` prompts say beyond their first click or box: at most `t` clicks each, and the last answer's mask.

    Boxes are relative to the padded image: that of a click, as small as a first click's, or of a mask.  A mask's
    content is the mean of the mask features over it; a click has none, which is zeros.
    """

    kinds: Int64[Tensor, "b n t"]
    boxes_cxcywh: Float[Tensor, "b n t 4"]
    contents: Float[Tensor, "b n t c"]
    valid: Bool[Tensor, "b n t"]  # False for padding, which nobody sees.

    @staticmethod
    def of_clicks(
        boxes_cxcywh: Float[Tensor, "b n t 4"],
        is_positive: Bool[Tensor, "b n t"],
        valid: Bool[Tensor, "b n t"],
        dim: int,
    ) -> FurtherTokens:
        """Clicks, for a model of so many channels."""
        nothing = boxes_cxcywh.new_zeros((*valid.shape, dim))
        return FurtherTokens(torch.where(is_positive, POSITIVE, NEGATIVE), boxes_cxcywh, nothing, valid)

    @staticmethod
    def of_masks(
        masks: Float[Tensor, "b n y x"],
        boxes_cxcywh: Float[Tensor, "b n 4"],
        mask_features: Float[Tensor, "b c y x"],
        valid: Bool[Tensor, "b n"],
    ) -> FurtherTokens:
        """One mask for each prompt, from 0 to 1, where the mask features are; an empty one counts as not valid."""
        area = masks.sum(dim=(2, 3))
        mean = torch.einsum("bnyx,bcyx->bnc", masks, mask_features) / area.clamp(min=1e-6)[..., None]
        kinds = torch.full(valid.shape, LAST_MASK, device=valid.device)
        found = (kinds, boxes_cxcywh, mean, valid & (area > 0))
        return FurtherTokens(*(values[:, :, None] for values in found))

    def take(self, prompts: slice) -> FurtherTokens:
        """Those of some of the prompts."""
        return FurtherTokens(*(values[:, prompts] for values in vars(self).values()))

    def joined(self, other: FurtherTokens) -> FurtherTokens:
        """These and then the other's, prompt by prompt."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return FurtherTokens(*(torch.cat(pair, dim=2) for pair in pairs))


class PromptEncoder(nn.Module):
    """The content of prompt queries; where they look is given by their boxes alone.

    A click has kind 0 and a box kind 1.  Released weights fit this: their inference gives clicks row 0, and row 1,
    which their training gave to clicks drawn as small boxes, is the best they have for boxes.
    """

    def __init__(self, dim: int, num_levels: int, with_further: bool = False) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.levels = nn.Embedding(num_levels, dim)
        self.kinds = nn.Embedding(2, dim)
        # Row 1 is never read, here or in the release; it is there so that released checkpoints fit.
        self.prompt = nn.Embedding(2, dim)
        self.further_kinds = nn.Embedding(3, dim) if with_further else None
        self.last_mask = nn.Linear(dim, dim, bias=False) if with_further else None

    def forward(self, is_box: Bool[Tensor, "b n"]) -> Float[Tensor, "b q c"]:
        """The queries' content, prompt by prompt and level by level."""
        levels = self.levels(torch.arange(self.num_levels, device=is_box.device))
        prompt = self.prompt(torch.zeros(1, dtype=torch.long, device=is_box.device))
        return (self.kinds(is_box.long())[:, :, None] + levels + prompt).flatten(1, 2)

    def further(self, tokens: FurtherTokens) -> Float[Tensor, "b n t c"]:
        """The content of further tokens.  Raises `ValueError` for a model that was made without them."""
        if self.further_kinds is None or self.last_mask is None:
            raise ValueError(
                "this model takes one click or one box for a prompt (model.overrides.further_clicks: false)"
            )
        return self.further_kinds(tokens.kinds) + self.last_mask(tokens.contents)
