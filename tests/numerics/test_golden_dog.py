"""The model against the published one, stage by stage: the same weights, one image, four clicks.

The reference values were computed by the published code with `deterministic_weights`; two kernels of the same
arithmetic differ by 3e-6, so 1e-4 relative to the largest value of an array is agreement.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from semsam.model.pixel_decoder import ImageFeatures
from semsam.model.positions import box_embedding
from semsam.model.predictions import ModelOutput
from semsam.model.presets import PRESETS
from semsam.model.released_weights import from_released
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings

TOLERANCE = 1e-4
CLICK_SIDE = 0.005  # Of the released demo's clicks, as a fraction of the image.


@dataclass(frozen=True)
class Golden:
    """The reference values, and how they are compared."""

    values: dict[str, np.ndarray]
    tools: ModuleType

    def check(self, name: str, found: Tensor) -> None:
        """Fail unless `found` agrees with the stored array, or with the stored samples of it."""
        _, relative = self.tools.compare(self.values, name, found.detach().float().numpy())
        assert relative < TOLERANCE, f"{name}: {relative:.2e}"


@dataclass
class Run:
    """One forward pass, with what went through its layers."""

    features: ImageFeatures
    pyramid: list[Tensor]
    encoder_layers: list[Tensor]
    decoder_inputs: list[tuple[Any, ...]]
    decoder_layers: list[Tensor]
    output: ModelOutput


@pytest.fixture(scope="module")
def golden(reference_dir: Path) -> Golden:
    path = reference_dir / "deterministic_weights.py"
    spec = importlib.util.spec_from_file_location("deterministic_weights", path)
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    folder = reference_dir / "golden_dog"
    values = {**np.load(folder / "outputs.npz"), "image": np.load(folder / "input.npz")["image"]}
    return Golden(values, tools)


@pytest.fixture(scope="module")
def model(golden: Golden, reference_dir: Path) -> SemanticSam:
    # No CLIP: the release has no text encoder, and sixty million random numbers take their time.
    settings = replace(PRESETS["swin_tiny"], text=TextSettings(kind="byte_ngrams"))
    model = SemanticSam(settings).eval()
    own_index = {name: buffer for name, buffer in model.named_buffers() if name.endswith("relative")}
    index = next(iter(own_index.values()))
    released = {}
    for key, shape, _ in json.loads((reference_dir / "released_keys_swin_t.json").read_text()):
        made = golden.tools.gen_weight(key, shape)
        released[key] = index if made is None else torch.from_numpy(made)
    weights = from_released(released, settings).weights
    model.load_weights({**model.state_dict(), **weights}, "deterministic weights")
    return model


@pytest.fixture(scope="module")
def clicks(golden: Golden) -> Tensor:
    """The four clicks, relative to the padded image."""
    points = torch.from_numpy(golden.values["points_xy_rel"])
    height, width = golden.values["image"].shape[1:]
    padded_height, padded_width = golden.values["padded_hw"].tolist()
    boxes = torch.cat([points, torch.full_like(points, CLICK_SIDE)], dim=1)
    return boxes * torch.tensor([width / padded_width, height / padded_height] * 2)


@pytest.fixture(scope="module")
def run(model: SemanticSam, golden: Golden, clicks: Tensor) -> Run:
    pyramid: list[Tensor] = []
    encoder_layers: list[Tensor] = []
    decoder_inputs: list[tuple[Any, ...]] = []
    decoder_layers: list[Tensor] = []

    def watch_decoder(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        decoder_inputs.append(inputs)
        decoder_layers.append(output)

    hooks = [model.backbone.register_forward_hook(lambda _, __, maps: pyramid.extend(maps))]
    hooks += [
        layer.register_forward_hook(lambda _, __, tokens: encoder_layers.append(tokens))
        for layer in model.pixel_decoder.layers
    ]
    hooks += [layer.register_forward_hook(watch_decoder) for layer in model.mask_decoder.layers]
    with torch.no_grad():
        features = model.encode_image(torch.from_numpy(golden.values["image"])[None])
        output = decode(model, features, clicks, joint=True)
    for hook in hooks:
        hook.remove()
    return Run(features, pyramid, encoder_layers, decoder_inputs, decoder_layers, output)


def decode(
    model: SemanticSam, features: ImageFeatures, clicks: Tensor, joint: bool = False, row: int = 0, last: bool = False
) -> ModelOutput:
    """Predictions for clicks that get `row` of the prompts' kinds (the released inference: 0)."""
    kinds = torch.full((1, len(clicks)), row == 1)
    no_names = torch.zeros(0, 512)
    with torch.no_grad():
        return model.decode(
            features,
            clicks[None],
            kinds,
            no_names,
            no_names,
            with_generic=False,
            every_layer=not last,
            joint_attention=joint,
        )


def test_clicks_and_padding_are_placed_as_in_the_release(golden: Golden, run: Run, clicks: Tensor) -> None:
    assert run.features.padded_size == tuple(golden.values["padded_hw"])
    golden.check("points_padded_cxcywh", clicks)


@pytest.mark.parametrize("index", range(4))
def test_backbone_agrees(golden: Golden, run: Run, index: int) -> None:
    name = f"backbone.res{index + 2}"
    golden.check(name, run.pyramid[index])
    golden.check(f"{name}.chmean", run.pyramid[index].mean((0, 2, 3)))


def test_encoder_layers_agree(golden: Golden, run: Run) -> None:
    assert len(run.encoder_layers) == 6
    for index, tokens in enumerate(run.encoder_layers):
        golden.check(f"encoder.layer{index}", tokens)


def test_image_features_agree(golden: Golden, run: Run) -> None:
    golden.check("mask_features", run.features.mask_features)
    for index, level in enumerate(run.features.levels):
        golden.check(f"multi_scale_features.{index}", level)


def test_decoder_queries_agree_in_every_layer(golden: Golden, run: Run) -> None:
    queries, positions, references = run.decoder_inputs[0][:3]
    golden.check("decoder.query0", queries)
    golden.check("decoder.layer0.query_pos", positions)
    golden.check("decoder.layer0.sine_embed", box_embedding(references, 128))
    assert len(run.decoder_layers) == 9
    for index, out in enumerate(run.decoder_layers):
        golden.check(f"decoder.layer{index}.out_raw", out)


def test_references_agree_in_every_layer(golden: Golden, run: Run) -> None:
    references = torch.stack([inputs[2] for inputs in run.decoder_inputs])
    expected = golden.values["decoder.references"]
    # The tenth, after the last layer, is used by nobody.
    difference = np.abs(references.numpy() - expected[:9]).max()
    assert len(references) == len(expected) - 1
    assert difference < TOLERANCE


def test_predictions_agree_in_every_layer(golden: Golden, run: Run) -> None:
    golden.check("pred_boxes_all", torch.stack([layer.boxes_cxcywh for layer in run.output.prompts]))
    golden.check("pred_ious_all", torch.stack([layer.iou_predictions for layer in run.output.prompts]))
    for index, layer in enumerate(run.output.prompts):
        name = "pred_masks" if index == 8 else f"pred_masks.layer{index}"
        golden.check(name, layer.mask_logits())


def test_masks_at_the_image_size_agree(golden: Golden, run: Run) -> None:
    logits = torch.nn.functional.interpolate(
        run.output.prompts[-1].mask_logits(), run.features.padded_size, mode="bilinear", align_corners=False
    )
    height, width = golden.values["image"].shape[1:]
    masks = logits[0, :, :height, :width]
    golden.check("out.masks", masks)
    # A logit within rounding of zero may fall on either side.
    areas = (masks > 0).sum((1, 2)).numpy()
    assert np.abs(areas - golden.values["out.mask_area"]).max() <= 2


@pytest.mark.parametrize("click", range(4))
def test_a_click_alone_agrees(model: SemanticSam, golden: Golden, run: Run, clicks: Tensor, click: int) -> None:
    check_last(golden, f"alone{click}", decode(model, run.features, clicks[click : click + 1], last=True))


def test_isolated_clicks_agree(model: SemanticSam, golden: Golden, run: Run, clicks: Tensor) -> None:
    check_last(golden, "blockmask", decode(model, run.features, clicks, last=True))


def test_the_other_row_of_prompt_kinds_agrees(model: SemanticSam, golden: Golden, run: Run, clicks: Tensor) -> None:
    check_last(golden, "pb1", decode(model, run.features, clicks, joint=True, row=1, last=True))


def check_last(golden: Golden, name: str, output: ModelOutput) -> None:
    """Compare the last layer's boxes, IoUs and masks."""
    last = output.prompts[-1]
    golden.check(f"{name}.pred_boxes", last.boxes_cxcywh)
    golden.check(f"{name}.pred_ious", last.iou_predictions)
    golden.check(f"{name}.pred_masks", last.mask_logits())
