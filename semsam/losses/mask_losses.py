"""Mask losses at importance points, computed pair by pair without keeping maps, masks or intermediate results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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
# Map pixels made at once: enough for a quick matrix product, and little enough for malloc to keep and use again.
BLOCK_PIXELS_CPU = 2**22
BLOCK_PIXELS = 2**27


class PairMaps(Protocol):
    """The mask logits of some pairs of one image, made a few at a time: a tuple of the tensors that they depend on."""

    def __iter__(self) -> Iterator[Tensor]:
        """The tensors, from which the class can be made anew."""
        ...

    def shape(self) -> tuple[int, int, int]:
        """How many pairs, and the height and width of their maps."""
        ...

    def maps(self, rows: slice) -> Float[Tensor, "r h w"]:
        """The maps of some pairs; called without autograd."""
        ...

    def add_gradients(self, gradients: Sequence[Tensor], rows: slice, of_maps: Float[Tensor, "r h w"]) -> None:
        """Add to the gradient of each tensor what the gradient of `maps(rows)` makes of it; once for every pair."""
        ...


class MaskSource(Protocol):
    """The mask predictions of one layer, as the losses ask for them."""

    def pairs(self, image: int, queries: Int64[Tensor, " m"]) -> PairMaps:
        """The mask logits of some queries of one image."""
        ...

    def at(self, points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b q p"]:
        """The mask logits of all queries at the points of their image."""
        ...


class EmbeddedPairs(NamedTuple):
    """Maps as products of mask embeddings and pixel embeddings."""

    embeddings: Float[Tensor, "m c"]
    features: Float[Tensor, "c h w"]

    def shape(self) -> tuple[int, int, int]:
        return len(self.embeddings), *self.features.shape[1:]

    def maps(self, rows: slice) -> Float[Tensor, "r h w"]:
        return (self.embeddings[rows] @ self.features.flatten(1)).unflatten(1, self.features.shape[1:])

    def add_gradients(self, gradients: Sequence[Tensor], rows: slice, of_maps: Float[Tensor, "r h w"]) -> None:
        of_embeddings, of_features = gradients
        flat = of_maps.flatten(1)
        of_embeddings[rows] += flat @ self.features.flatten(1).T
        of_features.flatten(1).addmm_(self.embeddings[rows].T, flat)


@dataclass(frozen=True)
class EmbeddedMasks:
    """Mask embeddings and pixel embeddings: maps are made when asked for, and points without maps."""

    embeddings: Float[Tensor, "b q c"]
    features: Float[Tensor, "b c h w"]
    # `features`, image by image: split once, so that the gradients of all layers meet before they are stacked.
    per_image: tuple[Float[Tensor, "c h w"], ...]

    def pairs(self, image: int, queries: Int64[Tensor, " m"]) -> EmbeddedPairs:
        return EmbeddedPairs(self.embeddings[image].index_select(0, queries), self.per_image[image])

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
    pieces: Sequence[PairMaps], truth: PairTruth, draw: Draw, counts: PointCounts
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Binary cross-entropy (mean over points) and one minus soft Dice of each pair of a predicted and a true mask.

    Of each pair's points some are the most uncertain of uniform candidates and the rest are uniform (PointRend).  Dice
    adds 1 to both sides of the fraction, so that an empty mask predicted empty has no loss.
    """
    apply: Callable[..., tuple[Tensor, Tensor]] = _PointLosses.apply
    kinds = [(type(piece), len(tuple(piece))) for piece in pieces]
    return apply(kinds, truth, draw, counts, *(tensor for piece in pieces for tensor in piece))


_Kind = tuple[Callable[..., PairMaps], int]  # What makes a piece, and of how many tensors.


class _PointLosses(torch.autograd.Function):
    """Keeps of every point its position, predicted probability and truth: 16 bytes, no maps.

    Both passes go block by block, so that what a block needs on the way stays in the cache.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, kinds: list[_Kind], truth: PairTruth, draw: Draw, counts: PointCounts, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        pieces = _pieces(kinds, tensors)
        m = len(truth.image)
        points = tensors[0].new_empty((m, counts.total, 2))
        probabilities, truths = points.new_empty((2, m, counts.total))
        bce, overlap, mass = points.new_empty((3, m))
        for rows, maps in _map_blocks(pieces, block_pairs(counts, points.device)):
            points[rows], logits = importance_points(maps, draw, counts)
            values = region_values(truth.labels, truth.image[rows], truth.columns[rows], points[rows])
            bce[rows] = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
            p = logits.sigmoid_()
            overlap[rows] = torch.einsum("mp,mp->m", p, values)
            mass[rows] = p.sum(1) + values.sum(1) + 1
            probabilities[rows], truths[rows] = p, values
        ctx.save_for_backward(points, probabilities, truths, overlap, mass, *tensors)
        ctx.kinds = kinds
        return bce, 1 - (2 * overlap + 1) / mass

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        points, probabilities, truths, overlap, mass, *tensors = ctx.saved_tensors
        pieces = _pieces(ctx.kinds, tensors)
        found = [torch.zeros_like(tensor) for tensor in tensors]
        of_pieces = _split(found, ctx.kinds)
        of_bce, of_dice = gradients
        # d dice / d probability = (2 overlap + 1) / mass^2 - truth * 2 / mass, and d probability / d logit = p (1 - p).
        constant = (of_dice * (2 * overlap + 1) / mass**2)[:, None]
        per_truth = (of_dice * 2 / mass)[:, None]
        per_error = (of_bce / points.shape[1])[:, None]
        _, height, width = pieces[0].shape()
        for rows in _blocks(0, len(points), _pairs_of_maps(pieces[0])):
            p, t = probabilities[rows], truths[rows]
            of_logits = torch.addcmul(p, p, p, value=-1)
            of_logits.mul_(torch.addcmul(constant[rows], t, per_truth[rows], value=-1))
            of_logits.addcmul_(p - t, per_error[rows])
            of_maps = sample_maps_backward(of_logits, points[rows], (height, width))
            parts = _parts(pieces, rows)
            lengths = [part.stop - part.start for _, part in parts]
            for (i, part), of_part in zip(parts, of_maps.split(lengths), strict=True):
                pieces[i].add_gradients(of_pieces[i], part, of_part)
        return None, None, None, None, *(one if one.is_floating_point() else None for one in found)


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


def _blocks(start: int, stop: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, stop)) for first in range(start, stop, size)]


def _pairs_of_maps(piece: PairMaps) -> int:
    """How many pairs' maps are made at once."""
    _, height, width = piece.shape()
    pixels = BLOCK_PIXELS_CPU if next(iter(piece)).device.type == "cpu" else BLOCK_PIXELS
    return max(1, pixels // (height * width))


def _map_blocks(pieces: list[PairMaps], most: int) -> Iterator[tuple[slice, Float[Tensor, "r h w"]]]:
    """All pairs with their maps, at most so many at a time."""
    m = sum(piece.shape()[0] for piece in pieces)
    for made in _blocks(0, m, _pairs_of_maps(pieces[0])):
        maps = [pieces[i].maps(part) for i, part in _parts(pieces, made)]
        joined = maps[0] if len(maps) == 1 else torch.cat(maps)
        for rows in _blocks(made.start, made.stop, most):
            yield rows, joined[rows.start - made.start : rows.stop - made.start]


def _pieces(kinds: list[_Kind], tensors: Sequence[Tensor]) -> list[PairMaps]:
    return [make(*own) for (make, _), own in zip(kinds, _split(tensors, kinds), strict=True)]


def _split(tensors: Sequence[Tensor], kinds: list[_Kind]) -> list[Sequence[Tensor]]:
    ends = itertools.accumulate(number for _, number in kinds)
    return [tensors[end - number : end] for (_, number), end in zip(kinds, ends, strict=True)]


def _parts(pieces: list[PairMaps], rows: slice) -> list[tuple[int, slice]]:
    """Where the pairs `rows` of all are: the places of the pieces that hold them, and their rows there."""
    found, first = [], 0
    for i, piece in enumerate(pieces):
        m = piece.shape()[0]
        part = slice(max(rows.start - first, 0), min(rows.stop - first, m))
        if part.start < part.stop:
            found.append((i, part))
        first += m
    return found
