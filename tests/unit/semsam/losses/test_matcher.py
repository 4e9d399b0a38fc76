from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from semsam.data.sample import Batch
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.matcher import (
    CostWeights,
    class_cost,
    geometry_cost,
    mask_costs,
    match_clicks,
    match_levels,
    match_one_to_one,
    pair_every_level,
)
from semsam.losses.targets import Targets

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]


@pytest.mark.parametrize(("k", "t"), [(6, 6), (6, 4), (6, 1), (3, 3), (1, 1), (6, 0), (7, 7)])
def test_match_levels_is_the_best_of_all_assignments(k: int, t: int) -> None:
    cost = torch.randn((5, k, t), generator=torch.Generator().manual_seed(k * 10 + t)) * 10
    levels = match_levels(cost)
    assert levels.shape == (5, t)
    for block, found in zip(cost.numpy(), levels.numpy(), strict=True):
        assert len(set(found.tolist())) == t
        level, target = linear_sum_assignment(block)
        assert block[found, np.arange(t)].sum() == pytest.approx(block[level, target].sum(), abs=1e-5)


def test_match_levels_equals_brute_force_on_ties() -> None:
    cost = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [1.0, -1.0]]])
    (found,) = match_levels(cost).tolist()
    totals = [cost[0, a, 0] + cost[0, b, 1] for a, b in itertools.permutations(range(3), 2)]
    assert cost[0, found[0], 0] + cost[0, found[1], 1] == min(totals)


def test_padding_takes_what_real_targets_leave_over() -> None:
    cost = torch.zeros(1, 3, 3)
    cost[0, :, 1] = torch.tensor([5.0, 1.0, 3.0])
    assert match_levels(cost)[0, 1] == 1


@pytest.mark.parametrize(("k", "t"), [(2, 3), (8, 2)])
def test_more_targets_than_levels_or_too_many_levels_are_refused(k: int, t: int) -> None:
    with pytest.raises(ValueError, match="cannot match"):
        match_levels(torch.zeros(1, k, t))


def test_mask_costs_equal_the_losses_of_every_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, values = torch.randn((2, 5, 30), generator=generator) * 4, torch.rand((2, 30, 3), generator=generator)
    bce, dice = mask_costs(logits, values)
    for b, q, m in itertools.product(range(2), range(5), range(3)):
        x, t = logits[b, q], values[b, :, m]
        p = x.sigmoid()
        assert bce[b, q, m].item() == pytest.approx(F.binary_cross_entropy_with_logits(x, t).item(), rel=1e-5)
        expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        assert dice[b, q, m].item() == pytest.approx(expected.item(), rel=1e-5)


def test_clicks_are_matched_within_their_own_levels(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    batch = make_batch(["sa1b", "", "paco"], num_masks=12)
    targets = Targets.of(batch, vocabulary, CPU)
    n, k = batch.prompt_targets.shape[1], 6
    cost = torch.randn((3, n * k, 12), generator=torch.Generator().manual_seed(1))
    pairs = match_clicks(cost, targets)
    found = list(zip(pairs.image.tolist(), pairs.query.tolist(), pairs.region.tolist(), strict=True))
    assert len({(image, query) for image, query, _ in found}) == len(found) == (batch.prompt_targets >= 0).sum()
    for image, prompt in itertools.product(range(3), range(n)):
        wanted = batch.prompt_targets[image, prompt]
        wanted = wanted[wanted >= 0]
        mine = {(q, r) for i, q, r in found if i == image and q // k == prompt}
        assert sorted(r for _, r in mine) == sorted(wanted)
        block = cost[image, prompt * k : (prompt + 1) * k].numpy()[:, wanted]
        level, column = linear_sum_assignment(block)
        best = {(prompt * k + int(a), int(wanted[b])) for a, b in zip(level, column, strict=True)}
        assert mine == best
    assert pairs.slices() == [(0, slice(0, (pairs.image == 0).sum())), (2, slice((pairs.image == 0).sum(), len(pairs)))]


def test_regions_without_masks_cost_their_boxes_alone(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    targets = Targets.of(make_batch(["objects365"]), vocabulary, CPU)
    boxes = torch.rand(1, 4, 4)
    values = torch.zeros(1, 10, 7)
    one, other = (
        geometry_cost(torch.full((1, 4, 10), fill), boxes, values, targets, CostWeights()) for fill in (-9.0, 9.0)
    )
    assert torch.equal(one, other)


def test_one_to_one_is_hungarian_per_image_that_teaches_it(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    batch = make_batch(["sa1b", "coco_panoptic", "", "paco"], num_masks=5)
    targets = Targets.of(batch, vocabulary, CPU)
    generator = torch.Generator().manual_seed(2)
    costs = [torch.randn((4, 9, 5), generator=generator), torch.randn((4, 3, 5), generator=generator)]
    for cost, pairs in zip(costs, match_one_to_one(costs, targets), strict=True):
        assert sorted(set(pairs.image.tolist())) == [1, 3]
        for image, rows in pairs.slices():
            expected = linear_sum_assignment(cost[image].numpy())
            assert pairs.query[rows].tolist() == expected[0].tolist()
            assert pairs.region[rows].tolist() == expected[1].tolist()


def test_one_to_one_survives_costs_that_are_not_finite(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    targets = Targets.of(make_batch(["coco_panoptic"], num_masks=2), vocabulary, CPU)
    cost = torch.zeros(1, 3, 2)
    cost[0, 0], cost[0, 1] = float("nan"), float("inf")
    (pairs,) = match_one_to_one([cost], targets)
    assert len(pairs) == 2


def test_one_to_one_without_anything_to_match_is_empty(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    targets = Targets.of(make_batch(["sa1b", "", "paco"], num_masks=0), vocabulary, CPU)
    assert [len(pairs) for pairs in match_one_to_one([torch.zeros(3, 4, 1)] * 2, targets)] == [0, 0]


def test_the_names_of_a_part_weigh_as_much_as_the_name_of_an_object(
    make_batch: MakeBatch, vocabulary: JointVocabulary
) -> None:
    targets = Targets.of(make_batch(["paco"]), vocabulary, CPU)
    x, y = len(vocabulary.objects), len(vocabulary.parts)
    sure = class_cost(torch.full((1, 2, x), 9.0), torch.full((1, 2, y), 9.0), targets, CostWeights())
    assert (targets.parts.names >= 0).any()
    assert (targets.parts.names < 0).any()
    torch.testing.assert_close(sure, sure[:, :1, :1].expand_as(sure))
    doubtful = class_cost(torch.full((1, 2, x), 9.0), torch.full((1, 2, y), -9.0), targets, CostWeights())
    assert ((doubtful > sure + 1).any(1) == (targets.parts.names >= 0)).all()


def test_every_level_is_paired_with_the_region_that_was_clicked(
    make_batch: MakeBatch, vocabulary: JointVocabulary
) -> None:
    batch = make_batch(["sa1b", "", "objects365"])
    targets = Targets.of(batch, vocabulary, CPU)
    first, every = pair_every_level(targets, 6)
    assert len(every) == 6 * len(first) == 6 * 2 * batch.prompt_targets.shape[1]
    assert every.query.view(-1, 6)[:, 0].tolist() == first.query.tolist()
    assert first.region.tolist() == batch.prompt_asked[[0, 2]].flatten().tolist()
    assert (batch.prompt_asked[0] != batch.prompt_targets[0, :, 0]).any()
    assert set(every.with_masks(targets).image.tolist()) == {0}
    assert every.rows_with_masks(targets).tolist() == list(range(24))
