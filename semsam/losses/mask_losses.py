"""Mask losses at importance points, computed pair by pair without keeping maps, masks or intermediate results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from semsam.losses.points import Draw
from semsam.model.predictions import Predictions
from semsam.ops.point_sampling import (
    LabelMaps,
    most_uncertain,
    region_values,
    sample_features,
    sample_maps,
    sample_maps_backward,
)

# Candidate points handled at once: on a CPU what fits its cache, elsewhere what bounds memory.
BLOCK_POINTS_CPU = 2**19
BLOCK_POINTS = 2**25


class MaskSource(Protocol):
    """The mask predictions of one layer, as the losses ask for them."""

    def pairs(self, image: int, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m h w"]:
        """The mask logits of some queries of one image; differentiable."""
        ...

    def at(self, points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b q p"]:
        """The mask logits of all queries at the points of their image."""
        ...


@dataclass(frozen=True)
class EmbeddedMasks:
    """Mask embeddings and pixel embeddings: maps are made when asked for, and points without maps."""

    embeddings: Float[Tensor, "b q c"]
    features: Float[Tensor, "b c h w"]
    # `features`, image by image: split once, so that the gradients of all layers meet before they are stacked.
    per_image: tuple[Float[Tensor, "c h w"], ...]

    def pairs(self, image: int, queries: Int64[Tensor, " m"]) -> Float[Tensor, "m h w"]:
        features = self.per_image[image]
        chosen = self.embeddings[image].index_select(0, queries)
        return (chosen @ features.flatten(1)).view(len(queries), *features.shape[1:])

    def at(self, points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b q p"]:
        return self.embeddings @ sample_features(self.features, points)


def embedded_masks(layers: Sequence[Predictions]) -> list[MaskSource]:
    """The masks of each layer, in float32; pixel embeddings that layers share are converted and split once."""
    shared: dict[int, tuple[Tensor, tuple[Tensor, ...]]] = {}
    masks: list[MaskSource] = []
    for layer in layers:
        key = id(layer.mask_features)
        if key not in shared:
            features = layer.mask_features.float()
            shared[key] = (features, features.unbind(0))
        masks.append(EmbeddedMasks(layer.mask_embeddings.float(), *shared[key]))
    return masks


@dataclass(frozen=True)
class PointCounts:
    """How many points each matched pair is compared at, and how they are chosen."""

    total: int
    candidates: int  # Uniform ones, of which the most uncertain are kept.
    uncertain: int  # Kept candidates; the other points are uniform.

    @staticmethod
    def of(num_points: int, oversample: float, importance: float) -> PointCounts:
        return PointCounts(num_points, int(num_points * oversample), int(num_points * importance))


@dataclass(frozen=True)
class PairTruth:
    """What the masks of matched pairs are compared with: a column of the label table each."""

    labels: LabelMaps
    image: Int64[Tensor, " m"]
    columns: Float[Tensor, "m a"]  # 1 for the labels that the pair's region covers.


def point_losses(
    maps: Float[Tensor, "m h w"], truth: PairTruth, draw: Draw, counts: PointCounts
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Binary cross-entropy (mean over points) and one minus soft Dice of each pair of a predicted and a true mask.

    Of each pair's points some are the most uncertain of uniform candidates and the rest are uniform (PointRend).  Dice
    adds 1 to both sides of the fraction, so that an empty mask predicted empty has no loss.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _PointLosses.apply
    return apply(maps, truth, draw, counts)


class _PointLosses(torch.autograd.Function):
    """Keeps of every point its position, predicted probability and truth: 16 bytes, no maps.

    The forward pass goes block by block, so that what a block needs on the way stays in the cache.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, truth: PairTruth, draw: Draw, counts: PointCounts) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        m = len(maps)
        points = maps.new_empty((m, counts.total, 2))
        probabilities, truths = maps.new_empty((2, m, counts.total))
        bce, overlap, mass = maps.new_empty((3, m))
        for rows in _blocks(m, block_pairs(counts, maps.device)):
            points[rows], logits = importance_points(maps[rows], draw, counts)
            values = region_values(truth.labels, truth.image[rows], truth.columns[rows], points[rows])
            bce[rows] = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
            p = logits.sigmoid_()
            overlap[rows] = torch.einsum("mp,mp->m", p, values)
            mass[rows] = p.sum(1) + values.sum(1) + 1
            probabilities[rows], truths[rows] = p, values
        ctx.save_for_backward(points, probabilities, truths, overlap, mass)
        ctx.shape = maps.shape[1:]
        return bce, 1 - (2 * overlap + 1) / mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_bce, of_dice = gradients
        points, p, t, overlap, mass = ctx.saved_tensors
        # d dice / d probability = (2 overlap + 1) / mass^2 - truth * 2 / mass, and d probability / d logit = p (1 - p).
        constant = (of_dice * (2 * overlap + 1) / mass**2)[:, None]
        per_truth = (of_dice * 2 / mass)[:, None]
        per_error = (of_bce / points.shape[1])[:, None]
        of_logits = torch.addcmul(p, p, p, value=-1).mul_(torch.addcmul(constant, t, per_truth, value=-1))
        of_logits.addcmul_(p - t, per_error)
        return sample_maps_backward(of_logits, points, ctx.shape), None, None, None


def importance_points(
    maps: Float[Tensor, "m h w"], draw: Draw, counts: PointCounts
) -> tuple[Float[Tensor, "m p 2"], Float[Tensor, "m p"]]:
    """The points of each pair and the logits there."""
    drawn = draw(len(maps), counts.candidates + counts.total - counts.uncertain)
    logits = sample_maps(maps, drawn)
    candidates = logits[:, : counts.candidates]
    kept = most_uncertain(candidates, counts.uncertain)
    pairs_of_floats = drawn.view(torch.int64)[..., 0]  # One 8-byte value per point: gathered at once.
    chosen = torch.cat([pairs_of_floats.gather(1, kept), pairs_of_floats[:, counts.candidates :]], dim=1)
    values = torch.cat([candidates.gather(1, kept), logits[:, counts.candidates :]], dim=1)
    return chosen.view(torch.float32).view(len(maps), counts.total, 2), values


def block_pairs(counts: PointCounts, device: torch.device) -> int:
    """How many pairs are handled at once."""
    return max(1, (BLOCK_POINTS_CPU if device.type == "cpu" else BLOCK_POINTS) // max(1, counts.candidates))


def _blocks(pairs: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, pairs, size)]
