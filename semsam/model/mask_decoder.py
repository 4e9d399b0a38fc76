"""Queries look at the image and at each other, layer by layer, and move their boxes as they go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semsam.model.generic_queries import NoisedContent, NoisedRegions, ProposalHead, Proposals
from semsam.model.heads import MLP, PredictionHeads
from semsam.model.pixel_decoder import NUM_MAPS, ImageFeatures
from semsam.model.positions import EPSILON, box_embedding
from semsam.model.predictions import ModelOutput, Predictions, first_of_groups, split_queries
from semsam.ops.deformable_attention import DeformableAttention
from semsam.ops.map_shapes import Shapes


@dataclass(frozen=True)
class Groups:
    """`count` groups of `size` neighbouring queries; queries of different groups never see each other.

    A single group may be divided further, in each image in its own way: `seen` says which queries see which.  The last
    `num_tokens` of each group are there to be seen: their boxes stay, and nothing is predicted for them; those that are
    not `valid` nobody sees.
    """

    count: int
    size: int
    seen: Bool[Tensor, "b size size"] | None = None
    num_tokens: int = 0
    valid: Bool[Tensor, "b count t"] | None = None

    def mask(self) -> Bool[Tensor, "g 1 q size"] | None:
        """Which queries see which, group by group; None: all of their group."""
        if self.seen is not None:
            return self.seen[:, None]
        if self.valid is None:
            return None
        return F.pad(self.valid, (self.size - self.num_tokens, 0), value=True).flatten(0, 1)[:, None, None]


class GroupedSelfAttention(nn.Module):
    """Multi-head attention inside groups of queries, without a mask over all pairs of them."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Parameters and not a module: queries and keys go through other rows than values.
        self.projection = nn.Parameter(torch.empty(3 * dim, dim))
        self.projection_bias = nn.Parameter(torch.zeros(3 * dim))
        self.output = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.projection)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, queries: Float[Tensor, "b q c"], positions: Float[Tensor, "b q c"], groups: Sequence[Groups]
    ) -> Float[Tensor, "b q c"]:
        """What queries learn from their groups; positions take part in whom they look at, not in what they see."""
        dim = queries.shape[-1]
        weight, bias = self.projection, self.projection_bias
        q, k = F.linear(queries + positions, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        v = F.linear(queries, weight[2 * dim :], bias[2 * dim :])
        sizes = [group.count * group.size for group in groups]
        parts = zip(groups, q.split(sizes, 1), k.split(sizes, 1), v.split(sizes, 1), strict=True)
        attended = [self._attend(own_q, own_k, own_v, group) for group, own_q, own_k, own_v in parts]
        return self.output(torch.cat(attended, dim=1))

    def _attend(
        self, q: Float[Tensor, "b r c"], k: Float[Tensor, "b r c"], v: Float[Tensor, "b r c"], group: Groups
    ) -> Float[Tensor, "b r c"]:
        if group.count * group.size == 0:
            return v
        shape = (-1, group.size, self.num_heads, q.shape[-1] // self.num_heads)
        q, k, v = (x.reshape(shape).transpose(1, 2) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask()).transpose(1, 2)
        return attended.reshape(-1, group.count * group.size, attended.shape[2] * attended.shape[3])


class DecoderLayer(nn.Module):
    """Queries look at their group, then at the image around their boxes, then think for themselves."""

    def __init__(self, dim: int, feedforward_dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.self_attention = GroupedSelfAttention(dim, num_heads)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_attention = DeformableAttention(dim, num_heads, NUM_MAPS, num_points)
        self.cross_norm = nn.LayerNorm(dim)
        self.feedforward = MLP((dim, feedforward_dim, dim))
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        positions: Float[Tensor, "b q c"],
        references_cxcywh: Float[Tensor, "b q 4"],
        tokens: Float[Tensor, "b s c"],
        shapes: Shapes,
        groups: Sequence[Groups],
    ) -> Float[Tensor, "b q c"]:
        """The queries after this layer."""
        queries = self.self_norm(queries + self.self_attention(queries, positions, groups))
        seen = self.cross_attention(queries + positions, references_cxcywh, tokens, shapes)
        queries = self.cross_norm(queries + seen)
        return self.feedforward_norm(queries + self.feedforward(queries))


class MaskDecoder(nn.Module):
    """The decoder layers, the heads that read them, and the generic queries."""

    def __init__(
        self,
        dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
        num_generic_queries: int,
        text_dim: int,
        with_denoising: bool = False,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.proposals = ProposalHead(dim, num_generic_queries)
        self.box_positions = MLP((2 * dim, dim, dim))
        self.layers = nn.ModuleList(
            DecoderLayer(dim, feedforward_dim, num_heads, num_points) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.heads = PredictionHeads(dim, text_dim)
        self.noised_content = NoisedContent(dim, text_dim) if with_denoising else None

    def forward(
        self,
        features: ImageFeatures,
        prompts: Float[Tensor, "b p c"],
        prompt_boxes_cxcywh: Float[Tensor, "b p 4"],
        prompt_groups: Groups,
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        with_generic: bool,
        every_layer: bool,
        noised: NoisedRegions | None = None,
    ) -> ModelOutput:
        """Predictions for `p` prompt queries and for the generic queries, of every layer or of the last alone.

        Tokens among the prompt queries are left out of their predictions.
        Without generic queries their predictions have q = 0; `noised` regions are for denoising queries to restore.
        """
        names = (object_names, part_names)
        # The coarsest map first, as the release has it.
        coarse_first = features.levels[::-1]
        shapes = [(level.shape[2], level.shape[3]) for level in coarse_first]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in coarse_first], dim=1)
        references = prompt_boxes_cxcywh.float().clamp(EPSILON, 1 - EPSILON)
        queries, boxes, groups = [prompts], [references], [prompt_groups]
        if with_generic:
            proposals = self.proposals(features)
            queries.append(proposals.content.detach())
            boxes.append(proposals.boxes_cxcywh.detach())
            groups.append(Groups(1, proposals.content.shape[1]))
        if noised is not None:
            assert self.noised_content is not None
            queries.append(self.noised_content(noised.names, torch.cat(names)))
            boxes.append(noised.boxes_cxcywh.float().clamp(EPSILON, 1 - EPSILON))
            seen = noised.groups[:, :, None] == noised.groups[:, None]
            groups.append(Groups(1, noised.names.shape[1], seen))
        predictions = self._decode(
            torch.cat(queries, dim=1), torch.cat(boxes, dim=1), tokens, shapes, groups, features, names, every_layer
        )
        num_generic = proposals.content.shape[1] if with_generic else 0
        sizes = (prompts.shape[1], num_generic, 0 if noised is None else noised.names.shape[1])
        parts = [split_queries(layer, sizes) for layer in predictions]
        of_prompts, of_generic, of_noised = (list(layers) for layers in zip(*parts, strict=True))
        if prompt_groups.num_tokens:
            kept = prompt_groups.size - prompt_groups.num_tokens
            of_prompts = [first_of_groups(layer, prompt_groups.size, kept) for layer in of_prompts]
        read = self._read(proposals, features, names) if with_generic else of_generic[-1]
        return ModelOutput(of_prompts, of_generic, read, denoising=[] if noised is None else of_noised)

    def _decode(
        self,
        queries: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q 4"],
        tokens: Float[Tensor, "b s c"],
        shapes: Shapes,
        groups: Sequence[Groups],
        features: ImageFeatures,
        names: tuple[Tensor, Tensor],
        every_layer: bool,
    ) -> list[Predictions]:
        predictions = []
        stays = _stays(groups, references.device)
        for index, layer in enumerate(self.layers):
            fixed = references.detach()
            positions = self.box_positions(box_embedding(fixed, self.dim // 2).to(queries.dtype))
            queries = layer(queries, positions, fixed, tokens, shapes, groups)
            is_last = index == len(self.layers) - 1
            if every_layer or is_last:
                # Normalised twice, and boxes predicted from references with their gradients: as released.
                read = self.heads(self.norm(self.norm(queries)), references, features.mask_features, *names)
                predictions.append(read)
            if not is_last:
                references = self.heads.refine(queries, fixed)
                if stays is not None:
                    references = torch.where(stays[:, None], fixed, references)
        return predictions

    def _read(self, proposals: Proposals, features: ImageFeatures, names: tuple[Tensor, Tensor]) -> Predictions:
        """What the chosen tokens predict.  Their objectness is a part of every name's logit, and learns from them."""
        boxes = proposals.boxes_cxcywh
        read = self.heads(self.norm(proposals.content), boxes.detach(), features.mask_features, *names)
        objectness = proposals.objectness[..., None]
        return dataclasses.replace(
            read,
            boxes_cxcywh=boxes,
            object_logits=read.object_logits + objectness,
            part_logits=read.part_logits + objectness,
        )


def _stays(groups: Sequence[Groups], device: torch.device) -> Bool[Tensor, " q"] | None:
    """Which queries keep their boxes; None: none of them."""
    if not any(group.num_tokens for group in groups):
        return None
    place = [torch.arange(group.size, device=device).repeat(group.count) for group in groups]
    return torch.cat([at >= group.size - group.num_tokens for at, group in zip(place, groups, strict=True)])
