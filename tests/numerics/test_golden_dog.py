"""The model against the published one, stage by stage, with the same deterministic weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semsam.model.predictions import Predictions
from semsam.model.presets import preset
from semsam.model.released_weights import load_released
from semsam.model.semantic_sam import ImageFeatures, SemanticSam

pytestmark = [pytest.mark.samples, pytest.mark.slow]

AGREEMENT = 1e-4  # Relative to the largest value of a stage.


@pytest.fixture(scope="module")
def reference(reference_dir: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("deterministic_weights", reference_dir / "deterministic_weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(reference_dir: Path) -> Any:
    return np.load(reference_dir / "golden_dog" / "outputs.npz")


def released_state(reference: ModuleType, reference_dir: Path, size: str) -> dict[str, Tensor]:
    keys = json.loads((reference_dir / f"released_keys_{size}.json").read_text())
    values = {name: reference.gen_weight(name, shape) for name, shape, _ in keys}
    return {name: torch.zeros(0) if value is None else torch.from_numpy(value) for name, value in values.items()}


@pytest.fixture(scope="module")
def model(reference: ModuleType, reference_dir: Path) -> SemanticSam:
    model = SemanticSam(preset("swin_tiny"))
    load_released(model, released_state(reference, reference_dir, "swin_t"))
    return model.eval()


@pytest.fixture(scope="module")
def stages(model: SemanticSam) -> dict[str, Any]:
    """What modules gave, by name, in the latest call."""
    seen: dict[str, Any] = {}
    model.backbone.register_forward_hook(lambda _m, _i, out: seen.update(backbone=out))
    for number, layer in enumerate(model.pixel_decoder.layers):
        layer.register_forward_hook(lambda _m, _i, out, n=number: seen.update({f"encoder{n}": out}))
    for number, layer in enumerate(model.mask_decoder.layers):
        layer.register_forward_hook(
            lambda _m, inputs, out, n=number: seen.update(
                {f"in{n}": inputs[0], f"pos{n}": inputs[1], f"ref{n}": inputs[2], f"out{n}": out}
            )
        )
    return seen


@pytest.fixture(scope="module")
def features(model: SemanticSam, stages: dict[str, Any], reference_dir: Path) -> ImageFeatures:
    image = torch.from_numpy(np.load(reference_dir / "golden_dog" / "input.npz")["image"])
    with torch.no_grad():
        return model.encode_image(image[None])


@pytest.fixture(scope="module")
def clicks(golden: Any) -> Tensor:
    return torch.from_numpy(golden["points_padded_cxcywh"])


@torch.no_grad()
def decode(
    model: SemanticSam, features: ImageFeatures, boxes: Tensor, row: int = 0, joint: bool = False
) -> list[Predictions]:
    is_box = torch.full((1, len(boxes)), bool(row))
    nothing = torch.zeros(0, model.settings.text.embed_dim)
    return model.decode(
        features,
        boxes[None],
        is_box,
        nothing,
        nothing,
        with_generic=False,
        every_layer=True,
        joint_attention=joint,
    ).prompts


@pytest.fixture
def agrees(reference: ModuleType, golden: Any) -> Any:
    def check(name: str, tensor: Tensor) -> None:
        _, relative = reference.compare(golden, name, tensor.numpy())
        assert relative < AGREEMENT, f"{name}: {relative:.1e}"

    return check


def test_the_image_side_agrees(features: ImageFeatures, stages: dict[str, Any], golden: Any, agrees: Any) -> None:
    assert features.padded_size == tuple(golden["padded_hw"])
    for number, res in enumerate(stages["backbone"]):
        agrees(f"backbone.res{number + 2}", res)
    for layer in range(6):
        agrees(f"encoder.layer{layer}", stages[f"encoder{layer}"])
    agrees("mask_features", features.mask_features)
    for level, fused in enumerate(features.maps):
        agrees(f"multi_scale_features.{level}", fused)


def test_the_joint_decoder_agrees_layer_by_layer(
    model: SemanticSam, features: ImageFeatures, stages: dict[str, Any], clicks: Tensor, golden: Any, agrees: Any
) -> None:
    layers = decode(model, features, clicks, joint=True)
    agrees("decoder.query0", stages["in0"])
    agrees("decoder.layer0.query_pos", stages["pos0"])
    for number, layer in enumerate(layers):
        agrees(f"decoder.layer{number}.out_raw", stages[f"out{number}"])
        np.testing.assert_allclose(stages[f"ref{number}"], golden["decoder.references"][number], atol=1e-4)
        np.testing.assert_allclose(layer.boxes_cxcywh, golden["pred_boxes_all"][number], atol=1e-4)
        ious = golden["pred_ious_all"][number].reshape(1, -1)
        np.testing.assert_allclose(layer.iou_predictions, ious, atol=1e-4 * np.abs(ious).max())
        agrees("pred_masks" if number == 8 else f"pred_masks.layer{number}", layer.mask_logits())


@pytest.mark.parametrize("click", range(4))
def test_a_click_alone_agrees(
    model: SemanticSam, features: ImageFeatures, clicks: Tensor, golden: Any, agrees: Any, click: int
) -> None:
    last = decode(model, features, clicks[click : click + 1])[-1]
    agrees(f"alone{click}.pred_boxes", last.boxes_cxcywh)
    agrees(f"alone{click}.pred_ious", last.iou_predictions)
    agrees(f"alone{click}.pred_masks", last.mask_logits())


def test_isolated_clicks_agree(model: SemanticSam, features: ImageFeatures, clicks: Tensor, agrees: Any) -> None:
    last = decode(model, features, clicks)[-1]
    agrees("blockmask.pred_boxes", last.boxes_cxcywh)
    agrees("blockmask.pred_ious", last.iou_predictions)
    agrees("blockmask.pred_masks", last.mask_logits())


def test_the_other_prompt_row_agrees(model: SemanticSam, features: ImageFeatures, clicks: Tensor, agrees: Any) -> None:
    last = decode(model, features, clicks, row=1, joint=True)[-1]
    agrees("pb1.pred_boxes", last.boxes_cxcywh)
    agrees("pb1.pred_ious", last.iou_predictions)
    agrees("pb1.pred_masks", last.mask_logits())


@pytest.mark.parametrize("size", ["swin_tiny", "swin_large"])
def test_every_released_key_has_its_place(reference: ModuleType, reference_dir: Path, size: str) -> None:
    state = released_state(reference, reference_dir, {"swin_tiny": "swin_t", "swin_large": "swin_l"}[size])
    with torch.device("meta"):
        model = SemanticSam(preset(size))
    state = {name: tensor.to("meta") for name, tensor in state.items()}
    new = load_released(model, state)
    assert all(name.startswith(("text_encoder", "mask_decoder")) for name in new)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_one_wrong_key_is_named(reference: ModuleType, reference_dir: Path, model: SemanticSam, fault: str) -> None:
    state = released_state(reference, reference_dir, "swin_t")
    name = "sem_seg_head.pixel_decoder.mask_features.weight"
    if fault == "missing":
        del state[name]
    elif fault == "extra":
        name = "sem_seg_head.pixel_decoder.mask_feature.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"mask_feature"):
        load_released(model, state)
