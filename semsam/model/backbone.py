"""Swin Transformer (arXiv 2103.14030) as a pyramid of four feature maps, with drop-path keyed by sample."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from semsam.config import Positive, ShareBelowOne, settings
from semsam.ops.keyed_random import keyed_uniform
from semsam.ops.row_blocks import by_row_blocks

MLP_RATIO = 4
OTHER_REGION = -100.0  # Added to the logits of pixels that are neighbours only because the map was rolled.


@settings
class BackboneSettings:
    """Swin-T by default."""

    dim: Positive = 96  # Channels at 1/4; each later stage has twice those of the one before.
    depths: tuple[Positive, ...] = (2, 2, 6, 2)
    num_heads: tuple[Positive, ...] = (3, 6, 12, 24)
    window: Positive = 7
    drop_path: ShareBelowOne = 0.3  # Of the last block; from zero it grows linearly with depth.

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must have one entry per stage, four")
        for stage, heads in enumerate(self.num_heads):
            if self.dims[stage] % heads:
                raise ValueError(f"num_heads {self.num_heads}: stage {stage} has {self.dims[stage]} channels")

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Channels of the four maps."""
        return self.dim, self.dim * 2, self.dim * 4, self.dim * 8


class WindowAttention(nn.Module):
    """Self-attention inside square windows, with a learnt bias for every relative position."""

    relative: Int64[Tensor, "n n"]

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.output = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("relative", relative_positions(window), persistent=False)

    def forward(
        self, windows: Float[Tensor, "w n c"], regions_differ: Bool[Tensor, "v n n"] | None
    ) -> Float[Tensor, "w n c"]:
        """Attended windows.  `regions_differ` marks, for the `v` windows of an image, what was not a neighbour."""
        bias = self.bias_table[self.relative].permute(2, 0, 1)[None]
        if regions_differ is not None:
            bias = bias + regions_differ[:, None] * OTHER_REGION
            bias = bias.repeat(len(windows) // len(regions_differ), 1, 1, 1)
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.output(attended.transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Window attention, then an MLP, each added to what came in; every other block shifts its windows by half."""

    def __init__(self, dim: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, num_heads, window)
        self.mlp_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim * MLP_RATIO)
        self.contract = nn.Linear(dim * MLP_RATIO, dim)

    def forward(
        self,
        x: Float[Tensor, "b h w c"],
        regions_differ: Bool[Tensor, "v n n"] | None,
        scales: Float[Tensor, "2 b"] | None,
    ) -> Float[Tensor, "b h w c"]:
        """The map after this block.  `scales`: what each sample's two branches are multiplied by (drop-path)."""
        attended = self._attend(self.attention_norm(x), regions_differ)
        x = x + (attended if scales is None else attended * scales[0].view(-1, 1, 1, 1).to(x.dtype))
        changed = by_row_blocks(self._think, x)
        return x + (changed if scales is None else changed * scales[1].view(-1, 1, 1, 1).to(x.dtype))

    def _think(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        return self.contract(F.gelu(self.expand(self.mlp_norm(x))))

    def _attend(
        self, x: Float[Tensor, "b h w c"], regions_differ: Bool[Tensor, "v n n"] | None
    ) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        # Zeros after the norm; they are attended to like any pixel.
        if height % self.window or width % self.window:
            x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        attended = self.attention(to_windows(x, self.window), regions_differ if self.shift else None)
        x = from_windows(attended, self.window, x.shape[1], x.shape[2])
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Halves a map: four neighbours become one pixel of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 d"]:
        """The smaller map; a missing last row or column counts as zeros."""
        if x.shape[1] % 2 or x.shape[2] % 2:
            x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinStage(nn.Module):
    """The blocks that work at one resolution."""

    def __init__(self, dim: int, depth: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        shifts = [(index % 2) * (window // 2) for index in range(depth)]
        self.blocks = nn.ModuleList(SwinBlock(dim, num_heads, window, shift) for shift in shifts)

    def forward(
        self, x: Float[Tensor, "b h w c"], scales: Float[Tensor, "n 2 b"] | None, checkpointing: bool
    ) -> Float[Tensor, "b h w c"]:
        """The map after all `n` blocks."""
        # Only every other block shifts its windows, and needs this.
        differ = different_regions(x.shape[1], x.shape[2], self.window, x.device) if len(self.blocks) > 1 else None
        for index, block in enumerate(self.blocks):
            own = None if scales is None else scales[index]
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, differ, own, use_reentrant=False)
            else:
                x = block(x, differ, own)
        return x


class Swin(nn.Module):
    """Four maps, at 1/4, 1/8, 1/16 and 1/32 of the image, each through a norm of its own."""

    def __init__(self, settings: BackboneSettings, checkpointing: bool = False) -> None:
        super().__init__()
        self.settings, self.checkpointing = settings, checkpointing
        dims = settings.dims
        self.patches = nn.Conv2d(3, dims[0], kernel_size=4, stride=4)
        self.patch_norm = nn.LayerNorm(dims[0])
        shapes = zip(dims, settings.depths, settings.num_heads, strict=True)
        self.stages = nn.ModuleList(SwinStage(dim, depth, heads, settings.window) for dim, depth, heads in shapes)
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in dims[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, images: Float[Tensor, "b 3 h w"], sample_keys: Int64[Tensor, " b"] | None
    ) -> list[Float[Tensor, "b c h w"]]:
        """The four maps of normalised images.  `sample_keys` switch drop-path on, and decide it, sample by sample."""
        scales = None if sample_keys is None else self._drop_path_scales(sample_keys)
        x = self.patch_norm(self.patches(images).permute(0, 2, 3, 1))
        maps, first = [], 0
        for index, stage in enumerate(self.stages):
            if index:
                x = self.merges[index - 1](x)
            depth = self.settings.depths[index]
            x = stage(x, None if scales is None else scales[first : first + depth], self.checkpointing)
            maps.append(self.norms[index](x).permute(0, 3, 1, 2))
            first += depth
        return maps

    def _drop_path_scales(self, sample_keys: Int64[Tensor, " b"]) -> Float[Tensor, "n 2 b"]:
        """Zero where a branch is dropped, and elsewhere what keeps its expectation."""
        num_blocks = sum(self.settings.depths)
        rates = torch.linspace(0, self.settings.drop_path, num_blocks, device=sample_keys.device)[:, None, None]
        uniform = keyed_uniform(sample_keys, 2 * num_blocks).unflatten(0, (num_blocks, 2))
        return (uniform >= rates) / (1 - rates)


def relative_positions(window: int) -> Int64[Tensor, "n n"]:
    """The row of the bias table for each pair of pixels of a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, right = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return down * (2 * window - 1) + right


def to_windows(x: Float[Tensor, "b h w c"], window: int) -> Float[Tensor, "v n c"]:
    """The windows of all images, row by row; height and width are multiples of `window`."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Float[Tensor, "v n c"], window: int, height: int, width: int) -> Float[Tensor, "b h w c"]:
    """The inverse of `to_windows`."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def different_regions(height: int, width: int, window: int, device: torch.device) -> Bool[Tensor, "v n n"]:
    """Pairs of pixels of each shifted window that the roll alone brought together, on the padded map."""
    height, width = height + -height % window, width + -width % window

    def region(size: int) -> Tensor:
        index = torch.arange(size, device=device)
        return (index >= size - window).long() + (index >= size - window // 2).long()

    regions = region(height)[:, None] * 3 + region(width)
    windows = to_windows(regions[None, :, :, None], window)[..., 0]
    return windows[:, None] != windows[:, :, None]
