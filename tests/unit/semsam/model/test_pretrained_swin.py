"""A classifier's weights in the backbone: the same arithmetic, strict about keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semsam.model.presets import PRESETS
from semsam.model.pretrained_swin import load_swin
from semsam.model.released_weights import to_released
from semsam.model.semantic_sam import SemanticSam

DEBUG = PRESETS["debug"]


@pytest.fixture
def classifier(model: SemanticSam) -> dict[str, Tensor]:
    """The debug backbone's weights as a classifier's file has them."""
    released = to_released(model.state_dict(), DEBUG)
    found = {name.removeprefix("backbone."): t for name, t in released.items() if name.startswith("backbone.")}
    found = {name: tensor for name, tensor in found.items() if not name.startswith("norm")}
    extra = {"norm.weight": torch.ones(256), "norm.bias": torch.ones(256), "head.weight": torch.ones(1000, 256)}
    return found | extra | {"head.bias": torch.ones(1000), "layers.2.blocks.1.attn_mask": torch.ones(4, 16, 16)}


def write(weights: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": weights}, folder / "swin.pth")
    return folder / "swin.pth"


def test_a_backbone_with_a_classifiers_weights_computes_what_that_computed(
    classifier: dict[str, Tensor], model: SemanticSam, tmp_path: Path
) -> None:
    loaded = load_swin(write(classifier, tmp_path), DEBUG)
    other = SemanticSam.untrained("debug", seed=9)
    other.load_weights({**other.state_dict(), **loaded.weights}, "test")
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in loaded.weights.items())
    image = torch.randn(1, 3, 64, 96)
    # But for the maps' own norms, which a classifier does not have.
    other.backbone.norms.load_state_dict(model.backbone.norms.state_dict())
    for one, expected in zip(other.backbone(image, None), model.backbone(image, None), strict=True):
        torch.testing.assert_close(one, expected)


def test_every_key_is_accounted_for(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    loaded = load_swin(write(classifier, tmp_path), DEBUG)
    own = {name for name in SemanticSam.untrained("debug").state_dict() if name.startswith("backbone.")}
    assert loaded.weights.keys() | set(loaded.new) == own
    assert loaded.new == tuple(f"backbone.norms.{i}.{part}" for i in range(4) for part in ("weight", "bias"))
    assert {"norm.weight", "head.bias", "layers.2.blocks.1.attn_mask"} <= set(loaded.unused)
    assert len(loaded.weights) + len(loaded.unused) == len(classifier)


def dropped(weights: dict[str, Tensor]) -> None:
    del weights["patch_embed.norm.weight"]


def added(weights: dict[str, Tensor]) -> None:
    weights["absolute_pos_embed"] = torch.ones(1, 9, 9)


def of_another_window(weights: dict[str, Tensor]) -> None:
    weights["layers.0.blocks.0.attn.relative_position_bias_table"] = torch.ones(169, 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (dropped, r"swin\.pth: 1 key\(s\) do not fit\n  missing: patch_embed\.norm\.weight$"),
        (added, r"unexpected: absolute_pos_embed$"),
        (
            of_another_window,
            r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table: \[169, 1\] instead of \[49, 1\]$",
        ),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    classifier: dict[str, Tensor], tmp_path: Path, spoil: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    spoil(classifier)
    with pytest.raises(ValueError, match=message):
        load_swin(write(classifier, tmp_path), DEBUG)
