"""What is read off a query: mask embedding, box, quality, and its place among object and part names."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from semsam.model.predictions import Predictions
from semsam.model.presets import ModelSettings


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Float[Tensor, "*s c"]) -> Float[Tensor, "*s d"]:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class NameHead(nn.Module):
    """Scaled cosine of queries with names, plus a bias: most names are absent, and the sigmoid starts there.

    Scale and bias as in SigLIP (arXiv 2303.15343), with shape [1]: sharded training refuses numbers without one.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(channels, embed_dim) * channels**-0.5)
        self.log_scale = nn.Parameter(torch.full((1,), 2.3))  # Scale 10.
        self.bias = nn.Parameter(torch.full((1,), -4.0))

    def forward(self, queries: Float[Tensor, "b q c"], names: Float[Tensor, "x d"]) -> Float[Tensor, "b q x"]:
        embedded = F.normalize((queries @ self.projection.to(queries.dtype)).float(), dim=-1)
        return embedded @ names.float().T * self.log_scale.exp().clamp(max=100.0) + self.bias


class Heads(nn.Module):
    """All heads, shared by the decoder's layers and by both branches."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.hidden_dim
        self.norm = nn.LayerNorm(channels)
        self.mask = Mlp(channels, channels, channels, channels)
        self.box = Mlp(channels, channels, channels, 4)
        self.iou = Mlp(channels, channels, channels, 1)
        self.objects = NameHead(channels, settings.text.embed_dim)
        self.parts = NameHead(channels, settings.text.embed_dim)
        # A query's box starts as its reference.
        nn.init.zeros_(self.box.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.box.layers[-1].bias)  # type: ignore[arg-type]

    def refine(self, queries: Float[Tensor, "b q c"], references: Float[Tensor, "b q 4"]) -> Float[Tensor, "b q 4"]:
        """The next layer's references, from the *un-normalised* queries, without gradient through the references."""
        return (self.box(queries).float() + inverse_sigmoid(references)).sigmoid().detach()

    def object_scores(self, queries: Float[Tensor, "b q c"], names: Float[Tensor, "x d"]) -> Float[Tensor, "b q"]:
        """How much each query looks like the object name that it looks like most; 0 without names."""
        if len(names) == 0:
            return queries.new_zeros(queries.shape[:2])
        return self.objects(self.norm(self.norm(queries)), names).amax(-1)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q 4"],
        mask_features: Float[Tensor, "b c h w"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
    ) -> Predictions:
        """Predictions of one layer's queries.  The published model normalises twice with the same weights; so do we."""
        queries = self.norm(self.norm(queries))
        return Predictions(
            mask_embeddings=self.mask(queries),
            mask_features=mask_features,
            boxes_cxcywh=(self.box(queries).float() + inverse_sigmoid(references)).sigmoid(),
            iou_predictions=self.iou(queries).float()[..., 0],
            object_logits=self.objects(queries, object_names),
            part_logits=self.parts(queries, part_names),
        )


def inverse_sigmoid(x: Float[Tensor, "*s"], eps: float = 1e-5) -> Float[Tensor, "*s"]:
    """The logit of x clamped to [0, 1], both x and 1 - x held above eps, as the published model computes it."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
