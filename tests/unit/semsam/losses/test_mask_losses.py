from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.losses import mask_losses
from semsam.losses.mask_losses import (
    EmbeddedPairs,
    PairTruth,
    PointCounts,
    embedded_masks,
    importance_points,
    point_losses,
)
from semsam.losses.points import KeyedPoints
from semsam.model.predictions import Predictions
from semsam.ops.point_sampling import LabelMaps, sample_maps

COUNTS = PointCounts.of(num_points=20, oversample=3, importance=0.75)


@pytest.fixture
def truth() -> PairTruth:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (2, 16, 16), generator=generator, dtype=torch.int32)
    columns = (torch.rand((5, 6), generator=generator) < 0.5).float()
    columns[:, 0] = 0
    columns[4] = 0  # An empty mask.
    return PairTruth(LabelMaps.of(labels), torch.tensor([0, 0, 1, 1, 1]), columns)


@pytest.fixture
def maps() -> Tensor:
    return torch.randn((5, 8, 8), generator=torch.Generator().manual_seed(1)).mul(3).requires_grad_()


def draw():
    return KeyedPoints(0, torch.device("cpu")).losses(0, 0)


def given(maps: Tensor, *, cut: int = 0) -> list[EmbeddedPairs]:
    """Pieces whose maps are `maps`: the first `cut` of them, and the others."""
    one_hot = torch.eye(len(maps))
    return [EmbeddedPairs(rows, maps) for rows in (one_hot[:cut], one_hot[cut:]) if len(rows)]


def dense(truth: PairTruth) -> Tensor:
    labels = [truth.labels.image(image) for image in truth.image.tolist()]
    return torch.stack([column[label] for column, label in zip(truth.columns, labels, strict=True)])


def obvious(maps: Tensor, truth: PairTruth) -> tuple[Tensor, Tensor]:
    points = draw()(5, COUNTS.candidates + 5)
    kept = sample_maps(maps, points[:, : COUNTS.candidates]).abs().argsort(1)[:, : COUNTS.uncertain]
    chosen = points[:, : COUNTS.candidates].gather(1, kept[..., None].expand(-1, -1, 2))
    points = torch.cat([chosen, points[:, COUNTS.candidates :]], dim=1)
    logits, values = sample_maps(maps, points), sample_maps(dense(truth), points)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * values).sum(1) + 1) / (p.sum(1) + values.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1), dice


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("block", [1, 2 * COUNTS.candidates, 1000])
def test_losses_and_gradient_equal_dense_ones_in_blocks_of_any_size(
    block: int, cut: int, maps: Tensor, truth: PairTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_losses, "BLOCK_POINTS_CPU", block)
    monkeypatch.setattr(mask_losses, "BLOCK_PIXELS_CPU", 2 * block)
    found, expected = point_losses(given(maps, cut=cut), truth, draw(), COUNTS), obvious(maps, truth)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)
    upstream = [torch.randn(5), torch.randn(5)]
    (mine,), (other,) = (torch.autograd.grad(losses, [maps], upstream) for losses in (found, expected))
    torch.testing.assert_close(mine, other)
    assert mine.any()


@pytest.mark.parametrize("block", [1, 2 * COUNTS.candidates, 1000])
def test_gradients_of_embeddings_equal_those_through_their_maps(
    block: int, truth: PairTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_losses, "BLOCK_POINTS_CPU", block)
    monkeypatch.setattr(mask_losses, "BLOCK_PIXELS_CPU", 2 * block)
    embeddings, features = torch.randn(5, 3, requires_grad=True), torch.randn(3, 8, 8, requires_grad=True)
    upstream = [torch.randn(5), torch.randn(5)]
    pieces = [EmbeddedPairs(embeddings[:2], features), EmbeddedPairs(embeddings[2:], features)]
    losses = (
        point_losses(pieces, truth, draw(), COUNTS),
        obvious(torch.einsum("mc,chw->mhw", embeddings, features), truth),
    )
    mine, other = (torch.autograd.grad(one, [embeddings, features], upstream) for one in losses)
    for gradient, expected in zip(mine, other, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_the_gradient_of_one_loss_alone(maps: Tensor, truth: PairTruth) -> None:
    for loss in range(2):
        (mine,), (other,) = (
            torch.autograd.grad(losses[loss].sum(), [maps])
            for losses in (point_losses(given(maps), truth, draw(), COUNTS), obvious(maps, truth))
        )
        torch.testing.assert_close(mine, other)


def test_a_perfect_prediction_has_hardly_any_loss_even_of_an_empty_mask(truth: PairTruth) -> None:
    bce, dice = point_losses(given((dense(truth) * 2 - 1) * 100), truth, draw(), COUNTS)
    # Between a pixel inside and one outside, no logit is the truth's own blend of zero and one.
    assert dice[4] == 0
    assert bce[4] == 0
    assert (dice < 0.5).all()


def test_importance_points_lie_where_the_prediction_is_unsure(maps: Tensor) -> None:
    at, logits = importance_points(maps.detach(), draw(), COUNTS)
    torch.testing.assert_close(logits, sample_maps(maps.detach(), at))
    uniform = sample_maps(maps.detach(), torch.rand(5, 1000, 2) * 2 - 1)
    assert (logits[:, : COUNTS.uncertain].abs().max(1).values < uniform.abs().median(1).values).all()


@pytest.mark.parametrize(("importance", "oversample"), [(0.0, 3.0), (1.0, 1.0), (1.0, 3.0), (0.0, 0.0)])
def test_any_share_of_importance_points_is_legal(
    importance: float, oversample: float, maps: Tensor, truth: PairTruth
) -> None:
    counts = PointCounts.of(20, oversample, importance)
    bce, dice = point_losses(given(maps), truth, draw(), counts)
    (gradient,) = torch.autograd.grad((bce + dice).sum(), [maps])
    assert gradient.isfinite().all()


def test_maps_and_points_of_embeddings_agree_with_the_predicted_maps() -> None:
    features = torch.randn(2, 4, 6, 7).bfloat16()
    nothing = torch.zeros(2, 3, 0)
    layers = [
        Predictions(
            torch.randn(2, 3, 4).bfloat16(), features, torch.zeros(2, 3, 4), torch.zeros(2, 3), nothing, nothing
        )
        for _ in range(2)
    ]
    first, second = embedded_masks(layers)
    assert first.features is second.features  # Converted once for all layers.
    points = torch.rand(2, 9, 2) * 2 - 1
    for layer, masks in zip(layers, (first, second), strict=True):
        exact = torch.einsum("bqc,bchw->bqhw", layer.mask_embeddings.float(), features.float())
        pairs = masks.pairs(1, torch.tensor([2, 0, 1]))
        assert pairs.shape() == (3, 6, 7)
        torch.testing.assert_close(pairs.maps(slice(1, 3)), exact[1, [0, 1]])
        for image in range(2):
            torch.testing.assert_close(
                masks.at(points)[image], sample_maps(exact[image], points[image].expand(3, -1, -1))
            )
