"""What the model says of its queries, one `Predictions` per decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """Predictions for `q` queries of `b` images.  For prompts q = n * k, prompt-major: query = prompt * k + level.

    Full mask maps are made only where asked (`mask_logits`): pixel and mask embeddings are kept instead.
    """

    mask_embeddings: Float[Tensor, "b q c"]
    mask_features: Float[Tensor, "b c h w"]  # The pixel embeddings, at 1/4 of the padded image.
    boxes_cxcywh: Float[Tensor, "b q 4"]  # Relative to the padded image.
    iou_predictions: Float[Tensor, "b q"]  # Raw numbers, no sigmoid (the released model's convention).
    object_logits: Float[Tensor, "b q x"]  # Before the sigmoid, for the x object names given to the forward pass.
    part_logits: Float[Tensor, "b q y"]

    def mask_logits(self) -> Float[Tensor, "b q h w"]:
        """The masks before the sigmoid, at 1/4 of the padded image."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_embeddings, self.mask_features)


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass gives; the lists have one entry per decoder layer, and the last is the result."""

    prompts: list[Predictions]
    generic: list[Predictions]
    # The two-stage output: what the encoder's tokens that became generic queries predicted.
    proposals: Predictions
