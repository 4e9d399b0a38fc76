"""Sizes of the model: the published two, and one that learns the toy world on a laptop."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from semsam.config import settings


@settings
class BackboneSettings:
    """Swin Transformer (arXiv 2103.14030)."""

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.3  # Of the last block; it grows linearly from 0.

    def __post_init__(self) -> None:
        if len(self.depths) != 4 or len(self.num_heads) != 4:
            raise ValueError(f"depths and num_heads need one number per stage, four each: {self.depths}")
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(f"num_heads: {heads} does not divide the {self.embed_dim * 2**stage} channels")

    def channels(self) -> list[int]:
        """Of res2, res3, res4, res5."""
        return [self.embed_dim * 2**stage for stage in range(4)]


@settings
class TextSettings:
    """How names become vectors: a CLIP-style transformer, or a small encoder on bytes that is trained with the rest."""

    kind: Literal["clip", "bytes"] = "clip"
    embed_dim: int = 512  # Of the space in which names and queries meet.
    width: int = 512
    heads: int = 8
    layers: int = 12
    context: int = 77
    vocabulary: int = 49_408
    # A local folder with tokenizer files as Hugging Face writes them; needed by `clip` alone.
    tokenizer: str | None = None


@settings
class ModelSettings:
    """All sizes of one Semantic-SAM."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    text: TextSettings = field(default_factory=TextSettings)
    hidden_dim: int = 256
    num_heads: int = 8
    num_points: int = 4  # Deformable sampling points per head and feature level.
    encoder_layers: int = 6
    decoder_layers: int = 9
    feedforward_dim: int = 2048
    num_levels: int = 6  # Granularity levels: masks per prompt.
    num_generic_queries: int = 300
    # Recompute activations of backbone blocks and encoder layers in backward: less memory, a third more time.
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.hidden_dim % (2 * self.num_heads) or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of 4 and of twice num_heads")


PRESETS = {
    "debug": ModelSettings(
        backbone=BackboneSettings(
            embed_dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=4, mlp_ratio=2.0, drop_path=0.0
        ),
        text=TextSettings(kind="bytes", embed_dim=64, width=128),
        hidden_dim=64,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        feedforward_dim=128,
        num_generic_queries=20,
    ),
    "swin_tiny": ModelSettings(),
    "swin_large": ModelSettings(
        backbone=BackboneSettings(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window_size=12)
    ),
}


def preset(name: str) -> ModelSettings:
    """The settings of a named size; raises `ValueError` for another name."""
    if name not in PRESETS:
        raise ValueError(f"unknown model preset {name!r}, one of {sorted(PRESETS)}")
    return PRESETS[name]
