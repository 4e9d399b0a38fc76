"""The whole model: prompts stand alone, images stand alone, everything learns, and checkpoints fit or say why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsam.config import ConfigError
from semsam.model.generic_queries import NoisedRegions
from semsam.model.predictions import ModelOutput, Predictions
from semsam.model.semantic_sam import PIXEL_MEAN, PIXEL_STD, SemanticSam, normalise_and_pad

LEVELS = 6
NAMES = ("car", "dog", "wheel")
FIELDS = ("boxes_cxcywh", "iou_predictions", "object_logits", "part_logits")


def assert_same(found: Predictions, expected: Predictions, tolerance: float = 1e-5) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.mask_logits(), expected.mask_logits(), rtol=tolerance, atol=tolerance)


def rows(predictions: Predictions, queries: Tensor | slice, image: slice = slice(None)) -> Predictions:
    """Some queries of some images."""
    return Predictions(
        predictions.mask_embeddings[image][:, queries],
        predictions.mask_features[image],
        *(getattr(predictions, name)[image][:, queries] for name in FIELDS),
    )


@torch.no_grad()
def answer(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor, joint_attention: bool = False
) -> ModelOutput:
    names = model.encode_names(NAMES)
    features = model.encode_image(images)
    return model.decode(features, boxes, is_box, names, names[:2], joint_attention=joint_attention)


def test_shapes(model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor) -> None:
    output = answer(model, images, boxes, is_box)
    assert len(output.prompts) == len(output.generic) == model.settings.decoder_layers
    counts = {5 * LEVELS: output.prompts, model.settings.num_generic_queries: output.generic}
    for queries, layers in [*counts.items(), (model.settings.num_generic_queries, [output.proposals])]:
        for layer in layers:
            assert layer.mask_logits().shape == (3, queries, 16, 24)
            assert layer.boxes_cxcywh.shape == (3, queries, 4)
            assert layer.iou_predictions.shape == (3, queries)
            assert layer.object_logits.shape == (3, queries, 3)
            assert layer.part_logits.shape == (3, queries, 2)


def test_prompts_do_not_influence_each_other(model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor) -> None:
    together = answer(model, images, boxes, is_box)
    for n in range(5):
        own = slice(n * LEVELS, (n + 1) * LEVELS)
        alone = answer(model, images, boxes[:, n : n + 1], is_box[:, n : n + 1])
        for layer, expected in zip(together.prompts, alone.prompts, strict=True):
            assert_same(rows(layer, own), expected)


def test_the_order_of_prompts_does_not_matter(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor
) -> None:
    order = torch.tensor([3, 0, 4, 2, 1])
    queries = (order[:, None] * LEVELS + torch.arange(LEVELS)).flatten()
    expected = rows(answer(model, images, boxes, is_box).prompts[-1], queries)
    assert_same(answer(model, images, boxes[:, order], is_box[:, order]).prompts[-1], expected)


def test_prompts_and_generic_queries_do_not_influence_each_other(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor
) -> None:
    with_prompts = answer(model, images, boxes, is_box)
    without = answer(model, images, boxes[:, :0], is_box[:, :0])
    for layer, expected in zip(with_prompts.generic, without.generic, strict=True):
        assert_same(layer, expected)
    features = model.encode_image(images)
    names = model.encode_names(NAMES)
    alone = model.decode(features, boxes, is_box, names, names[:2], with_generic=False, every_layer=False)
    assert_same(alone.prompts[-1], with_prompts.prompts[-1])
    assert len(alone.prompts) == 1
    assert alone.generic[-1].boxes_cxcywh.shape == alone.proposals.boxes_cxcywh.shape == (3, 0, 4)


@pytest.fixture
def denoising_model(model: SemanticSam) -> SemanticSam:
    """The same weights with a part for denoising."""
    twin = SemanticSam(replace(model.settings, num_denoising_queries=7))
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin.eval()


@pytest.fixture
def noised() -> NoisedRegions:
    """Groups of three, three and one query; the second image has padding alone."""
    random = torch.Generator().manual_seed(3)
    names = torch.randint(-1, 5, (3, 7), generator=random)
    names[1] = -1
    groups = torch.tensor([[0, 0, 0, 1, 1, 1, 2]]).repeat(3, 1)
    return NoisedRegions(torch.rand(3, 7, 4, generator=random), names, groups)


def test_denoising_groups_neither_see_nor_are_seen(
    denoising_model: SemanticSam,
    model: SemanticSam,
    images: Tensor,
    boxes: Tensor,
    is_box: Tensor,
    noised: NoisedRegions,
) -> None:
    names = model.encode_names(NAMES)
    with torch.no_grad():
        features = model.encode_image(images)
        without = model.decode(features, boxes, is_box, names, names[:2])
        found = denoising_model.decode(features, boxes, is_box, names, names[:2], noised=noised)
        assert without.denoising == []
        assert len(found.denoising) == model.settings.decoder_layers
        for layers, expected in ((found.prompts, without.prompts), (found.generic, without.generic)):
            for layer, one in zip(layers, expected, strict=True):
                assert_same(layer, one)
        for own in (slice(0, 3), slice(3, 6), slice(6, 7)):
            group = NoisedRegions(noised.boxes_cxcywh[:, own], noised.names[:, own], noised.groups[:, own])
            alone = denoising_model.decode(features, boxes[:, :0], is_box[:, :0], names, names[:2], noised=group)
            assert_same(rows(found.denoising[-1], own), alone.denoising[-1])


def test_denoising_leaves_no_parameter_without_a_gradient(
    denoising_model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor, noised: NoisedRegions
) -> None:
    for given in (noised, replace(noised, names=torch.full_like(noised.names, -1))):
        denoising_model.zero_grad()
        names = denoising_model.encode_names(NAMES)
        output = denoising_model.train()(images, boxes, is_box, names, names[:2], torch.arange(3), given)
        (training_like_loss(output) + sum(layer.boxes_cxcywh.square().sum() for layer in output.denoising)).backward()
        assert [name for name, parameter in denoising_model.named_parameters() if parameter.grad is None] == []


def test_joint_attention_lets_prompts_influence_each_other(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor
) -> None:
    apart = answer(model, images, boxes, is_box).prompts[-1]
    joint = answer(model, images, boxes, is_box, joint_attention=True).prompts[-1]
    assert (apart.iou_predictions - joint.iou_predictions).abs().max() > 1e-4
    one = answer(model, images, boxes[:, :1], is_box[:, :1], joint_attention=True).prompts[-1]
    assert_same(one, rows(apart, slice(0, LEVELS)))


@pytest.mark.slow
def test_a_batch_equals_its_images_one_by_one(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor
) -> None:
    together = answer(model, images, boxes, is_box)
    for image in range(3):
        own = slice(image, image + 1)
        alone = answer(model, images[own], boxes[own], is_box[own])
        assert_same(rows(together.prompts[-1], slice(None), own), alone.prompts[-1])
        assert_same(rows(together.generic[-1], slice(None), own), alone.generic[-1])
        assert_same(rows(together.proposals, slice(None), own), alone.proposals)


def test_a_click_and_a_box_at_the_same_place_are_told_apart(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor
) -> None:
    clicks = answer(model, images, boxes, torch.zeros_like(is_box)).prompts[-1]
    as_boxes = answer(model, images, boxes, torch.ones_like(is_box)).prompts[-1]
    assert (clicks.iou_predictions - as_boxes.iou_predictions).abs().min() > 0


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 1), (32, 32)), ((32, 64), (32, 64)), ((33, 64), (64, 64)), ((100, 31), (128, 32))]
)
def test_images_are_padded_to_a_multiple_of_32(
    model: SemanticSam, size: tuple[int, int], padded: tuple[int, int]
) -> None:
    features = model.encode_image(torch.full((1, 3, *size), 200, dtype=torch.uint8))
    assert features.padded_size == padded
    assert features.mask_features.shape[2:] == (padded[0] // 4, padded[1] // 4)
    assert [level.shape[2] for level in features.levels] == [max(padded[0] // s, 1) for s in (8, 16, 32, 64)]
    assert features.mask_features.isfinite().all()


def test_padding_is_zero_after_normalisation() -> None:
    normalised = normalise_and_pad(torch.full((1, 3, 5, 40), 50, dtype=torch.uint8))
    assert normalised.shape == (1, 3, 32, 64)
    assert normalised[:, :, 5:].abs().max() == normalised[:, :, :, 40:].abs().max() == 0
    for channel, (mean, std) in enumerate(zip(PIXEL_MEAN, PIXEL_STD, strict=True)):
        assert normalised[0, channel, 0, 0].item() == pytest.approx((50 - mean) / std, rel=1e-6)


def test_padding_that_is_part_of_the_image_changes_nothing(model: SemanticSam, images: Tensor) -> None:
    cut = images[:, :, :50, :70].float()
    mean = torch.tensor(PIXEL_MEAN)[:, None, None].expand(3, 64, 96).clone()
    padded = mean.expand(3, 3, 64, 96).clone()
    padded[:, :, :50, :70] = cut
    expected = model.encode_image(padded)
    torch.testing.assert_close(model.encode_image(cut).mask_features, expected.mask_features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_names", [0, 3])
@pytest.mark.parametrize("num_prompts", [0, 2])
def test_empty_prompts_and_vocabularies_are_legal(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor, num_prompts: int, num_names: int
) -> None:
    names = model.encode_names(NAMES[:num_names])
    prompts, kinds = boxes[:, :num_prompts], is_box[:, :num_prompts]
    output = model(images, prompts, kinds, names, names[:0])
    assert output.prompts[-1].object_logits.shape == (3, num_prompts * LEVELS, num_names)
    assert output.proposals.part_logits.shape == (3, model.settings.num_generic_queries, 0)
    training_like_loss(output).backward()


def test_gradients_reach_every_parameter(model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor) -> None:
    names = model.encode_names(NAMES)
    output = model.train()(images, boxes, is_box, names, names, torch.arange(3))
    training_like_loss(output).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    silent = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]  # type: ignore[union-attr]
    assert silent == []


def test_no_parameter_is_a_scalar(model: SemanticSam) -> None:
    assert [name for name, parameter in model.named_parameters() if parameter.dim() == 0] == []


def test_checkpointing_changes_no_gradient(model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor) -> None:
    twin = SemanticSam(replace(model.settings, activation_checkpointing=True))
    twin.load_state_dict(model.state_dict())
    gradients = []
    for one in (model.train(), twin.train()):
        names = one.encode_names(NAMES)
        training_like_loss(one(images, boxes, is_box, names, names, torch.arange(3))).backward()
        gradients.append([parameter.grad for parameter in one.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_precision_stays_close_to_full(
    model: SemanticSam, images: Tensor, boxes: Tensor, is_box: Tensor, dtype: torch.dtype
) -> None:
    full = answer(model, images, boxes, is_box).prompts[-1]
    with torch.autocast("cpu", dtype):
        mixed = answer(model, images, boxes, is_box).prompts[-1]
    cast = answer(model.to(dtype), images, boxes, is_box).prompts[-1]
    for half in (mixed, cast):
        assert half.boxes_cxcywh.dtype == half.object_logits.dtype == torch.float32
        assert (half.boxes_cxcywh - full.boxes_cxcywh).abs().max() < 0.03
        scale = full.mask_logits().std()
        assert (half.mask_logits().float() - full.mask_logits()).abs().mean() < 0.05 * scale


def test_untrained_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (SemanticSam.untrained("debug", seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.patches.weight"], other["backbone.patches.weight"])


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="no preset 'huge', one of debug, swin_tiny, swin_large"):
        SemanticSam.untrained("huge")


def test_a_saved_model_is_loaded_as_it_was(model: SemanticSam, tmp_path: Path) -> None:
    model.save(tmp_path)
    loaded = SemanticSam.load(tmp_path)
    assert loaded.settings == model.settings
    assert not loaded.training
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_weights_that_do_not_fit_are_named(model: SemanticSam, tmp_path: Path) -> None:
    model.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["stranger"] = weights.pop("mask_decoder.norm.bias")
    weights["prompt_encoder.levels.weight"] = torch.zeros(7, 64)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "files.json").unlink()
    with pytest.raises(ValueError, match=r"3 weight\(s\) do not fit") as error:
        SemanticSam.load(tmp_path)
    assert "missing: mask_decoder.norm.bias" in str(error.value)
    assert "unexpected: stranger" in str(error.value)
    assert "prompt_encoder.levels.weight: [7, 64] instead of [6, 64]" in str(error.value)


def test_a_folder_without_a_checkpoint_is_named(model: SemanticSam, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml: no such file; .* is not a checkpoint"):
        SemanticSam.load(tmp_path)
    model.save(tmp_path)
    (tmp_path / "files.json").unlink()
    (tmp_path / "config.yaml").write_text("training: {}\n")
    with pytest.raises(ConfigError, match="no section `model`"):
        SemanticSam.load(tmp_path)
    (tmp_path / "config.yaml").write_text("model: {hiden_dim: 64}\n")
    with pytest.raises(ConfigError, match="hiden_dim: unknown setting"):
        SemanticSam.load(tmp_path)


def training_like_loss(output: ModelOutput) -> Tensor:
    """A number that depends on all that training looks at."""
    total = torch.zeros(())
    for layer in [*output.prompts, *output.generic, output.proposals]:
        tensors = [layer.mask_logits(), *(getattr(layer, name) for name in FIELDS)]
        total = total + sum(tensor.square().sum() / max(tensor.numel(), 1) for tensor in tensors)
    return total
