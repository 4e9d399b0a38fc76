"""Mask decoder: queries of prompts and generic queries look at the fused maps, layer by layer, refining their boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from semsam.model.heads import Heads, Mlp, inverse_sigmoid
from semsam.model.pixel_decoder import NUM_SCALES, flatten_maps, sine_embedding
from semsam.model.predictions import ModelOutput, Predictions
from semsam.model.presets import ModelSettings
from semsam.ops.deformable_attention import DeformableAttention

PROPOSAL_SIDE = 0.05  # Of the finest map's initial boxes; it doubles from map to map (Mask DINO).


class MaskDecoder(nn.Module):
    """Layers and heads shared by both branches.

    The levels of one prompt attend to each other and to nothing else, so that prompts do not influence each other;
    generic queries attend to generic queries.  Everything else is done for all queries at once.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.hidden_dim
        self.num_levels = settings.num_levels
        self.num_generic_queries = settings.num_generic_queries
        self.layers = nn.ModuleList(DecoderLayer(settings) for _ in range(settings.decoder_layers))
        self.position_mlp = Mlp(2 * channels, channels, channels)
        self.proposal_projection = nn.Linear(channels, channels)
        self.proposal_norm = nn.LayerNorm(channels)
        self.heads = Heads(settings)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b c y x"]],
        mask_features: Float[Tensor, "b c h w"],
        content: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q 4"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        with_generic: bool,
        every_layer: bool,
        joint_attention: bool = False,
    ) -> ModelOutput:
        """Predictions for the prompts' queries (`content`, at `references`) and, if asked, for generic ones.

        `every_layer` false gives the last layer alone.  `joint_attention` lets all prompts attend to each other, as
        the released automatic mask generator does.
        """
        # The published decoder numbers its scales from the coarsest.
        reversed_maps = list(reversed(maps))
        tokens = flatten_maps(reversed_maps)
        sizes = [(m.shape[2], m.shape[3]) for m in reversed_maps]
        num_prompts = content.shape[1]
        generic, generic_references, proposals = self._proposals(
            maps, mask_features, object_names, part_names, with_generic
        )
        queries = torch.cat([content.to(tokens.dtype), generic], dim=1)
        references = torch.cat([references, generic_references], dim=1)
        group = num_prompts if joint_attention else self.num_levels
        outputs: tuple[list[Predictions], list[Predictions]] = ([], [])
        for number, layer in enumerate(self.layers):
            positions = self.position_mlp(box_embedding(references, queries.shape[2]).to(queries.dtype))
            queries = layer(queries, positions, references, tokens, sizes, num_prompts, group)
            last = number == len(self.layers) - 1
            if every_layer or last:
                for branch, part in zip(outputs, (slice(num_prompts), slice(num_prompts, None)), strict=True):
                    branch.append(
                        self.heads(queries[:, part], references[:, part], mask_features, object_names, part_names)
                    )
            if not last:
                references = self.heads.refine(queries, references)
        return ModelOutput(prompts=outputs[0], generic=outputs[1], proposals=proposals)

    def _proposals(
        self,
        maps: Sequence[Float[Tensor, "b c y x"]],
        mask_features: Float[Tensor, "b c h w"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        with_generic: bool,
    ) -> tuple[Float[Tensor, "b g c"], Float[Tensor, "b g 4"], Predictions]:
        """The tokens that look most like a named object become generic queries (two-stage, arXiv 2206.02777).

        They pass on content and box without gradient; their own predictions learn through `ModelOutput.proposals`.
        Without names all tokens score alike.
        """
        tokens = flatten_maps(maps)
        boxes = torch.cat(
            [_token_boxes(m.shape[2], m.shape[3], scale, m.device) for scale, m in enumerate(maps)]
        ).expand(len(tokens), -1, -1)
        count = min(self.num_generic_queries, tokens.shape[1]) if with_generic else 0
        projected = self.proposal_norm(self.proposal_projection(tokens))
        with torch.no_grad():
            scores = self.heads.object_scores(projected, object_names)
        chosen = scores.topk(count, dim=1).indices[:, :, None]
        own = projected.gather(1, chosen.expand(-1, -1, projected.shape[2]))
        proposals = self.heads(own, boxes.gather(1, chosen.expand(-1, -1, 4)), mask_features, object_names, part_names)
        content = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[2])).detach()
        return content, proposals.boxes_cxcywh.detach(), proposals


class DecoderLayer(nn.Module):
    """Self-attention within groups, deformable cross-attention around the query's box, feed-forward; post-norm."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.hidden_dim
        self.self_attention = SelfAttention(channels, settings.num_heads)
        self.self_norm = nn.LayerNorm(channels)
        self.cross_attention = DeformableAttention(channels, settings.num_heads, NUM_SCALES, settings.num_points)
        self.cross_norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, settings.feedforward_dim)
        self.linear2 = nn.Linear(settings.feedforward_dim, channels)
        self.feedforward_norm = nn.LayerNorm(channels)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        positions: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q 4"],
        tokens: Float[Tensor, "b s c"],
        sizes: Sequence[tuple[int, int]],
        num_prompts: int,
        group: int,
    ) -> Float[Tensor, "b q c"]:
        """The first `num_prompts` queries attend to each other in groups of `group`, the others in one group."""
        attended = self.self_attention(queries, positions, num_prompts, group)
        queries = self.self_norm(queries + attended)
        queries = self.cross_norm(queries + self.cross_attention(queries + positions, references, tokens, sizes))
        return self.feedforward_norm(queries + self.linear2(self.linear1(queries).relu()))


class SelfAttention(nn.Module):
    """Multi-head attention in which positions are added to queries and keys, not to values."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key = nn.Linear(channels, 2 * channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "b q c"], positions: Float[Tensor, "b q c"], num_prompts: int, group: int
    ) -> Float[Tensor, "b q c"]:
        q, k = self.query_key(x + positions).chunk(2, dim=-1)
        v = self.value(x)
        split = (num_prompts, x.shape[1] - num_prompts)
        parts = zip(q.split(split, dim=1), k.split(split, dim=1), v.split(split, dim=1), (group, split[1]), strict=True)
        return self.output(torch.cat([self._attend(*part) for part in parts], dim=1))

    def _attend(
        self, q: Float[Tensor, "b q c"], k: Float[Tensor, "b q c"], v: Float[Tensor, "b q c"], group: int
    ) -> Float[Tensor, "b q c"]:
        b, queries, c = q.shape
        if queries == 0:
            return v
        q, k, v = (t.reshape(-1, group, self.heads, c // self.heads).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, queries, c)


def box_embedding(boxes_cxcywh: Float[Tensor, "b q 4"], channels: int) -> Float[Tensor, "b q 2*c"]:
    """Sine embedding of a box in the order y, x, w, h, half the model's channels each."""
    ordered = boxes_cxcywh[..., [1, 0, 2, 3]] * (2 * math.pi)
    return sine_embedding(ordered, channels // 2).flatten(-2)


def _token_boxes(height: int, width: int, scale: int, device: torch.device) -> Float[Tensor, "s 4"]:
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    side = torch.full((height, width), PROPOSAL_SIDE * 2**scale, device=device)
    centre_x, centre_y = x[None].expand(height, width), y[:, None].expand(height, width)
    boxes = torch.stack([centre_x, centre_y, side, side], dim=-1).flatten(0, 1)
    return inverse_sigmoid(boxes).sigmoid()
