"""From the backbone's pyramid to pixel embeddings and to the four maps that queries look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semsam.model.heads import MLP
from semsam.model.positions import pixel_centres, pixel_embedding
from semsam.ops.deformable_attention import DeformableAttention
from semsam.ops.map_shapes import Shapes

NUM_MAPS = 4
# Of every group norm: 32 groups in the published sizes.  Two channels to a group, as 32 would leave a small model,
# have no gradient but rounding errors where a map has one pixel.
CHANNELS_PER_GROUP = 8


class ImageFeatures(NamedTuple):
    """What is computed once per image; any number of prompts can be decoded from it.

    A tuple, because DeepSpeed looks for a module's output tensors inside tuples and not inside dataclasses.
    """

    mask_features: Float[Tensor, "b c h w"]  # Pixel embeddings at 1/4 of the padded image.
    levels: tuple[Float[Tensor, "b c h w"], ...]  # At 1/8, 1/16, 1/32 and 1/64.
    padded_size: tuple[int, int]  # Height and width of the padded image, to which boxes are relative.


class EncoderLayer(nn.Module):
    """Every pixel looks at a few places on all four maps, then thinks for itself."""

    def __init__(self, dim: int, feedforward_dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, NUM_MAPS, num_points)
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward = MLP((dim, feedforward_dim, dim))
        self.feedforward_norm = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Float[Tensor, "b s c"],
        positions: Float[Tensor, "s c"],
        centres: Float[Tensor, "1 s 2"],
        shapes: Shapes,
    ) -> Float[Tensor, "b s c"]:
        """The tokens of all maps after this layer."""
        tokens = self.attention_norm(tokens + self.attention(tokens + positions, centres, tokens, shapes))
        return self.feedforward_norm(tokens + self.feedforward(tokens))


class NormedConv(nn.Module):
    """A convolution of odd kernel size that keeps the map's size (or halves it), then a group norm."""

    def __init__(self, dim_in: int, dim: int, kernel: int, stride: int = 1, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.GroupNorm(max(dim // CHANNELS_PER_GROUP, 1), dim)
        nn.init.xavier_uniform_(self.conv.weight)
        if bias:
            nn.init.zeros_(self.conv.get_parameter("bias"))

    def forward(self, maps: Float[Tensor, "b i h w"]) -> Float[Tensor, "b c h2 w2"]:
        """The normalised maps."""
        return self.norm(self.conv(maps))


class PixelDecoder(nn.Module):
    """A deformable encoder over the maps at 1/8 to 1/64, and a step back up to 1/4."""

    def __init__(
        self,
        backbone_dims: Sequence[int],
        dim: int,
        feedforward_dim: int,
        num_heads: int,
        num_points: int,
        num_layers: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.inputs = nn.ModuleList(NormedConv(backbone_dim, dim, 1, bias=True) for backbone_dim in backbone_dims[1:])
        self.inputs.append(NormedConv(backbone_dims[-1], dim, 3, stride=2, bias=True))
        self.map_embedding = nn.Parameter(torch.randn(NUM_MAPS, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, feedforward_dim, num_heads, num_points) for _ in range(num_layers)
        )
        self.lateral = NormedConv(backbone_dims[0], dim, 1)
        self.smooth = NormedConv(dim, dim, 3)
        self.mask_features = nn.Conv2d(dim, dim, 1)
        nn.init.xavier_uniform_(self.mask_features.weight)
        nn.init.zeros_(self.mask_features.get_parameter("bias"))

    def forward(self, pyramid: Sequence[Float[Tensor, "b c h w"]], padded_size: tuple[int, int]) -> ImageFeatures:
        """The features of images whose backbone maps (at 1/4 to 1/32) are `pyramid`."""
        maps = [project(level) for project, level in zip(self.inputs, [*pyramid[1:], pyramid[-1]], strict=True)]
        levels = self._encode(maps)
        upsampled = F.interpolate(levels[0], pyramid[0].shape[-2:], mode="bilinear", align_corners=False)
        pixels = F.relu(self.smooth(self.lateral(pyramid[0]) + upsampled))
        return ImageFeatures(self.mask_features(pixels), levels, padded_size)

    def _encode(self, maps: Sequence[Float[Tensor, "b c h w"]]) -> tuple[Float[Tensor, "b c h w"], ...]:
        shapes = [(level.shape[2], level.shape[3]) for level in maps]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        dim, device = tokens.shape[-1], tokens.device
        embeddings = zip(shapes, self.map_embedding, strict=True)
        positions = torch.cat([pixel_embedding(*shape, dim, device) + own for shape, own in embeddings])
        positions, centres = positions.to(tokens.dtype), pixel_centres(shapes, device)[None]
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(layer, tokens, positions, centres, shapes, use_reentrant=False)
            else:
                tokens = layer(tokens, positions, centres, shapes)
        by_map = tokens.split([height * width for height, width in shapes], dim=1)
        return tuple(t.transpose(1, 2).unflatten(2, shape) for t, shape in zip(by_map, shapes, strict=True))
