"""What is read off a query: its mask embedding, its box, its IoU, and its names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semsam.model.positions import inverse_sigmoid
from semsam.model.predictions import Predictions
from semsam.ops.row_blocks import by_row_blocks

MAX_SCALE = 100.0  # Of a cosine in a logit, as CLIP bounds it.
INITIAL_SCALE = 10.0
INITIAL_BIAS = -4.0  # A name is present with probability 0.02 before anything is learnt.
INITIAL_IOU = 0.5


class MLP(nn.Module):
    """Linear layers with ReLU between them; `widths` are those of the input, each hidden layer and the output."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def last(self) -> nn.Linear:
        """The output layer, for those who initialise it in their own way."""
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, values: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        """The output layer's values, without an activation."""
        return by_row_blocks(self._apply_layers, values)

    def _apply_layers(self, values: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        for layer in self.layers[:-1]:
            values = F.relu(layer(values))
        return self.layers[-1](values)


class NameClassifier(nn.Module):
    """Compares queries with names in the text encoder's space."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, text_dim, bias=False)
        # One-element vectors, not scalars: ZeRO cannot shard a tensor without dimensions.
        self.log_scale = nn.Parameter(torch.full((1,), math.log(INITIAL_SCALE)))
        self.bias = nn.Parameter(torch.full((1,), INITIAL_BIAS))
        nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def forward(self, queries: Float[Tensor, "b q c"], names: Float[Tensor, "x d"]) -> Float[Tensor, "b q x"]:
        """Scaled cosines with the names (of unit length), before a sigmoid.  No names give no columns."""
        embeddings = F.normalize(self.projection(queries).float(), dim=-1)
        with torch.autocast(queries.device.type, enabled=False):
            # One product and no pass over all logits afterwards: there may be a thousand names for each query.
            scale = self.log_scale.float().exp().clamp(max=MAX_SCALE)
            return F.linear(embeddings * scale, names.float(), self.bias.float().expand(len(names)))


class PredictionHeads(nn.Module):
    """The heads that all decoder layers and all kinds of queries share."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.mask = MLP((dim, dim, dim, dim))
        self.box = MLP((dim, dim, dim, 4))
        self.iou = MLP((dim, dim, dim, 1))
        self.objects = NameClassifier(dim, text_dim)
        self.parts = NameClassifier(dim, text_dim)
        # The first layer's boxes are the references themselves.
        nn.init.zeros_(self.box.last.weight)
        nn.init.constant_(self.iou.last.bias, INITIAL_IOU)
        # The product with the pixel embeddings sums `dim` terms: without this no sigmoid would start near one half.
        nn.init.xavier_uniform_(self.mask.last.weight, gain=dim**-0.5)

    def refine(
        self, queries: Float[Tensor, "b q c"], references_cxcywh: Float[Tensor, "b q 4"]
    ) -> Float[Tensor, "b q 4"]:
        """The references moved by what the queries say, in float32."""
        return (self.box(queries).float() + inverse_sigmoid(references_cxcywh)).sigmoid()

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        references_cxcywh: Float[Tensor, "b q 4"],
        mask_features: Float[Tensor, "b c h w"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
    ) -> Predictions:
        """All predictions of normalised queries."""
        return Predictions(
            mask_embeddings=self.mask(queries),
            mask_features=mask_features,
            boxes_cxcywh=self.refine(queries, references_cxcywh),
            iou_predictions=self.iou(queries)[..., 0],
            object_logits=self.objects(queries, object_names),
            part_logits=self.parts(queries, part_names),
        )
