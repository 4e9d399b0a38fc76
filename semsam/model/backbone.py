"""Swin Transformer (arXiv 2103.14030) as detectors use it: any image size, four feature maps, keyed drop-path.

Our own because drop-path must be a function of the sample alone (see `semsam.data.randomness`) and the released
checkpoints must load; in values it is the standard model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from semsam.model.presets import BackboneSettings

SHIFT_MASK = -100.0  # Added to attention logits between pixels that the cyclic shift brought together.


class SwinBackbone(nn.Module):
    """Images to res2..res5 at 1/4, 1/8, 1/16, 1/32, each through its own LayerNorm."""

    def __init__(self, settings: BackboneSettings, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbedding(settings.embed_dim)
        last_block = max(sum(settings.depths) - 1, 1)
        self.stages = nn.ModuleList()
        first_block = 0
        for depth, heads, channels in zip(settings.depths, settings.num_heads, settings.channels(), strict=True):
            blocks = [
                SwinBlock(
                    channels,
                    heads,
                    settings.window_size,
                    shifted=block % 2 == 1,
                    mlp_ratio=settings.mlp_ratio,
                    drop_path=DropPath(settings.drop_path * (first_block + block) / last_block, first_block + block),
                )
                for block in range(depth)
            ]
            self.stages.append(nn.ModuleList(blocks))
            first_block += depth
        self.merges = nn.ModuleList(PatchMerging(c) for c in settings.channels()[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in settings.channels())

    def forward(
        self, images: Float[Tensor, "b 3 h w"], sample_keys: Int64[Tensor, " b"] | None
    ) -> list[Float[Tensor, "b c y x"]]:
        """Normalised, padded images (height and width multiples of 32) to res2, res3, res4, res5.

        `sample_keys` switch drop-path on, in training: one key per sample and step.
        """
        x = self.patch_embed(images)
        features = []
        for stage, blocks in enumerate(self.stages):
            for block in blocks:  # type: ignore[attr-defined]
                if self.activation_checkpointing and self.training:
                    x = checkpoint(block, x, sample_keys, use_reentrant=False)
                else:
                    x = block(x, sample_keys)
            features.append(self.norms[stage](x).permute(0, 3, 1, 2).contiguous())
            if stage < len(self.merges):
                x = self.merges[stage](x)
        return features


class PatchEmbedding(nn.Module):
    """4x4 patches to vectors, with a LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b y x c"]:
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """Halves height and width, doubles channels.  Odd sides get a zero row or column."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b v u d"]:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class SwinBlock(nn.Module):
    """Window attention, shifted by half a window in every second block, and an MLP; pre-norm."""

    def __init__(
        self, channels: int, heads: int, window: int, shifted: bool, mlp_ratio: float, drop_path: DropPath
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        hidden = int(channels * mlp_ratio)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop_path = drop_path

    def forward(self, x: Float[Tensor, "b y x c"], sample_keys: Int64[Tensor, " b"] | None) -> Float[Tensor, "b y x c"]:
        x = x + self.drop_path(self._attend(self.norm1(x)), sample_keys, branch=0)
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))), sample_keys, branch=1)

    def _attend(self, x: Float[Tensor, "b y x c"]) -> Float[Tensor, "b y x c"]:
        b, height, width, c = x.shape
        size = self.window
        # Padding comes after the norm and is not masked: the published model attends to these zeros.
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, cols = x.shape[1] // size, x.shape[2] // size
        mask = None
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
            mask = _shift_mask(x.shape[1], x.shape[2], size, self.shift, x.device)
        windows = x.view(b, rows, size, cols, size, c).transpose(2, 3).reshape(b, rows * cols, size * size, c)
        windows = self.attention(windows, mask)
        x = windows.view(b, rows, cols, size, size, c).transpose(2, 3).reshape(b, rows * size, cols * size, c)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, with a learned bias per relative position."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(self, x: Float[Tensor, "b v t c"], mask: Bool[Tensor, "v t t"] | None) -> Float[Tensor, "b v t c"]:
        b, windows, tokens, c = x.shape
        q, k, v = self.qkv(x).view(b, windows, tokens, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(tokens, tokens, self.heads).permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + (mask * SHIFT_MASK).to(bias.dtype)[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])
        return self.proj(out.transpose(2, 3).reshape(b, windows, tokens, c))


class DropPath(nn.Module):
    """Drops a residual branch for whole samples (stochastic depth, arXiv 1603.09382), decided by the sample's key."""

    def __init__(self, rate: float, block: int) -> None:
        super().__init__()
        self.rate, self.block = rate, block

    def forward(
        self, x: Float[Tensor, "b y x c"], sample_keys: Int64[Tensor, " b"] | None, branch: int
    ) -> Float[Tensor, "b y x c"]:
        if sample_keys is None or self.rate == 0 or not self.training:
            return x
        kept = hashed_uniform(sample_keys, 2 * self.block + branch) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)[:, None, None, None]


def hashed_uniform(keys: Int64[Tensor, " b"], salt: int) -> Float[Tensor, " b"]:
    """A number in [0, 1) for each key, by the finaliser of SplitMix64 in wrapping int64 arithmetic on the device."""
    z = keys + (salt + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15
    z = (z ^ _shifted_right(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shifted_right(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return (_shifted_right(z ^ _shifted_right(z, 31), 40)).float() / 2**24


def relative_position_index(window: int) -> Int64[Tensor, "t t"]:
    """Row of the bias table for each pair of positions in a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    position = torch.stack([y.flatten(), x.flatten()])
    difference = position[:, :, None] - position[:, None, :] + window - 1
    return difference[0] * (2 * window - 1) + difference[1]


def _shifted_right(z: Int64[Tensor, " b"], bits: int) -> Int64[Tensor, " b"]:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # Without the sign that >> carries down.


def _shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Bool[Tensor, "v t t"]:
    """Pairs of pixels in one window that were not neighbours before the shift."""

    def part(size: int) -> Tensor:
        position = torch.arange(size, device=device)
        return (position >= size - window).int() + (position >= size - shift).int()

    region = part(height)[:, None] * 3 + part(width)[None]
    windows = region.view(height // window, window, width // window, window).transpose(1, 2)
    windows = windows.reshape(-1, window * window)
    return windows[:, :, None] != windows[:, None, :]
