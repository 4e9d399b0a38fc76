"""The terms of one branch (clicks, generic queries, proposals, ...), layer by layer, once its pairs are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semsam.data.sample import NOT_ANNOTATED
from semsam.losses.box_losses import box_losses
from semsam.losses.class_losses import ClassBlock, focal_losses
from semsam.losses.mask_losses import MaskSource, PairTruth, PointCounts, block_pairs, point_losses
from semsam.losses.matcher import Pairs
from semsam.losses.points import PointSource, chained
from semsam.losses.targets import NameTargets, Targets
from semsam.model.predictions import Predictions


@dataclass(frozen=True)
class Layers:
    """What one branch predicts, all layers stacked, in float32."""

    masks: Sequence[MaskSource]
    boxes_cxcywh: Float[Tensor, "l b q 4"]
    iou_predictions: Float[Tensor, "l b q"]
    object_logits: Float[Tensor, "l b q x"]
    part_logits: Float[Tensor, "l b q y"]

    @staticmethod
    def of(layers: Sequence[Predictions], masks: Sequence[MaskSource]) -> Layers:
        """The same predictions, with `masks` as what is read of each layer's masks."""
        return Layers(
            masks,
            torch.stack([layer.boxes_cxcywh.float() for layer in layers]),
            torch.stack([layer.iou_predictions.float() for layer in layers]),
            torch.stack([layer.object_logits.float() for layer in layers]),
            torch.stack([layer.part_logits.float() for layer in layers]),
        )

    def every_layer(self, query: Int64[Tensor, " m"]) -> Int64[Tensor, "l m"]:
        """The same queries for all layers."""
        return query.expand(len(self.masks), -1)


def pair_box_losses(
    layers: Layers, pairs: Pairs, queries: Int64[Tensor, "l m"], targets: Targets
) -> tuple[Float[Tensor, "l m"], Float[Tensor, "l m"]]:
    """L1 and GIoU losses of every pair in every layer."""
    return box_losses(at_pairs(layers.boxes_cxcywh, pairs, queries), targets.boxes_cxcywh[pairs.image, pairs.region])


def pair_mask_losses(
    layers: Layers, pairs: Pairs, targets: Targets, points: PointSource, first_layer: int, counts: PointCounts
) -> tuple[Float[Tensor, "l m"], Float[Tensor, "l m"]]:
    """Cross-entropy and Dice losses of every pair in every layer.

    Maps are made, sampled and freed some pairs at a time; images and layers with few pairs share one pass.
    `first_layer` keys the points: it differs between branches.
    """
    if not len(pairs):
        nothing = layers.boxes_cxcywh.new_zeros((len(layers.masks), 0))
        return nothing, nothing
    work = [(layer, image, rows) for layer in range(len(layers.masks)) for image, rows in pairs.slices()]
    most = block_pairs(counts, pairs.query.device)
    found = []
    for group in _grouped(work, most):
        pieces = [layers.masks[layer].pairs(image, pairs.query[rows]) for layer, image, rows in group]
        draws = [points.losses(targets.samples[image], first_layer + layer) for layer, image, _ in group]
        image, region = (torch.cat([index[rows] for _, _, rows in group]) for index in (pairs.image, pairs.region))
        truth = PairTruth(targets.labels, image, targets.tables[image, :, region])
        draw = chained(draws, [piece.shape()[0] for piece in pieces])
        found.append(torch.stack(point_losses(pieces, truth, draw, counts)))
    bce, dice = torch.cat(found, dim=1).unflatten(1, (len(layers.masks), len(pairs))).unbind()
    return bce, dice


def _grouped(work: list[tuple[int, int, slice]], most: int) -> list[list[tuple[int, int, slice]]]:
    """Neighbours joined as long as they are no more than `most` pairs together."""
    groups: list[list[tuple[int, int, slice]]] = []
    room = 0
    for item in work:
        size = item[2].stop - item[2].start
        if not groups or size > room:
            groups.append([])
            room = most
        groups[-1].append(item)
        room -= size
    return groups


def iou_losses(
    layers: Layers, pairs: Pairs, queries: Int64[Tensor, "l m"], dice: Float[Tensor, "l m"]
) -> Float[Tensor, "l m"]:
    """Squared distance of the predicted IoU from the soft Dice overlap.

    The overlap keeps its gradient: a mask is drawn towards what its IoU head expects of it, as in the released model.
    """
    return (at_pairs(layers.iou_predictions[..., None], pairs, queries)[..., 0] - (1 - dice)).square()


def pair_class_losses(
    logits: Float[Tensor, "l b q x"], pairs: Pairs, queries: Int64[Tensor, "l m"], head: NameTargets
) -> Float[Tensor, " l"]:
    """The loss of one head for matched queries; one that no target was left for is told nothing."""
    blocks = []
    for image, rows in pairs.slices():
        span, region = head.spans_host[image], pairs.region[rows]
        counted = head.allowed[image, span] & head.teaches[image, region][:, None]
        blocks.append(ClassBlock(image, queries[:, rows], span, head.names[image, region], counted))
    return focal_losses(logits, blocks)


def generic_class_losses(
    logits: Float[Tensor, "l b q x"],
    pairs: Pairs,
    targets: Targets,
    head: NameTargets,
    is_ignored: Bool[Tensor, "b q"],
) -> Float[Tensor, " l"]:
    """The loss of one head for all queries of the images that teach it; unmatched ones are negatives if not ignored."""
    blocks = []
    everyone = torch.arange(logits.shape[2], device=logits.device)
    matched = dict(pairs.slices())
    for image, span in enumerate(head.spans_host):
        if not targets.generic_host[image] or span.start == span.stop:
            continue
        rows = matched.get(image, slice(0, 0))
        query, region = pairs.query[rows], pairs.region[rows]
        positive = torch.full_like(everyone, NOT_ANNOTATED).index_copy(0, query, head.names[image, region])
        counted = head.exhaustive[image, span] & ~is_ignored[image, :, None]
        counted = counted.index_copy(0, query, head.allowed[image, span] & head.teaches[image, region][:, None])
        blocks.append(ClassBlock(image, everyone.expand(len(logits), -1), span, positive, counted))
    return focal_losses(logits, blocks)


def at_pairs(values: Float[Tensor, "l b q c"], pairs: Pairs, queries: Int64[Tensor, "l m"]) -> Float[Tensor, "l m c"]:
    """The predictions of the matched queries of each layer."""
    index = pairs.image * values.shape[2] + queries
    return values.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, values.shape[3]))
