"""Sizes of the model: the published two, and one that trains on a laptop."""

from __future__ import annotations

from dataclasses import field

from semsam.config import Count, Positive, settings
from semsam.model.backbone import BackboneSettings
from semsam.model.pixel_decoder import CHANNELS_PER_GROUP
from semsam.model.text_encoder import TextSettings
from semsam.setting_kinds import did_you_mean


@settings
class ModelSettings:
    """The architecture; Semantic-SAM with Swin-T by default."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    hidden_dim: Positive = 256
    feedforward_dim: Positive = 2048
    num_heads: Positive = 8
    num_points: Positive = 4  # Places that each head looks at on each map.
    encoder_layers: Positive = 6
    decoder_layers: Positive = 9
    num_levels: Positive = 6  # Granularities, and so queries, of each prompt.
    # Whether a prompt may go on with more clicks, positive and negative, and with the mask of the last answer; the
    # released model knows one click or one box.
    further_clicks: bool = False
    num_generic_queries: Positive = 300
    num_denoising_queries: Count = 100  # In training only, beside the generic queries; 0: none.
    text: TextSettings = field(default_factory=TextSettings)
    # Backbone blocks and encoder layers are computed again in the backward pass: slower, and far less memory.
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.hidden_dim % CHANNELS_PER_GROUP or self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim {self.hidden_dim} must be a multiple of {CHANNELS_PER_GROUP} "
                f"and of num_heads {self.num_heads}"
            )


PRESETS = {
    "debug": ModelSettings(
        backbone=BackboneSettings(dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window=4, drop_path=0.1),
        hidden_dim=64,
        feedforward_dim=128,
        num_heads=4,
        num_points=2,
        encoder_layers=2,
        decoder_layers=3,
        num_generic_queries=24,
        num_denoising_queries=0,
        text=TextSettings(kind="byte_ngrams", dim=64),
    ),
    "swin_tiny": ModelSettings(),
    "swin_large": ModelSettings(
        backbone=BackboneSettings(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), window=12)
    ),
}


def preset(name: str) -> ModelSettings:
    """The preset of that name.  Raises `ValueError` with the names there are."""
    if name not in PRESETS:
        raise ValueError(f"preset: no preset {name!r}, one of {', '.join(PRESETS)}{did_you_mean(name, PRESETS)}")
    return PRESETS[name]
