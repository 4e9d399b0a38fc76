"""The training loss: every term of every branch, summed over this worker's samples, over the global batch's counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from semsam.config import Positive, PositiveFloat, Share, Weight, settings
from semsam.losses import matcher
from semsam.losses.branches import (
    Layers,
    generic_class_losses,
    iou_losses,
    pair_box_losses,
    pair_class_losses,
    pair_mask_losses,
)
from semsam.losses.mask_losses import MaskSource, PointCounts, embedded_masks
from semsam.losses.matcher import CostWeights, Pairs
from semsam.losses.points import DENOISING_LAYERS, GENERIC_LAYERS, PROPOSAL_LAYERS, KeyedPoints, PointSource
from semsam.losses.targets import NORMALIZERS, Targets
from semsam.model.predictions import ModelOutput, Predictions


@settings
class LossWeights:
    """Weights of the terms; the sum runs over layers, with equal weight."""

    mask_bce: Weight = 5.0
    mask_dice: Weight = 5.0
    iou: Weight = 1.0
    box_l1: Weight = 5.0
    giou: Weight = 2.0
    object: Weight = 4.0
    part: Weight = 4.0
    # Multiplies every term of the generic queries, proposals and denoising queries, against those of the prompts.
    generic: Weight = 1.0

    def of(self, term: str) -> float:
        """The weight of a term by its full name, such as `generic/mask_bce`."""
        branch, name = term.split("/")
        weight: float = getattr(self, name)
        return weight if branch == "click" else weight * self.generic


@settings
class CriterionSettings:
    """What the loss is made of."""

    weights: LossWeights = field(default_factory=LossWeights)
    costs: CostWeights = field(default_factory=CostWeights)
    # many_to_one is SAM's way: the target is what was clicked, and the best level of each layer answers for it.
    click_matching: Literal["many_to_many", "many_to_one"] = "many_to_many"
    num_points: Positive = 12_544
    oversample: PositiveFloat = 3.0  # Candidates per point, of which the most uncertain are kept,
    importance: Share = 0.75  # for this share of the points; the rest are uniform.
    # A generic query that no region is left for is no negative where more than this share of its mask lies over void or
    # crowds, as in the official metrics; 1: every such query is a negative, as in Mask DINO.
    ignored_share: Share = 0.5
    # Of denoising queries: boxes move by up to this many half sides, and half of this share of names is wrong.
    noise: Share = 0.4

    def __post_init__(self) -> None:
        if self.importance > self.oversample:
            raise ValueError(f"importance {self.importance} must not be greater than oversample {self.oversample}")


@dataclass(frozen=True)
class CriterionOutput:
    """The loss, and its weighted terms (`click/mask_bce`, `generic/object`, ...; without gradient), which sum to it."""

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]


# Which of `NORMALIZERS` each branch and each of its terms is divided by.
COUNTED_AS = {"click": "click", "generic": "generic", "proposals": "generic", "denoising": "denoising"}
COUNTED_BY = {
    "mask_bce": "masks",
    "mask_dice": "masks",
    "iou": "masks",
    "box_l1": "boxes",
    "giou": "boxes",
    "object": "objects",
    "part": "parts",
}


@dataclass(frozen=True)
class SharedPoints:
    """The points at which all predictions and all regions of an image are compared, and the regions' values there."""

    at: Float[Tensor, "b p 2"]
    values: Float[Tensor, "b p m"]


class Criterion(nn.Module):
    """The loss of one batch; without parameters, and the same function of the samples however they are batched.

    Matching looks at the last layer only, and its pairs hold for all layers.  `masks_of` says how mask predictions are
    read off a branch's layers.
    """

    def __init__(
        self,
        settings: CriterionSettings,
        masks_of: Callable[[Sequence[Predictions]], Sequence[MaskSource]] = embedded_masks,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.masks_of = masks_of
        self.counts = PointCounts.of(settings.num_points, settings.oversample, settings.importance)

    def forward(
        self,
        output: ModelOutput,
        targets: Targets,
        normalizers: Float[Tensor, " normalizers"],
        seed: int,
        points: PointSource | None = None,
    ) -> CriterionOutput:
        """The loss summed over these samples, divided by the global batch's `normalizers` (in the order `NORMALIZERS`).

        Summed over all workers and accumulation steps it is the global batch's loss.  Every prediction tensor gets a
        gradient, if only zeros, so that no worker of a sharded model waits for another's.
        """
        tensors = _distinct_tensors([*output.prompts, *output.generic, output.proposals, *output.denoising])
        with torch.autocast(tensors[0].device.type, enabled=False):
            losses = self.layer_losses(output, targets, normalizers, points or KeyedPoints(seed, tensors[0].device))
            weights = self.settings.weights
            weighted = {name: weights.of(name) * loss.sum() for name, loss in losses.items()}
            touch: Callable[..., Tensor] = _Touch.apply
            loss = torch.stack(list(weighted.values())).sum() + touch(*tensors)
        return CriterionOutput(loss, {name: term.detach() for name, term in weighted.items()})

    def layer_losses(
        self, output: ModelOutput, targets: Targets, normalizers: Float[Tensor, " normalizers"], points: PointSource
    ) -> dict[str, Float[Tensor, " l"]]:
        """Every term before its weight, layer by layer."""
        click, generic, proposals, denoising = self._branches(output)
        at = torch.stack([points.matcher(sample, self.counts.total) for sample in targets.samples])
        shared = SharedPoints(at, matcher.region_values_at(targets, at))
        logits = [last_logits(layers, shared) for layers in (generic, proposals)]
        of_generic, of_proposals = matcher.match_one_to_one(
            [
                self.generic_cost(layers, some, targets, shared)
                for layers, some in zip((generic, proposals), logits, strict=True)
            ],
            targets,
        )
        is_ignored = [matcher.over_ignored(some, targets, at, self.settings.ignored_share) for some in logits]
        found = {
            "click": self._click_losses(click, targets, shared, points),
            "generic": self._generic_losses(generic, of_generic, is_ignored[0], targets, points, GENERIC_LAYERS),
            "proposals": self._generic_losses(proposals, of_proposals, is_ignored[1], targets, points, PROPOSAL_LAYERS),
        }
        if denoising is not None:
            found["denoising"] = self._denoising_losses(denoising, targets, points)
        divide_by = normalizers.to(at.device, torch.float32).clamp(min=1)
        divisors = dict(zip(NORMALIZERS, divide_by.unbind(), strict=True))
        return {
            f"{branch}/{term}": loss / divisors[f"{COUNTED_AS[branch]}/{COUNTED_BY[term]}"]
            for branch, terms in found.items()
            for term, loss in terms.items()
        }

    def click_cost(self, layers: Layers, targets: Targets, shared: SharedPoints) -> Float[Tensor, "b q m"]:
        """The cost, in the last layer, of every query with every region of its image: shape alone."""
        boxes = layers.boxes_cxcywh[-1]
        return matcher.geometry_cost(last_logits(layers, shared), boxes, shared.values, targets, self.settings.costs)

    def generic_cost(
        self, layers: Layers, logits: Float[Tensor, "b q p"], targets: Targets, shared: SharedPoints
    ) -> Float[Tensor, "b q m"]:
        """The cost, in the last layer, of every query with every region of its image: shape and names."""
        names = matcher.class_cost(layers.object_logits[-1], layers.part_logits[-1], targets, self.settings.costs)
        boxes = layers.boxes_cxcywh[-1]
        return names + matcher.geometry_cost(logits, boxes, shared.values, targets, self.settings.costs)

    def _branches(self, output: ModelOutput) -> tuple[Layers, Layers, Layers, Layers | None]:
        branches = (output.prompts, output.generic, [output.proposals], output.denoising)
        masks = iter(self.masks_of([layer for layers in branches for layer in layers]))
        found = [Layers.of(layers, [next(masks) for _ in layers]) for layers in branches if layers]
        click, generic, proposals = found[:3]
        return click, generic, proposals, found[3] if output.denoising else None

    def _click_losses(
        self, layers: Layers, targets: Targets, shared: SharedPoints, points: PointSource
    ) -> dict[str, Float[Tensor, " l"]]:
        if self.settings.click_matching == "many_to_one":
            pairs, queries, bce, dice = self._best_levels(layers, targets, points)
        else:
            pairs = matcher.match_clicks(self.click_cost(layers, targets, shared), targets)
            queries = layers.every_layer(pairs.query)
            bce, dice = pair_mask_losses(layers, pairs.with_masks(targets), targets, points, 0, self.counts)
        with_masks, masked = pairs.with_masks(targets), pairs.rows_with_masks(targets)
        l1, giou = pair_box_losses(layers, pairs, queries, targets)
        return {
            "mask_bce": bce.sum(1),
            "mask_dice": dice.sum(1),
            "iou": iou_losses(layers, with_masks, queries[:, masked], dice).sum(1),
            "box_l1": l1.sum(1),
            "giou": giou.sum(1),
            "object": pair_class_losses(layers.object_logits, pairs, queries, targets.objects),
            "part": pair_class_losses(layers.part_logits, pairs, queries, targets.parts),
        }

    def _generic_losses(
        self,
        layers: Layers,
        pairs: Pairs,
        is_ignored: Bool[Tensor, "b q"],
        targets: Targets,
        points: PointSource,
        first_layer: int,
    ) -> dict[str, Float[Tensor, " l"]]:
        return self._shape_losses(layers, pairs, targets, points, first_layer) | {
            "object": generic_class_losses(layers.object_logits, pairs, targets, targets.objects, is_ignored),
            "part": generic_class_losses(layers.part_logits, pairs, targets, targets.parts, is_ignored),
        }

    def _denoising_losses(
        self, layers: Layers, targets: Targets, points: PointSource
    ) -> dict[str, Float[Tensor, " l"]]:
        pairs = matcher.pair_restored(targets)
        queries = layers.every_layer(pairs.query)
        return self._shape_losses(layers, pairs, targets, points, DENOISING_LAYERS) | {
            "object": pair_class_losses(layers.object_logits, pairs, queries, targets.objects),
            "part": pair_class_losses(layers.part_logits, pairs, queries, targets.parts),
        }

    def _shape_losses(
        self, layers: Layers, pairs: Pairs, targets: Targets, points: PointSource, first_layer: int
    ) -> dict[str, Float[Tensor, " l"]]:
        bce, dice = pair_mask_losses(layers, pairs.with_masks(targets), targets, points, first_layer, self.counts)
        l1, giou = pair_box_losses(layers, pairs, layers.every_layer(pairs.query), targets)
        return {"mask_bce": bce.sum(1), "mask_dice": dice.sum(1), "box_l1": l1.sum(1), "giou": giou.sum(1)}

    def _best_levels(
        self, layers: Layers, targets: Targets, points: PointSource
    ) -> tuple[Pairs, Int64[Tensor, "l m"], Float[Tensor, "l r"], Float[Tensor, "l r"]]:
        """What each prompt was made for, the level that fits it best in each layer, and the mask losses of `r` pairs.

        A level fits by its mask losses, unweighted, or by its box where the target has no mask.
        """
        k = max(1, layers.boxes_cxcywh.shape[2] // max(1, targets.prompt_targets.shape[1]))
        pairs, every = matcher.pair_every_level(targets, k)
        all_queries = layers.every_layer(every.query)
        bce, dice = pair_mask_losses(layers, every.with_masks(targets), targets, points, 0, self.counts)
        l1, giou = pair_box_losses(layers, every, all_queries, targets)
        fit = self.settings.costs.box_l1 * l1 + self.settings.costs.giou * giou
        fit = fit.detach().index_copy(1, every.rows_with_masks(targets), (bce + dice).detach())
        best = fit.unflatten(1, (len(pairs), k)).argmin(2, keepdim=True)
        masked = pairs.rows_with_masks(targets)
        bce, dice = (loss.unflatten(1, (len(masked), k)).gather(2, best[:, masked])[..., 0] for loss in (bce, dice))
        return pairs, all_queries.unflatten(1, (len(pairs), k)).gather(2, best)[..., 0], bce, dice


@torch.no_grad()
def last_logits(layers: Layers, shared: SharedPoints) -> Float[Tensor, "b q p"]:
    """The mask logits of the last layer's queries at the points that all regions are looked up at."""
    return layers.masks[-1].at(shared.at)


def _distinct_tensors(layers: Iterable[Predictions]) -> list[Tensor]:
    """Every prediction tensor once; pixel embeddings are shared between layers."""
    tensors = {id(tensor): tensor for layer in layers for tensor in (getattr(layer, f.name) for f in fields(layer))}
    return list(tensors.values())


class _Touch(torch.autograd.Function):
    """Zero, with a gradient of zeros for each of the tensors, whatever they hold (0 * NaN would be NaN)."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)
