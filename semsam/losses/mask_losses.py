"""Mask losses at importance points, computed pair by pair without keeping maps, masks or intermediate results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from semsam.losses.points import Draw
from semsam.model.predictions import Predictions
from semsam.ops.point_sampling import (
    most_uncertain,
    region_values,
    sample_features,
    sample_maps,
    sample_maps_backward,
)

# Candidate points handled at once: on a CPU what fits its cache, elsewhere what bounds memory.
BLOCK_POINTS_CPU = 2**19
BLOCK_POINTS = 2**26


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


def point_losses(
    maps: Float[Tensor, "m h w"],
    bordered: Int32[Tensor, "h2 w2"],
    columns: Float[Tensor, "m a"],
    draw: Draw,
    counts: PointCounts,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Binary cross-entropy (mean over points) and one minus soft Dice of each pair of a predicted and a true mask.

    `bordered` is the image's label map and `columns[j]` the labels of pair `j`'s region, as in `region_values`.  Of
    each pair's points some are the most uncertain of uniform candidates and the rest are uniform (PointRend).  Dice
    adds 1 to both sides of the fraction, so that an empty mask predicted empty has no loss.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _PointLosses.apply
    return apply(maps, bordered, columns, draw, counts)


class _PointLosses(torch.autograd.Function):
    """Keeps of every point its position, predicted probability and truth: 16 bytes, no maps."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, maps: Tensor, bordered: Tensor, columns: Tensor, draw: Draw, counts: PointCounts
    ) -> tuple[Tensor, Tensor]:
        m, points = len(maps), counts.total
        positions = maps.new_empty((m, points, 2))
        probabilities, truths = maps.new_empty((m, points)), maps.new_empty((m, points))
        bce = maps.new_empty(m)
        for rows in _blocks(m, counts.candidates, maps.device):
            where, logits = importance_points(maps[rows], draw, counts)
            truth = region_values(bordered, columns[rows], where)
            bce[rows] = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
            positions[rows], truths[rows] = where, truth
            torch.sigmoid(logits, out=probabilities[rows])
        overlap = torch.einsum("mp,mp->m", probabilities, truths)
        mass = probabilities.sum(1) + truths.sum(1) + 1
        ctx.save_for_backward(positions, probabilities, truths, overlap, mass)
        ctx.shape = maps.shape[1:]
        ctx.candidates = counts.candidates
        return bce, 1 - (2 * overlap + 1) / mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_bce, of_dice = gradients
        positions, probabilities, truths, overlap, mass = ctx.saved_tensors
        # d dice / d probability = (2 overlap + 1) / mass^2 - truth * 2 / mass
        constant = (of_dice * (2 * overlap + 1) / mass**2)[:, None]
        per_truth = (of_dice * 2 / mass)[:, None]
        per_error = (of_bce / positions.shape[1])[:, None]
        found = probabilities.new_empty((len(positions), *ctx.shape))
        for rows in _blocks(len(positions), ctx.candidates, positions.device):
            p, t = probabilities[rows], truths[rows]
            of_logits = torch.addcmul(constant[rows], t, per_truth[rows], value=-1).mul_(p * (1 - p))
            of_logits.addcmul_(p - t, per_error[rows])
            found[rows] = sample_maps_backward(of_logits, positions[rows], ctx.shape)
        return found, None, None, None, None


def importance_points(
    maps: Float[Tensor, "m h w"], draw: Draw, counts: PointCounts
) -> tuple[Float[Tensor, "m p 2"], Float[Tensor, "m p"]]:
    """The points of each pair and the logits there."""
    m, random = len(maps), counts.total - counts.uncertain
    drawn = draw(m, counts.candidates + random)
    logits = sample_maps(maps, drawn)
    candidates = logits[:, : counts.candidates]
    kept = most_uncertain(candidates, counts.uncertain)
    pairs_of_floats = drawn.view(torch.int64)[..., 0]  # One 8-byte value per point: gathered at once.
    chosen = torch.cat([pairs_of_floats.gather(1, kept), pairs_of_floats[:, counts.candidates :]], dim=1)
    values = torch.cat([candidates.gather(1, kept), logits[:, counts.candidates :]], dim=1)
    return chosen.view(torch.float32).view(m, counts.total, 2), values


def _blocks(pairs: int, candidates: int, device: torch.device) -> list[slice]:
    size = max(1, (BLOCK_POINTS_CPU if device.type == "cpu" else BLOCK_POINTS) // max(1, candidates))
    return [slice(start, start + size) for start in range(0, pairs, size)]
