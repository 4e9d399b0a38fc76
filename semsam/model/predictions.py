"""What the model says of its queries, one `Predictions` per decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

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


def split_queries(predictions: Predictions, sizes: Sequence[int]) -> list[Predictions]:
    """The predictions of each run of neighbouring queries.

    By `split`, whose gradient is one concatenation; that of a slice would be all queries again, filled with zeros.
    """
    by_field = zip(
        predictions.mask_embeddings.split(sizes, dim=1),
        [predictions.mask_features] * len(sizes),
        predictions.boxes_cxcywh.split(sizes, dim=1),
        predictions.iou_predictions.split(sizes, dim=1),
        predictions.object_logits.split(sizes, dim=1),
        predictions.part_logits.split(sizes, dim=1),
        strict=True,
    )
    return [Predictions(*values) for values in by_field]


def first_of_groups(predictions: Predictions, size: int, kept: int) -> Predictions:
    """The predictions of the first `kept` queries of each group of `size` neighbours."""
    of_queries = [one.name for one in fields(Predictions) if one.name != "mask_features"]
    by_group = {name: getattr(predictions, name).unflatten(1, (-1, size)) for name in of_queries}
    return replace(predictions, **{name: values[:, :, :kept].flatten(1, 2) for name, values in by_group.items()})


def join_queries(parts: Sequence[Predictions]) -> Predictions:
    """Predictions for the same images one after the other, as those of one set of queries."""
    if len(parts) == 1:
        return parts[0]
    of_queries = [one.name for one in fields(Predictions) if one.name != "mask_features"]
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in of_queries})


@dataclass(frozen=True)
class ModelOutput:
    """What one forward pass gives; the lists have one entry per decoder layer, and the last is the result."""

    prompts: list[Predictions]
    generic: list[Predictions]
    # The two-stage output: what the encoder's tokens that became generic queries predicted.
    proposals: Predictions
    # Of denoising queries, in training; empty without them.
    denoising: list[Predictions] = field(default_factory=list)
