"""The criterion against a slow and obvious one: dense masks, grid_sample, all permutations, loops over everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from semsam.data.atoms import AtomMap
from semsam.data.sample import Batch, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.criterion import Criterion, CriterionSettings, LossWeights
from semsam.losses.denoising import Noise
from semsam.losses.points import DENOISING_LAYERS, GENERIC_LAYERS, PROPOSAL_LAYERS, KeyedPoints
from semsam.losses.router import route
from semsam.losses.targets import NORMALIZERS, Targets, count_targets
from semsam.model.predictions import ModelOutput, Predictions

CPU = torch.device("cpu")
SEED = 3
LEVELS = 6
NUM_POINTS = 40
SETTINGS = CriterionSettings(num_points=NUM_POINTS)
MIXED = ["pascal_part", "sa1b", "objects365", "paco"]
NOISE = Noise(num_queries=10, scale=0.4, seed=SEED)
BATCHES = [["sa1b"], ["coco_panoptic", "objects365"], ["partimagenet", "", "ade20k"], MIXED]

MakeBatch = Callable[..., Batch]
MakeOutput = Callable[..., ModelOutput]


def evaluate(batch: Batch, output: ModelOutput, vocabulary: JointVocabulary, settings: CriterionSettings = SETTINGS):
    noise = NOISE if output.denoising else None
    normalizers = torch.from_numpy(count_targets(batch, settings.click_matching == "many_to_one", noise))
    return Criterion(settings)(output, Targets.of(batch, vocabulary, CPU, noise), normalizers, SEED)


@pytest.mark.parametrize("datasets", BATCHES, ids=lambda names: "+".join(name or "padding" for name in names))
def test_loss_and_gradients_equal_the_obvious_ones(
    datasets: list[str], make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(datasets, num_masks=9), make_output(len(datasets), num_denoising=10)
    found = evaluate(batch, output, vocabulary)
    expected = obvious_terms(batch, output, vocabulary, SETTINGS)
    assert {name: term.item() for name, term in found.terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}, rel=2e-5, abs=1e-6
    )
    assert found.loss.item() == pytest.approx(sum(term.item() for term in found.terms.values()), rel=1e-6)
    leaves = list(tensors_of(output))
    ours = torch.autograd.grad(found.loss, leaves)
    theirs = torch.autograd.grad(sum(expected.values()), leaves, allow_unused=True, materialize_grads=True)
    for mine, obvious in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, obvious, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_more_masks_than_levels_under_a_click_are_matched_six_at_a_time(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(["sa1b"], num_masks=40), make_output(1, num_layers=1)
    assert (batch.prompt_targets >= 0).all(-1).any()
    found, expected = evaluate(batch, output, vocabulary), obvious_terms(batch, output, vocabulary, SETTINGS)
    assert found.loss.item() == pytest.approx(sum(term.item() for term in expected.values()), rel=1e-5)


@pytest.mark.parametrize("matching", ["many_to_many", "many_to_one"])
def test_losses_of_a_split_batch_sum_to_the_whole_batch_s(
    matching: str, make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    settings = replace(SETTINGS, click_matching=matching)
    batch, output = make_batch(MIXED), make_output(4, num_denoising=10)
    whole = evaluate(batch, output, vocabulary, settings)
    normalizers = torch.from_numpy(count_targets(batch, matching == "many_to_one", NOISE))
    for pieces in ([[0], [1], [2], [3]], [[0, 2], [3, 1]], [[3, 2, 1], [0]]):
        parts = []
        for piece in pieces:
            part = Batch.of([batch.samples[i] for i in piece], step=0)
            targets = Targets.of(part, vocabulary, CPU, NOISE)
            parts.append(Criterion(settings)(select(output, piece), targets, normalizers, SEED))
        assert sum(part.loss.item() for part in parts) == pytest.approx(whole.loss.item(), rel=1e-6)
        for name, term in whole.terms.items():
            assert sum(part.terms[name].item() for part in parts) == pytest.approx(term.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("datasets", [[""], ["", ""], ["sa1b"], ["paco"], ["coco_panoptic", ""]])
def test_samples_without_regions_give_finite_gradients_to_every_prediction(
    datasets: list[str], make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    output = make_output(len(datasets), num_denoising=10)
    found = evaluate(make_batch(datasets, num_masks=0), output, vocabulary)
    assert not any(term for name, term in found.terms.items() if name.startswith("denoising/"))
    gradients = torch.autograd.grad(found.loss, list(tensors_of(output)))
    assert all(gradient.isfinite().all() for gradient in gradients)
    teaches = any(dataset in ("paco", "coco_panoptic") for dataset in datasets)
    assert (found.loss.item() > 0) == teaches  # An image without any of its names is all negatives.
    assert any(gradient.any() for gradient in gradients) == teaches


def over_a_half(output: ModelOutput, over_left: Tensor) -> ModelOutput:
    """The output with masks of generic queries and proposals that are the image's left or its right half."""
    side = output.generic[0].mask_features.shape[3]
    with torch.no_grad():
        output.generic[0].mask_features[:, 0] = torch.where(torch.arange(side) < side // 2, 9.0, -9.0)
        for layer in (*output.generic, output.proposals):
            layer.mask_embeddings.zero_()
            layer.mask_embeddings[..., 0] = torch.where(over_left, 1.0, -1.0)[: layer.mask_embeddings.shape[1]]
    return output


def test_what_is_found_in_void_or_crowds_is_no_negative(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch = make_batch(["coco_panoptic"], num_masks=0)
    labels = np.zeros((64, 64), np.uint16)
    labels[:, :32] = 1
    atoms = AtomMap(labels, np.zeros((2, 0), bool))
    plain = replace(batch, samples=(replace(batch.samples[0], atoms=atoms),))
    void = replace(batch, samples=(replace(batch.samples[0], atoms=atoms, ignored=np.array([False, True])),))
    queries = make_output(1).generic[0].boxes_cxcywh.shape[1]
    over_left = torch.arange(queries) % 3 == 0
    found = []
    for some, settings in ((plain, SETTINGS), (void, SETTINGS), (void, replace(SETTINGS, ignored_share=1.0))):
        output = over_a_half(make_output(1), over_left)
        loss = evaluate(some, output, vocabulary, settings).loss
        leaves = [layer.object_logits for layer in (*output.generic, output.proposals)]
        found.append((loss.item(), torch.autograd.grad(loss, leaves)))
    (all_negative, before), (loss, after), (as_before, again) = found
    assert 0 < loss < all_negative
    assert as_before == all_negative
    for plain_gradient, gradient, same in zip(before, after, again, strict=True):
        is_left = over_left[: gradient.shape[1]]
        assert not gradient[:, is_left].any()
        assert plain_gradient[:, is_left].any()
        torch.testing.assert_close(gradient[:, ~is_left], plain_gradient[:, ~is_left])
        torch.testing.assert_close(same, plain_gradient)


def test_a_region_that_is_found_in_a_crowd_is_taught_all_the_same(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch = make_batch(["coco_panoptic"], num_masks=3)
    sample = batch.samples[0]
    everywhere = np.ones(len(sample.atoms.table), bool)
    losses = []
    for ignored in (None, everywhere):
        output = make_output(1)
        found = evaluate(replace(batch, samples=(replace(sample, ignored=ignored),)), output, vocabulary)
        (gradient,) = torch.autograd.grad(found.loss, [output.generic[-1].object_logits])
        losses.append((found.terms["generic/mask_bce"].item(), (gradient != 0).any(dim=2).sum().item()))
    (mask_bce, taught), (same_mask_bce, matched) = losses
    assert same_mask_bce == mask_bce
    assert matched == 3 < taught


def test_a_prediction_that_is_not_finite_and_not_asked_for_does_no_harm(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    output = make_output(1)
    with torch.no_grad():
        output.generic[0].iou_predictions.fill_(math.nan)
    found = evaluate(make_batch(["sa1b"]), output, vocabulary)
    (gradient,) = torch.autograd.grad(found.loss, [output.generic[0].iou_predictions])
    assert found.loss.isfinite()
    assert not gradient.any()


def test_a_prediction_that_is_not_finite_where_it_counts_shows_in_the_loss(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    output = make_output(1)
    with torch.no_grad():
        output.generic[-1].boxes_cxcywh.fill_(math.nan)
    assert not evaluate(make_batch(["ade20k"]), output, vocabulary).loss.isfinite()


def test_no_prompts_and_no_names_are_legal(make_batch: MakeBatch, make_output: MakeOutput) -> None:
    batch, output = make_batch(["sa1b", ""]), make_output(2, num_prompts=0)
    batch = replace(
        batch, **{name: getattr(batch, name)[:, :0] for name in ("prompt_targets", "prompt_asked", "prompt_valid")}
    )
    nameless = JointVocabulary.of({})
    without = [
        replace(p, object_logits=p.object_logits[..., :0], part_logits=p.part_logits[..., :0]) for p in every(output)
    ]
    output = ModelOutput(without[:2], without[2:4], without[4])
    found = evaluate(batch, output, nameless)
    found.loss.backward()
    assert found.loss.item() == 0


def test_half_precision_predictions_give_a_finite_float32_loss(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(MIXED), make_output(4)
    exact = evaluate(batch, output, vocabulary)
    halves = [replace(p, **{f.name: getattr(p, f.name).bfloat16() for f in fields(p)}) for p in every(output)]
    with torch.autocast("cpu", torch.bfloat16):
        found = evaluate(batch, ModelOutput(halves[:2], halves[2:4], halves[4]), vocabulary)
    assert found.loss.dtype == torch.float32
    assert found.loss.item() == pytest.approx(exact.loss.item(), rel=0.05)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.loss, list(tensors_of(output))))


def test_extreme_predictions_give_finite_losses_and_gradients(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    output = make_output(4)
    with torch.no_grad():
        for layer in every(output):
            layer.mask_embeddings.mul_(1e4)
            layer.object_logits.mul_(1e4)
            layer.part_logits.mul_(1e4)
            layer.boxes_cxcywh.zero_()
    found = evaluate(make_batch(MIXED), output, vocabulary)
    assert found.loss.isfinite()
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.loss, list(tensors_of(output))))


def test_every_term_is_named_and_weighted(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(MIXED), make_output(4, num_denoising=10)
    terms = evaluate(batch, output, vocabulary).terms
    shared = {"mask_bce", "mask_dice", "box_l1", "giou", "object", "part"}
    expected = {f"{b}/{t}" for b in ("click", "generic", "proposals") for t in shared} | {"click/iou"}
    assert set(evaluate(batch, make_output(4), vocabulary).terms) == expected
    assert set(terms) == expected | {f"denoising/{t}" for t in shared}
    assert all(term.item() > 0 and not term.requires_grad for term in terms.values())
    doubled = evaluate(batch, output, vocabulary, replace(SETTINGS, weights=LossWeights(mask_dice=10.0))).terms
    for name in terms:
        assert doubled[name].item() == pytest.approx(terms[name].item() * (2 if name.endswith("mask_dice") else 1))


def test_the_weight_of_the_generic_queries_scales_their_terms_alone(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(MIXED), make_output(len(MIXED), num_denoising=10)
    full = evaluate(batch, output, vocabulary).terms
    quarter = evaluate(batch, output, vocabulary, replace(SETTINGS, weights=LossWeights(generic=0.25))).terms
    for name, term in full.items():
        assert quarter[name].item() == pytest.approx(term.item() * (1 if name.startswith("click/") else 0.25))


def test_many_to_one_lets_the_best_level_of_each_layer_answer_for_what_was_clicked(
    make_batch: MakeBatch, make_output: MakeOutput, vocabulary: JointVocabulary
) -> None:
    batch, output = make_batch(["sa1b", "objects365"]), make_output(2)
    settings = replace(SETTINGS, click_matching="many_to_one")
    found = evaluate(batch, output, vocabulary, settings)
    terms = dict.fromkeys(("mask_bce", "mask_dice", "box_l1", "giou"), 0.0)
    for layer, predicted in enumerate(output.prompts):
        draw = KeyedPoints(SEED, CPU).losses(0, layer)
        for i, sample in enumerate(batch.samples):
            for prompt, target in enumerate(sample.prompts.asked):
                levels = []
                for level in range(LEVELS):
                    q = prompt * LEVELS + level
                    bce = dice = torch.zeros(())
                    if sample.dataset == "sa1b":
                        truth = torch.from_numpy(sample.atoms.mask(target)).float()
                        bce, dice = obvious_mask_losses(
                            predicted.mask_logits()[i, q], truth, draw(1, 3 * NUM_POINTS + 10)
                        )
                    l1, giou = obvious_box_losses(predicted.boxes_cxcywh[i, q], sample, target)
                    fit = bce + dice if sample.dataset == "sa1b" else 5 * l1 + 2 * giou
                    levels.append((fit.item(), (bce.item(), dice.item(), l1.item(), giou.item())))
                for name, value in zip(terms, min(levels)[1], strict=True):
                    terms[name] += value
    num_prompts = batch.prompt_targets.shape[1]
    for name, weight, divisor in (("mask_bce", 5, 1), ("mask_dice", 5, 1), ("box_l1", 5, 2), ("giou", 2, 2)):
        expected = weight * terms[name] / (divisor * num_prompts)
        assert found.terms[f"click/{name}"].item() == pytest.approx(expected, rel=1e-5), name
    gradients = torch.autograd.grad(found.loss, list(tensors_of(output)))
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(
    ("field", "value"), [("num_points", 0), ("importance", 1.5), ("oversample", 0.5), ("noise", 2.0)]
)
def test_settings_that_contradict_themselves_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        CriterionSettings(**{field: value})


# The obvious criterion.


def obvious_terms(
    batch: Batch, output: ModelOutput, vocabulary: JointVocabulary, settings: CriterionSettings
) -> dict[str, Tensor]:
    divisors = dict(zip(NORMALIZERS, np.maximum(count_targets(batch, noise=NOISE), 1).tolist(), strict=True))
    points = KeyedPoints(SEED, CPU)
    terms: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        terms[name] = terms.get(name, torch.zeros(())) + settings.weights.of(name) * value

    for branch, layers, first_layer in (
        ("click", output.prompts, 0),
        ("generic", output.generic, GENERIC_LAYERS),
        ("proposals", [output.proposals], PROPOSAL_LAYERS),
        ("denoising", output.denoising, DENOISING_LAYERS),
    ):
        if not layers:
            continue
        counted = "generic" if branch == "proposals" else branch
        for name in LossWeights.__dataclass_fields__.keys() - {"generic"}:
            if branch == "click" or name != "iou":
                add(f"{branch}/{name}", torch.zeros(()))
        for i, sample in enumerate(batch.samples):
            cost = obvious_cost(layers[-1], i, sample, vocabulary, points, with_names=branch != "click")
            lesson = route(sample, vocabulary)
            if branch == "click":
                pairs = click_pairs(cost, sample)
            elif branch == "denoising":
                pairs = [(q, r) for q, r in enumerate(NOISE.regions(sample)) if r >= 0]
            else:
                pairs = list(zip(*linear_sum_assignment(cost.numpy()), strict=True)) if lesson.generic else []
            for number, layer in enumerate(layers):
                maps = layer.mask_logits()[i]
                draw = points.losses(sample.index, first_layer + number)
                for q, r in pairs:
                    l1, giou = obvious_box_losses(layer.boxes_cxcywh[i, q], sample, r)
                    add(f"{branch}/box_l1", l1 / divisors[f"{counted}/boxes"])
                    add(f"{branch}/giou", giou / divisors[f"{counted}/boxes"])
                    if lesson.teaches_mask[r]:
                        truth = torch.from_numpy(sample.atoms.mask(r)).float()
                        drawn = draw(1, 3 * NUM_POINTS + NUM_POINTS // 4)
                        bce, dice = obvious_mask_losses(maps[q], truth, drawn)
                        add(f"{branch}/mask_bce", bce / divisors[f"{counted}/masks"])
                        add(f"{branch}/mask_dice", dice / divisors[f"{counted}/masks"])
                        if branch == "click":
                            iou = (layer.iou_predictions[i, q] - (1 - dice)) ** 2
                            add(f"{branch}/iou", iou / divisors[f"{counted}/masks"])
                for head, logits, names in (
                    ("object", layer.object_logits[i], lesson.objects),
                    ("part", layer.part_logits[i], lesson.parts),
                ):
                    region_of = dict(pairs)
                    for q in range(len(logits)):
                        if q in region_of:
                            if not names.teaches[region_of[q]]:
                                continue
                            positive, counts = names.names[region_of[q]], names.allowed
                        elif branch in ("click", "denoising") or not lesson.generic:
                            continue
                        else:
                            positive, counts = -1, names.exhaustive
                        (counted_names,) = np.nonzero(counts)
                        truth = torch.from_numpy(counted_names == positive)
                        focal = obvious_focal(logits[q, counted_names], truth).sum()
                        add(f"{branch}/{head}", focal / divisors[f"{counted}/{head}s"])
    return terms


@torch.no_grad()
def obvious_cost(
    layer: Predictions, i: int, sample: Sample, vocabulary: JointVocabulary, points: KeyedPoints, with_names: bool
) -> Tensor:
    lesson = route(sample, vocabulary)
    at = points.matcher(sample.index, NUM_POINTS)
    maps = layer.mask_logits()[i]
    truths = [torch.from_numpy(sample.atoms.mask(r)).float() for r in range(len(sample.regions))]
    cost = torch.zeros(len(maps), len(sample.regions))
    for q, r in itertools.product(range(len(maps)), range(len(sample.regions))):
        l1, giou = obvious_box_losses(layer.boxes_cxcywh[i, q], sample, r)
        cost[q, r] = 5 * l1 + 2 * (giou - 1)
        if lesson.teaches_mask[r]:
            bce, dice = compare(maps[q], truths[r], at)
            cost[q, r] += 5 * bce + 5 * dice
        named = []
        for logits, names in ((layer.object_logits, lesson.objects), (layer.part_logits, lesson.parts)):
            if names.names[r] >= 0:
                logit = logits[i, q, names.names[r]]
                named.append(obvious_focal(logit, torch.tensor(True)) - obvious_focal(logit, torch.tensor(False)))
        if with_names and named:
            cost[q, r] += 4 * sum(named) / len(named)
    return cost


def click_pairs(cost: Tensor, sample: Sample) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for prompt, targets in enumerate(sample.prompts.targets):
        targets = targets[targets >= 0]
        block = cost[prompt * LEVELS : (prompt + 1) * LEVELS]
        if len(targets):
            best = min(
                itertools.permutations(range(LEVELS), len(targets)),
                key=lambda levels: sum(block[level, r].item() for level, r in zip(levels, targets, strict=True)),
            )
            pairs += [(prompt * LEVELS + level, int(r)) for level, r in zip(best, targets, strict=True)]
    return pairs


def sampled(image: Tensor, at: Tensor) -> Tensor:
    return F.grid_sample(image[None, None], at[None, None], align_corners=False)[0, 0, 0]


def compare(map_: Tensor, truth: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    logits, values = sampled(map_, at), sampled(truth, at)
    p = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, values)
    return bce, 1 - (2 * (p * values).sum() + 1) / (p.sum() + values.sum() + 1)


def obvious_mask_losses(map_: Tensor, truth: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    candidates, rest = drawn[0, : 3 * NUM_POINTS], drawn[0, 3 * NUM_POINTS :]
    kept = sampled(map_, candidates).abs().argsort()[: NUM_POINTS * 3 // 4]
    return compare(map_, truth, torch.cat([candidates[kept], rest]))


def obvious_box_losses(box: Tensor, sample: Sample, region: int) -> tuple[Tensor, Tensor]:
    target = torch.from_numpy(sample.regions.boxes_cxcywh[region])
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = (
        (b[0] - b[2] / 2, b[1] - b[3] / 2, b[0] + b[2] / 2, b[1] + b[3] / 2) for b in (box, target)
    )
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    union = box[2] * box[3] + target[2] * target[3] - width * height
    hull = (torch.maximum(ax2, bx2) - torch.minimum(ax1, bx1)) * (torch.maximum(ay2, by2) - torch.minimum(ay1, by1))
    giou = width * height / (union + 1e-6) - (hull - union) / (hull + 1e-6)
    return (box - target).abs().sum(), 1 - giou


def obvious_focal(logits: Tensor, truth: Tensor) -> Tensor:
    p = logits.sigmoid()
    return torch.where(truth, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())


def every(output: ModelOutput) -> list[Predictions]:
    return [*output.prompts, *output.generic, output.proposals, *output.denoising]


def tensors_of(output: ModelOutput) -> Iterator[Tensor]:
    seen = set()
    for layer in every(output):
        for f in fields(layer):
            tensor = getattr(layer, f.name)
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def select(output: ModelOutput, images: list[int]) -> ModelOutput:
    def chosen(layer: Predictions) -> Predictions:
        return replace(layer, **{f.name: getattr(layer, f.name)[images] for f in fields(layer)})

    return ModelOutput(
        [chosen(p) for p in output.prompts],
        [chosen(p) for p in output.generic],
        chosen(output.proposals),
        [chosen(p) for p in output.denoising],
    )
