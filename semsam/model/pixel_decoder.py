"""Deformable pixel decoder: fuses the backbone's maps over scales and makes the per-pixel mask features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from semsam.model.presets import ModelSettings
from semsam.ops.deformable_attention import DeformableAttention

NUM_SCALES = 4  # 1/8, 1/16, 1/32 of the image from the backbone, 1/64 made here.
TEMPERATURE = 10_000.0


class PixelDecoder(nn.Module):
    """Backbone maps to four fused maps (1/8 first) and mask features at 1/4."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.hidden_dim
        res2, *others = settings.backbone.channels()
        self.input_projections = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(c, channels, 1), _group_norm(channels)) for c in others]
            + [nn.Sequential(nn.Conv2d(others[-1], channels, 3, stride=2, padding=1), _group_norm(channels))]
        )
        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection[0].weight)  # type: ignore[index]
            nn.init.zeros_(projection[0].bias)  # type: ignore[index]
        self.level_embed = nn.Parameter(torch.randn(NUM_SCALES, channels))
        self.layers = nn.ModuleList(EncoderLayer(settings) for _ in range(settings.encoder_layers))
        self.lateral = nn.Conv2d(res2, channels, 1, bias=False)
        self.lateral_norm = _group_norm(channels)
        self.output = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.output_norm = _group_norm(channels)
        self.mask_features = nn.Conv2d(channels, channels, 1)
        self.activation_checkpointing = settings.activation_checkpointing

    def forward(
        self, features: Sequence[Float[Tensor, "b c y x"]]
    ) -> tuple[Float[Tensor, "b c h w"], list[Float[Tensor, "b c y x"]]]:
        """res2..res5 to (mask features at 1/4, fused maps at 1/8, 1/16, 1/32, 1/64)."""
        res2, *others = features
        maps = [project(x) for project, x in zip(self.input_projections, [*others, others[-1]], strict=True)]
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        tokens = flatten_maps(maps)
        # The embedding itself is indexed in this module's own forward, as a sharded parameter must be.
        positions = torch.cat(
            [
                (sine_positions(h, w, tokens.shape[2], tokens.device) + self.level_embed[level]).to(tokens.dtype)
                for level, (h, w) in enumerate(sizes)
            ]
        )[None]
        references = torch.cat([_pixel_centres(h, w, tokens.device) for h, w in sizes])[None]
        references = references.expand(len(tokens), -1, -1)
        for layer in self.layers:
            if self.activation_checkpointing and self.training:
                tokens = checkpoint(layer, tokens, positions, references, sizes, use_reentrant=False)
            else:
                tokens = layer(tokens, positions, references, sizes)
        fused = unflatten_maps(tokens, sizes)
        x = self.lateral_norm(self.lateral(res2))
        x = x + F.interpolate(fused[0], x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.output_norm(self.output(x)).relu()
        return self.mask_features(x), fused


class EncoderLayer(nn.Module):
    """Deformable self-attention over all scales and a feed-forward network, post-norm."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        channels = settings.hidden_dim
        self.self_attention = DeformableAttention(channels, settings.num_heads, NUM_SCALES, settings.num_points)
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, settings.feedforward_dim)
        self.linear2 = nn.Linear(settings.feedforward_dim, channels)
        self.norm2 = nn.LayerNorm(channels)

    def forward(
        self,
        tokens: Float[Tensor, "b s c"],
        positions: Float[Tensor, "1 s c"],
        references: Float[Tensor, "b s 2"],
        sizes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "b s c"]:
        tokens = self.norm1(tokens + self.self_attention(tokens + positions, references, tokens, sizes))
        return self.norm2(tokens + self.linear2(self.linear1(tokens).relu()))


def flatten_maps(maps: Sequence[Float[Tensor, "b c y x"]]) -> Float[Tensor, "b s c"]:
    """All maps as one row of tokens, each row by row."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


def unflatten_maps(tokens: Float[Tensor, "b s c"], sizes: Sequence[tuple[int, int]]) -> list[Float[Tensor, "b c y x"]]:
    """The inverse of `flatten_maps`."""
    parts = tokens.split([h * w for h, w in sizes], dim=1)
    return [part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> Float[Tensor, "s c"]:
    """DETR's sine embedding of a map's pixels: half the channels for y, then half for x; index from 1 up to 2 pi."""
    scale, eps = 2 * math.pi, 1e-6
    y = torch.arange(1, height + 1, device=device) / (height + eps) * scale
    x = torch.arange(1, width + 1, device=device) / (width + eps) * scale
    half = channels // 2
    of_y = sine_embedding(y, half)[:, None].expand(height, width, half)
    of_x = sine_embedding(x, half)[None].expand(height, width, half)
    return torch.cat([of_y, of_x], dim=-1).flatten(0, 1)


def sine_embedding(values: Float[Tensor, "*s"], channels: int) -> Float[Tensor, "*s c"]:
    """Sine and cosine of a number, interleaved, at frequencies from 1 down to 1 / 10,000."""
    frequency = torch.arange(channels // 2, dtype=torch.float32, device=values.device) * 2 / channels
    angles = values.float()[..., None] / TEMPERATURE**frequency
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _pixel_centres(height: int, width: int, device: torch.device) -> Float[Tensor, "s 2"]:
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)
