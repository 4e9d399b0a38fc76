"""Presets: the published sizes, and settings that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from semsam.config import config_values, parse_config
from semsam.model.presets import PRESETS, ModelSettings
from semsam.model.semantic_sam import SemanticSam

# Of the published models; ours have a text encoder, the generic queries' head and two pairs of scale and bias besides.
# The release's projection from names to queries, which it does not use, is as large as that of our denoising queries.
PUBLISHED = {"swin_tiny": (52.98e6, 27.52e6), "swin_large": (222.80e6, 195.20e6)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = SemanticSam(PRESETS[name])
    of_backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    ours = (model.text_encoder, model.mask_decoder.proposals)
    total = sum(p.numel() for p in model.parameters()) - sum(p.numel() for own in ours for p in own.parameters())
    assert total == pytest.approx(PUBLISHED[name][0], rel=2e-4)
    assert of_backbone == pytest.approx(PUBLISHED[name][1], rel=2e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_settings_survive_a_file(name: str) -> None:
    assert parse_config(ModelSettings, config_values(PRESETS[name]), "test") == PRESETS[name]


@pytest.mark.parametrize(
    "change",
    [{"hidden_dim": 100}, {"num_heads": 7}, {"num_levels": 0}, {"decoder_layers": 0}, {"num_denoising_queries": -1}],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        replace(PRESETS["debug"], **change)  # type: ignore[arg-type]
