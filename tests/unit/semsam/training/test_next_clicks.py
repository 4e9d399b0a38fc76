"""Further rounds of clicks: where they fall, and what they are to find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.config import config_values, parse_config
from semsam.data.prompts import CLICK_RADIUS
from semsam.data.reader import Reader
from semsam.data.sample import Batch, Sample
from semsam.losses.targets import Targets
from semsam.model.predictions import Predictions
from semsam.model.prompt_encoder import POSITIVE, FurtherTokens
from semsam.training.next_clicks import corrections, in_rounds, next_clicks
from semsam.training.recipe import Recipe
from semsam.training.train import make_step
from semsam.training.training_data import TrainingData

MakeRecipe = Callable[..., Recipe]
SIZE, STRIDE, LEVELS, NUM_PROMPTS = 128, 4, 6, 20
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(make_recipe: MakeRecipe) -> Recipe:
    values = config_values(make_recipe(steps=2, global_batch=8, click_rounds=2))
    values["data"]["plan"]["stages"][0]["weights"] = {"coco_panoptic": 2, "objects365": 1, "sa1b": 1}
    values["data"]["sample"]["prompts"]["num_prompts"] = NUM_PROMPTS
    values["data"]["sample"]["augmentation"]["crop_size"] = SIZE
    return parse_config(Recipe, values, "test")


@pytest.fixture(scope="module")
def batch(recipe: Recipe) -> Batch:
    """Samples with masks, with boxes alone, and without any region."""
    training_data, training = TrainingData.of(recipe), recipe.training
    reader = Reader(
        training_data.plan, training_data.splits, recipe.data.sample, training.seed, 0, 1, 1, 0, recipe.data.reader
    )
    with reader:
        (found,) = next(reader)
    assert {len(sample.regions) > 0 for sample in found.samples} == {True, False}
    assert {sample.dataset for sample in found.samples} == {"coco_panoptic", "objects365", "sa1b"}
    return found


def masks_of(sample: Sample) -> np.ndarray:
    return (
        sample.atoms.table[sample.atoms.labels].transpose(2, 0, 1) if len(sample.regions) else np.zeros((0, SIZE, SIZE))
    )


def answers(masks: np.ndarray) -> Predictions:
    """Predictions whose masks at 1/4 of the image are the given ones: a pixel embedding for every pixel."""
    images, queries, height, width = masks.shape
    size = height * width
    nothing = torch.zeros(images, queries)
    return Predictions(
        mask_embeddings=torch.from_numpy(masks.reshape(images, queries, size) * 2.0 - 1).float(),
        mask_features=torch.eye(size).reshape(1, size, height, width).expand(images, -1, -1, -1),
        boxes_cxcywh=nothing[..., None].expand(-1, -1, 4),
        iou_predictions=nothing,
        object_logits=nothing[..., None],
        part_logits=nothing[..., None],
    )


def ask_again(batch: Batch, recipe: Recipe, said: np.ndarray, number: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the prompts of round `number` after these answers to the first one's, and which are boxes."""
    targets = Targets.of(in_rounds(batch, number + 1), TrainingData.of(recipe).vocabulary, CPU)
    before = torch.from_numpy(batch.prompt_boxes_cxcywh), torch.from_numpy(batch.prompt_is_box)
    boxes, is_box = next_clicks(answers(said), *before, targets, 0, number)
    return boxes.numpy(), is_box.numpy()


def saying(masks: dict[tuple[int, int, int], np.ndarray], batch: Batch) -> np.ndarray:
    """Answers that are empty but for the given (image, prompt, level)."""
    said = np.zeros((len(batch.samples), NUM_PROMPTS, LEVELS, SIZE // STRIDE, SIZE // STRIDE), bool)
    for place, mask in masks.items():
        said[place] = mask
    return said.reshape(len(said), NUM_PROMPTS * LEVELS, *said.shape[3:])


def with_masks(batch: Batch) -> list[tuple[int, int, np.ndarray]]:
    """(image, prompt, mask asked for) of all prompts that can be clicked again, for masks that no grid misses."""
    found = []
    for image, sample in enumerate(batch.samples):
        masks = masks_of(sample)
        for prompt, asked in enumerate(batch.prompt_asked[image].tolist()):
            if asked >= 0 and sample.regions.has_mask[asked] and min(_offsets(masks[asked])) > 0:
                found.append((image, prompt, masks[asked]))
    assert len(found) > NUM_PROMPTS
    return found


def _offsets(mask: np.ndarray) -> list[int]:
    """Pixels of a mask on each of the grids of every fourth pixel."""
    return [int(mask[top::STRIDE, left::STRIDE].sum()) for top in range(STRIDE) for left in range(STRIDE)]


def pixel(box: np.ndarray) -> tuple[int, int]:
    x, y = box[:2] * SIZE
    assert x == pytest.approx(round(x), abs=1e-3)
    return round(float(y)), round(float(x))


def test_a_batch_in_rounds_asks_for_each_region_alone(batch: Batch) -> None:
    twice = in_rounds(batch, 3)
    n = NUM_PROMPTS
    assert np.array_equal(twice.prompt_targets[:, :n], batch.prompt_targets)
    for start in (n, 2 * n):
        assert np.array_equal(twice.prompt_targets[:, start : start + n, 0], batch.prompt_asked)
        assert (twice.prompt_targets[:, start : start + n, 1:] == -1).all()
    for name in ("prompt_asked", "prompt_valid", "prompt_is_box", "prompt_boxes_cxcywh"):
        assert np.array_equal(getattr(twice, name)[:, 2 * n :], getattr(batch, name))
    assert np.array_equal(in_rounds(batch, 1).prompt_targets, batch.prompt_targets)


def test_a_click_falls_into_what_the_best_answer_missed(batch: Batch, recipe: Recipe) -> None:
    said, halves = {}, {}
    for image, prompt, mask in with_masks(batch):
        ys, xs = np.nonzero(mask)
        found = mask & (np.arange(SIZE) <= np.median(xs))
        # A second answer overlaps less: what it finds is missed all the same.
        said[image, prompt, 4] = found[2::STRIDE, 2::STRIDE]
        said[image, prompt, 1] = (mask & (np.arange(SIZE)[:, None] < ys.min() + 3))[2::STRIDE, 2::STRIDE]
        halves[image, prompt] = mask, said[image, prompt, 4]
    boxes, is_box = ask_again(batch, recipe, saying(said, batch))
    in_missed = []
    for (image, prompt), (mask, found) in halves.items():
        y, x = pixel(boxes[image, prompt])
        assert mask[y, x]
        in_missed.append(not found[y // STRIDE, x // STRIDE])
        assert boxes[image, prompt, 2:] == pytest.approx(2 * CLICK_RADIUS / SIZE)
        assert not is_box[image, prompt]
    assert np.mean(in_missed) > 0.95  # A mask of a few pixels may have none outside on the grid that was drawn.


def test_where_nothing_is_missed_any_pixel_of_the_region_is_clicked(batch: Batch, recipe: Recipe) -> None:
    everything = saying({}, batch) | True
    boxes, _ = ask_again(batch, recipe, everything)
    clicks = [pixel(boxes[image, prompt]) for image, prompt, _ in with_masks(batch)]
    assert all(mask[click] for click, (_, _, mask) in zip(clicks, with_masks(batch), strict=True))
    assert len(set(clicks)) > len(clicks) / 2


def test_what_cannot_be_clicked_is_asked_in_the_same_way_again(batch: Batch, recipe: Recipe) -> None:
    boxes, is_box = ask_again(batch, recipe, saying({}, batch))
    same = 0
    for image, sample in enumerate(batch.samples):
        if not sample.regions.has_mask.any():
            same += 1
            assert np.array_equal(boxes[image], batch.prompt_boxes_cxcywh[image])
            assert np.array_equal(is_box[image], batch.prompt_is_box[image])
    assert same >= 2


def test_clicks_depend_on_sample_and_round_and_not_on_the_batch(batch: Batch, recipe: Recipe) -> None:
    together, _ = ask_again(batch, recipe, saying({}, batch))
    for image, sample in enumerate(batch.samples[:3]):
        alone = Batch.of([sample], step=5)
        boxes, _ = ask_again(alone, recipe, saying({}, alone))
        assert np.array_equal(boxes[0], together[image])
    later, _ = ask_again(batch, recipe, saying({}, batch), number=2)
    assert not np.array_equal(later, together)


def correct(batch: Batch, recipe: Recipe, said: np.ndarray, number: int = 1) -> tuple[FurtherTokens, FurtherTokens]:
    targets = Targets.of(in_rounds(batch, number + 1), TrainingData.of(recipe).vocabulary, CPU)
    return corrections(answers(said), NUM_PROMPTS, targets, 0, number)


def test_a_correction_falls_on_what_is_wrong_and_says_on_which_side(batch: Batch, recipe: Recipe) -> None:
    said, halves = {}, {}
    for image, prompt, mask in with_masks(batch):
        found = np.roll(mask, 12, axis=1)  # Something is missed, and something else is too much.
        said[image, prompt, 3] = found[2::STRIDE, 2::STRIDE]
        halves[image, prompt] = mask, said[image, prompt, 3]
    clicks, _ = correct(batch, recipe, saying(said, batch))
    sides = []
    for (image, prompt), (mask, found) in halves.items():
        if not clicks.valid[image, prompt, 0]:
            continue
        y, x = pixel(clicks.boxes_cxcywh[image, prompt, 0].numpy())
        assert bool(clicks.kinds[image, prompt, 0] == POSITIVE) == mask[y, x]
        assert found[y // STRIDE, x // STRIDE] != mask[y, x]
        sides.append(mask[y, x])
    assert len(sides) > NUM_PROMPTS
    assert 0.2 < np.mean(sides) < 0.9


def test_what_is_right_or_has_no_mask_is_not_corrected(batch: Batch, recipe: Recipe) -> None:
    targets = Targets.of(in_rounds(batch, 2), TrainingData.of(recipe).vocabulary, CPU)
    nothing = saying({}, batch)
    clicks, masks = correct(batch, recipe, nothing)
    for image, sample in enumerate(batch.samples):
        for prompt, asked in enumerate(batch.prompt_asked[image].tolist()):
            if asked < 0 or not sample.regions.has_mask[asked] or not targets.teaches_mask_host[image, asked]:
                assert not clicks.valid[image, prompt].any()
                assert not masks.valid[image, prompt].any()
    assert (clicks.kinds[clicks.valid] == POSITIVE).all()  # Where nothing is said nothing is too much.


def test_a_last_mask_comes_with_half_of_the_samples_and_is_the_best_levels(batch: Batch, recipe: Recipe) -> None:
    shown = []
    for image, prompt, mask in with_masks(batch):
        said = saying({(image, prompt, 2): mask[2::STRIDE, 2::STRIDE]}, batch)
        for number in range(1, 9):
            _, masks = correct(batch, recipe, said, number)
            shown.append(bool(masks.valid[image, prompt, 0]))
            if shown[-1]:
                content = masks.contents[image, prompt, 0].reshape(SIZE // STRIDE, SIZE // STRIDE)
                inside = torch.from_numpy(mask[2::STRIDE, 2::STRIDE].copy())
                assert content[inside].mean() > 2 * content[~inside].mean()
        break
    assert {True, False} == set(shown)


def test_a_step_of_corrections_reaches_every_weight_and_needs_rounds(batch: Batch, recipe: Recipe) -> None:
    values = config_values(recipe)
    values["model"]["overrides"] = dict(values["model"]["overrides"] or {}) | {"further_clicks": True}
    values["training"]["click_rounds"] = 3
    corrected = parse_config(Recipe, values, "test")
    step = make_step(corrected, TrainingData.of(corrected).vocabulary)
    counts = torch.from_numpy(step.count_targets(batch)).float()
    loss, _ = step(step.to_device(batch, CPU), counts)
    loss.backward()
    assert [name for name, p in step.named_parameters() if p.requires_grad and p.grad is None] == []
    further = step.model.prompt_encoder.further_kinds
    assert further is not None
    assert (further.weight.grad.abs().sum(dim=1) > 0).all()
    values["training"]["click_rounds"] = 1
    with pytest.raises(ValueError, match="training.click_rounds: 1 teaches no further clicks"):
        parse_config(Recipe, values, "test")


def test_a_step_in_rounds_has_the_loss_of_every_round_and_reaches_every_weight(batch: Batch, recipe: Recipe) -> None:
    step = make_step(recipe, TrainingData.of(recipe).vocabulary)
    once = make_step(replace(recipe, training=replace(recipe.training, click_rounds=1)), step.vocabulary)
    counts = {rounds: one.count_targets(batch) for rounds, one in ((1, once), (2, step))}
    num_asked = int((batch.prompt_asked >= 0).sum())
    assert counts[2][0] == counts[1][0] + num_asked
    loss, terms = step(step.to_device(batch, CPU), torch.from_numpy(counts[2]).float())
    loss.backward()
    assert sum(term.item() for term in terms.values()) == pytest.approx(loss.item(), rel=1e-5)
    assert [name for name, p in step.named_parameters() if p.requires_grad and p.grad is None] == []
    ones = torch.ones(len(counts[1]))
    first = once(once.to_device(batch, CPU), ones)[1]["click/box_l1"]
    both = step(step.to_device(batch, CPU), ones)[1]["click/box_l1"]
    assert both > first
