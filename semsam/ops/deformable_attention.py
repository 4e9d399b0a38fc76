"""Multi-scale deformable attention (arXiv 2010.04159): each query samples a few points of every feature level.

Two forms give the same numbers: `sample_by_grid`, the plain one that every device runs, and `sample_by_index`, which
reads the four neighbours of each point straight from the token table and is several times faster on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Attention of queries to sampled points around their reference, over `levels` feature maps."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._initialise()

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q r"],
        tokens: Float[Tensor, "b s c"],
        sizes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "b q c"]:
        """What the queries find among the tokens of all levels (row by row, levels in the order of `sizes`).

        References are centres (r = 2) or boxes cxcywh (r = 4), relative to the padded image.  Around a centre offsets
        count in pixels of each level; in a box they count in halves of its sides, divided by the number of points.
        """
        b, q, _ = queries.shape
        offsets = self.sampling_offsets(queries).view(b, q, self.heads, self.levels, self.points, 2).float()
        weights = self.attention_weights(queries).view(b, q, self.heads, self.levels * self.points).float()
        weights = weights.softmax(-1).view(b, q, self.heads, self.levels, self.points)
        references = references.float()[:, :, None, None, None]
        if references.shape[-1] == 2:
            scale = torch.tensor([(w, h) for h, w in sizes], dtype=torch.float32, device=queries.device)
            locations = references + offsets / scale[:, None]
        else:
            locations = references[..., :2] + offsets / self.points * references[..., 2:] * 0.5
        values = self.value_proj(tokens)
        sample = sample_by_grid if values.is_cuda else sample_by_index
        return self.output_proj(sample(values, sizes, locations, weights).to(queries.dtype))

    def _initialise(self) -> None:
        """Heads look into different directions, points at growing distance; weights start equal (the paper's A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
        direction = direction / direction.abs().max(-1, keepdim=True).values
        steps = torch.arange(1, self.points + 1)
        bias = direction[:, None, None] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).reshape(-1))
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)


def sample_by_grid(
    values: Float[Tensor, "b s c"],
    sizes: Sequence[tuple[int, int]],
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
) -> Float[Tensor, "b q c"]:
    """Weighted bilinear samples, by `grid_sample` level by level: the definition, and the fallback of every device.

    Locations are relative to the map, pixel centres at (i + 1/2) / size; outside of it values are zero.
    """
    b, q, heads = locations.shape[:3]
    sampled = []
    levels = values.split([h * w for h, w in sizes], dim=1)
    for level, ((height, width), tokens) in enumerate(zip(sizes, levels, strict=True)):
        maps = tokens.transpose(1, 2).reshape(b * heads, -1, height, width)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(maps, grid.to(maps.dtype), padding_mode="zeros", align_corners=False))
    stacked = torch.stack(sampled, dim=-2).flatten(-2)  # (b m) c q (l p)
    weighted = weights.transpose(1, 2).reshape(b * heads, 1, q, -1).to(stacked.dtype)
    return (stacked * weighted).sum(-1).view(b, -1, q).transpose(1, 2)


def sample_by_index(
    values: Float[Tensor, "b s c"],
    sizes: Sequence[tuple[int, int]],
    locations: Float[Tensor, "b q m l p 2"],
    weights: Float[Tensor, "b q m l p"],
) -> Float[Tensor, "b q c"]:
    """The same as `sample_by_grid`: one `embedding_bag` over the four neighbours of all points of a query and head."""
    b, q, heads, levels, points, _ = locations.shape
    num_tokens, channels = values.shape[1], values.shape[2]
    device = values.device
    size = torch.tensor([(w, h) for h, w in sizes], dtype=locations.dtype, device=device)
    starts = torch.tensor([0, *(h * w for h, w in sizes)][:-1], device=device).cumsum(0)
    pixel = locations * size[:, None] - 0.5
    corner = pixel.floor()
    part = pixel - corner
    x, y = corner.long().unbind(-1)
    columns, rows = size.long()[:, None].unbind(-1)
    head = torch.arange(heads, device=device)[:, None, None]
    row_of_head = (torch.arange(b, device=device) * num_tokens)[:, None, None, None, None]
    indices, shares = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            inside = (x + dx >= 0) & (x + dx < columns) & (y + dy >= 0) & (y + dy < rows)
            token = starts[:, None] + (y + dy) * columns + x + dx
            indices.append(torch.where(inside, (row_of_head + token) * heads + head, 0))
            share = (part[..., 0] if dx else 1 - part[..., 0]) * (part[..., 1] if dy else 1 - part[..., 1])
            shares.append(torch.where(inside, share, 0) * weights)
    bags = b * q * heads
    found = F.embedding_bag(
        torch.stack(indices, -1).view(bags, levels * points * 4),
        values.reshape(b * num_tokens * heads, channels // heads),
        per_sample_weights=torch.stack(shares, -1).view(bags, levels * points * 4).to(values.dtype),
        mode="sum",
    )
    return found.view(b, q, channels)
