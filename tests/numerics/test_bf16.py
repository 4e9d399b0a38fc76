"""How far autocast to bfloat16 takes the model from float32: stated here, and tested.

A bfloat16 has eight bits of precision: one rounding is up to 0.4%.  Over backbone, encoder and decoder this grows to
1-2% of an array's largest value, and moves one pixel in two hundred across a mask's edge; with random weights, whose
masks have more edge than any trained one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.model.backbone import BackboneSettings
from semsam.model.presets import PRESETS
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings

# Largest difference, relative to the array's largest value.  Six sets of weights came to half of it.
TOLERANCES = {
    "mask_features": 0.02,
    "coarsest level": 0.04,
    "mask_logits": 0.04,
    "boxes_cxcywh": 0.0125,  # References are refined in float32.
    "iou_predictions": 0.05,
    "object_logits": 0.025,
}
MOVED_PIXELS = 0.01
TEXT = TextSettings(kind="byte_ngrams", dim=64)
SETTINGS = {
    "debug": PRESETS["debug"],
    # Windows and depths of Swin-T, half as wide.
    "small_swin": replace(
        PRESETS["swin_tiny"],
        backbone=BackboneSettings(dim=48),
        hidden_dim=128,
        feedforward_dim=512,
        encoder_layers=3,
        decoder_layers=4,
        text=TEXT,
    ),
}


@dataclass(frozen=True)
class Both:
    """What the same model gives for the same image and prompts in both precisions."""

    fp32: dict[str, Tensor]
    bf16: dict[str, Tensor]


@pytest.fixture(scope="module", params=list(SETTINGS))
def both(request: pytest.FixtureRequest) -> Both:
    torch.manual_seed(0)
    model = SemanticSam(SETTINGS[request.param]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Initial boxes and offsets would hide what is not connected.
            parameter += 0.02 * torch.randn(parameter.shape)
    image = torch.randint(0, 256, (1, 3, 128, 160), dtype=torch.uint8)
    boxes, is_box = torch.rand(1, 6, 4) * 0.5 + 0.2, torch.rand(1, 6) > 0.5
    names = F.normalize(torch.randn(5, TEXT.dim), dim=-1)

    def run() -> dict[str, Tensor]:
        features = model.encode_image(image)
        last = model.decode(features, boxes, is_box, names, names, with_generic=False, every_layer=False).prompts[-1]
        return {
            "mask_features": features.mask_features,
            "coarsest level": features.levels[-1],
            "mask_logits": last.mask_logits(),
            "boxes_cxcywh": last.boxes_cxcywh,
            "iou_predictions": last.iou_predictions,
            "object_logits": last.object_logits,
        }

    with torch.no_grad():
        fp32 = run()
        with torch.autocast("cpu", torch.bfloat16):
            bf16 = run()
    return Both(fp32, bf16)


@pytest.mark.parametrize("name", list(TOLERANCES))
def test_bf16_differs_from_fp32_by_no_more_than_stated(both: Both, name: str) -> None:
    error = (both.bf16[name].float() - both.fp32[name]).abs().max() / both.fp32[name].abs().max()
    assert 1e-5 < error < TOLERANCES[name], f"{name}: {error:.4f}"


def test_hardly_a_pixel_changes_sides(both: Both) -> None:
    moved = (both.bf16["mask_logits"] > 0) != (both.fp32["mask_logits"] > 0)
    assert moved.float().mean() < MOVED_PIXELS


def test_what_needs_precision_stays_in_fp32(both: Both) -> None:
    assert both.bf16["mask_features"].dtype == torch.bfloat16
    assert both.bf16["boxes_cxcywh"].dtype == torch.float32
    assert both.bf16["object_logits"].dtype == torch.float32
