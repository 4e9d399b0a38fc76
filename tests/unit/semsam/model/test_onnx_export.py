"""The two ONNX graphs give what the model gives, for sizes and numbers of prompts that they were not traced with."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.model.backbone import BackboneSettings
from semsam.model.onnx_export import FEATURES, PREDICTIONS, export_onnx
from semsam.model.presets import PRESETS, ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings

TOLERANCE = 1e-3
TEXT_DIM = 16


@dataclass(frozen=True)
class Exported:
    """A model and its graphs in a runtime."""

    model: SemanticSam
    encoder: onnxruntime.InferenceSession
    decoder: onnxruntime.InferenceSession

    @staticmethod
    def of(settings: ModelSettings, folder: Path) -> Exported:
        """A model of these settings with weights that say something, exported."""
        torch.manual_seed(0)
        model = SemanticSam(settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
        names = list(model.state_dict())
        encoder, decoder = (onnxruntime.InferenceSession(str(path)) for path in export_onnx(model, folder))
        assert list(model.state_dict()) == names  # What is exported is a copy.
        return Exported(model, encoder, decoder)

    def check(self, size: tuple[int, int], num_prompts: int, num_names: tuple[int, int]) -> None:
        """Fail unless both graphs agree with the model on a random image and random prompts."""
        random = torch.Generator().manual_seed(sum(size))
        image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=random)
        boxes = torch.rand(1, num_prompts, 4, generator=random)
        is_box = torch.rand(1, num_prompts, generator=random) > 0.5
        names = [F.normalize(torch.randn(n, self.model.settings.text.dim, generator=random)) for n in num_names]
        with torch.no_grad():
            features = self.model.encode_image(image)
            last = self.model.decode(features, boxes, is_box, *names, with_generic=False).prompts[-1]
        encoded = self.encoder.run(FEATURES, {"image": image.numpy()})
        agree(FEATURES, encoded, [features.mask_features, *features.levels])
        asked = ("prompt_boxes_cxcywh", "prompt_is_box", "object_names", "part_names")
        prompts = {name: value.numpy() for name, value in zip(asked, (boxes, is_box, *names), strict=True)}
        decoded = self.decoder.run(PREDICTIONS, {**dict(zip(FEATURES, encoded, strict=True)), **prompts})
        agree(PREDICTIONS, decoded, [last.mask_logits(), *(getattr(last, name) for name in PREDICTIONS[1:])])


def agree(names: Sequence[str], found: Sequence, expected: Sequence[Tensor]) -> None:
    for name, one, other in zip(names, found, expected, strict=True):
        assert one.shape == tuple(other.shape), name
        if other.numel():
            error = (torch.from_numpy(one) - other).abs().max() / other.abs().max()
            assert error < TOLERANCE, f"{name}: {error:.1e}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    settings = ModelSettings(
        # Windows that divide some maps of some images, shifted in one stage.
        backbone=BackboneSettings(dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1), window=4),
        hidden_dim=32,
        feedforward_dim=32,
        num_heads=2,
        num_points=2,
        encoder_layers=1,
        decoder_layers=2,
        num_generic_queries=4,
        text=TextSettings(kind="byte_ngrams", dim=TEXT_DIM),
    )
    return Exported.of(settings, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 200), (128, 256), (224, 97)])
def test_both_graphs_agree_with_the_model_at_any_size(exported: Exported, size: tuple[int, int]) -> None:
    exported.check(size, num_prompts=3, num_names=(5, 2))


@pytest.mark.parametrize(("num_prompts", "num_names"), [(1, (1, 1)), (2, (0, 0)), (40, (0, 3)), (7, (133, 30))])
def test_both_graphs_agree_for_any_number_of_prompts_and_names(
    exported: Exported, num_prompts: int, num_names: tuple[int, int]
) -> None:
    exported.check((64, 96), num_prompts, num_names)


def test_a_missing_package_is_named(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"writing ONNX needs the package onnx: pip install 'semsam\[export\]'"):
        export_onnx(exported.model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["debug", "swin_tiny"])
def test_the_presets_agree_at_two_sizes(tmp_path: Path, preset: str) -> None:
    # Without CLIP, which is no part of either graph.
    text = replace(PRESETS[preset].text, kind="byte_ngrams")
    exported = Exported.of(replace(PRESETS[preset], text=text), tmp_path)
    for size in ((221, 331), (352, 224)):
        exported.check(size, num_prompts=4, num_names=(3, 2))
