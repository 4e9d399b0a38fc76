"""Which prediction answers for which target.  Costs and assignment on the device; only one-to-one visits the host."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from semsam.config import Weight, settings
from semsam.losses.box_losses import box_costs
from semsam.losses.class_losses import class_costs
from semsam.losses.targets import Targets
from semsam.ops.point_sampling import all_region_values

MAX_LEVELS = 7  # Assignments are tried out: 5,040 of them for seven levels.
UNUSABLE = 1e6  # Stands for a cost that is not finite: the loss will say so, the assignment need not crash.


@settings
class CostWeights:
    """Weights of the terms of the matching cost."""

    classes: Weight = 4.0  # Generic queries only: a click's levels are told apart by shape.
    mask_bce: Weight = 5.0
    mask_dice: Weight = 5.0
    box_l1: Weight = 5.0
    giou: Weight = 2.0


@dataclass(frozen=True)
class Pairs:
    """Matched queries and regions, image by image; `query` counts within its image."""

    image: Int64[Tensor, " m"]
    query: Int64[Tensor, " m"]
    region: Int64[Tensor, " m"]
    # The same, as far as the host knows it without asking the device.
    image_host: Int64[np.ndarray, " m"]
    region_host: Int64[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.image_host)

    @staticmethod
    def of(image: Int64[np.ndarray, " m"], region: Int64[np.ndarray, " m"], query: Int64[Tensor, " m"]) -> Pairs:
        """Pairs sorted by image, on the device of `query`."""
        return Pairs(to_device(image, query.device), query, to_device(region, query.device), image, region)

    def rows_with_masks(self, targets: Targets) -> Int64[Tensor, " r"]:
        """The pairs whose region teaches a mask."""
        return to_device(self._with_masks(targets), self.query.device)

    def with_masks(self, targets: Targets) -> Pairs:
        """Those pairs alone."""
        rows = self._with_masks(targets)
        query = self.query[to_device(rows, self.query.device)]
        return Pairs.of(self.image_host[rows], self.region_host[rows], query)

    def slices(self) -> list[tuple[int, slice]]:
        """Each image that has pairs, and where they are."""
        images, starts, counts = np.unique(self.image_host, return_index=True, return_counts=True)
        return [
            (int(image), slice(int(start), int(start + count)))
            for image, start, count in zip(images, starts, counts, strict=True)
        ]

    def _with_masks(self, targets: Targets) -> Int64[np.ndarray, " r"]:
        return np.flatnonzero(targets.teaches_mask_host[self.image_host, self.region_host])


def mask_costs(
    logits: Float[Tensor, "b q p"], values: Float[Tensor, "b p m"]
) -> tuple[Float[Tensor, "b q m"], Float[Tensor, "b q m"]]:
    """Mean binary cross-entropy and one minus soft Dice of every prediction and every region at shared points."""
    probabilities = logits.sigmoid()
    # -t log p - (1 - t) log(1 - p) = softplus(x) - t x: two matrix products stand for all pairs.
    bce = (F.softplus(logits).sum(-1, keepdim=True) - logits @ values) / logits.shape[2]
    mass = probabilities.sum(-1, keepdim=True) + values.sum(1, keepdim=True)
    return bce, 1 - (2 * (probabilities @ values) + 1) / (mass + 1)


def region_values_at(targets: Targets, points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b p m"]:
    """The true masks of each image at points that all its regions share."""
    return all_region_values(targets.labels, targets.tables, points)


@torch.no_grad()
def over_ignored(
    logits: Float[Tensor, "b q p"], targets: Targets, points: Float[Tensor, "b p 2"], share: float
) -> Bool[Tensor, "b q"]:
    """Whether more than `share` of a prediction's mask lies over void or crowds, as the official metrics ask.

    Of what lies there it is not known whether it is right: panoptic quality (arXiv 1801.00868, section 4.2) and COCO's
    average precision leave such predictions out where no region is theirs.
    """
    if targets.ignored is None:
        return torch.zeros(logits.shape[:2], dtype=torch.bool, device=logits.device)
    ignored = all_region_values(targets.labels, targets.ignored[..., None], points)
    inside = (logits > 0).float()
    return (inside @ ignored)[..., 0] > share * inside.sum(dim=2)


@torch.no_grad()
def geometry_cost(
    logits: Float[Tensor, "b q p"],
    boxes_cxcywh: Float[Tensor, "b q 4"],
    values: Float[Tensor, "b p m"],
    targets: Targets,
    weights: CostWeights,
) -> Float[Tensor, "b q m"]:
    """The cost of every query with every region of its image: masks (where the region has one) and boxes."""
    bce, dice = mask_costs(logits, values)
    l1, negative_giou = box_costs(boxes_cxcywh, targets.boxes_cxcywh)
    of_masks = (weights.mask_bce * bce + weights.mask_dice * dice) * targets.teaches_mask[:, None]
    return of_masks + weights.box_l1 * l1 + weights.giou * negative_giou


@torch.no_grad()
def class_cost(
    object_logits: Float[Tensor, "b q x"], part_logits: Float[Tensor, "b q y"], targets: Targets, weights: CostWeights
) -> Float[Tensor, "b q m"]:
    """The cost of the names; the mean of both for a part, so that a region's names weigh the same against its shape."""
    total = class_costs(object_logits, targets.objects.names) + class_costs(part_logits, targets.parts.names)
    num_names = (targets.objects.names >= 0).float() + (targets.parts.names >= 0)
    return weights.classes * total / num_names.clamp(min=1)[:, None]


def to_device(index: Int64[np.ndarray, "*m"], device: torch.device) -> Int64[Tensor, "*m"]:
    """An index from the host, without waiting for the device."""
    return torch.from_numpy(np.ascontiguousarray(index)).to(device, non_blocking=True)


def match_clicks(cost: Float[Tensor, "b q m"], targets: Targets) -> Pairs:
    """Assign each prompt's targets to distinct levels at least total cost (many-to-many).

    A click lands on several nested objects at once (a door, a car, a street), so the levels of one prompt are matched
    to all of its targets together, and never to another prompt's.  A prompt with fewer targets leaves levels unmatched.
    """
    image, prompt, slot = np.nonzero(targets.prompt_targets_host >= 0)
    region = targets.prompt_targets_host[image, prompt, slot]
    if len(image) == 0:
        return Pairs.of(image, region, to_device(prompt, cost.device))
    b, n, t = targets.prompt_targets.shape
    k = cost.shape[1] // n
    wanted = targets.prompt_targets.clamp(min=0)[:, :, None].expand(-1, -1, k, -1)
    blocks = cost.view(b, n, k, -1).gather(3, wanted) * (targets.prompt_targets >= 0)[:, :, None]
    level = match_levels(blocks.flatten(0, 1)).flatten()
    place = to_device((image * n + prompt) * t + slot, cost.device)
    return Pairs.of(image, region, to_device(prompt * k, cost.device) + level[place])


def pair_every_level(targets: Targets, num_levels: int) -> tuple[Pairs, Pairs]:
    """The region that each prompt was made for, paired with its first level, and with every level (many-to-one)."""
    image, prompt = np.nonzero(targets.prompt_asked_host >= 0)
    region = targets.prompt_asked_host[image, prompt]
    first, device = prompt * num_levels, targets.prompt_targets.device
    every = (first[:, None] + np.arange(num_levels)).flatten()
    images, regions = np.repeat(image, num_levels), np.repeat(region, num_levels)
    return (
        Pairs.of(image, region, to_device(first, device)),
        Pairs.of(images, regions, to_device(every, device)),
    )


def pair_restored(targets: Targets) -> Pairs:
    """Denoising queries and the regions that they are to restore."""
    image, query = np.nonzero(targets.restored_host >= 0)
    return Pairs.of(image, targets.restored_host[image, query], to_device(query, targets.prompt_targets.device))


def match_levels(cost: Float[Tensor, "n k t"]) -> Int64[Tensor, "n t"]:
    """The level of each target such that levels are distinct and the summed cost is least.

    All ordered choices of t out of k levels are tried out at once, in float64 (whose products no device rounds to
    fewer bits).  Targets that are padding have cost zero everywhere and take what is left over.
    """
    k, t = cost.shape[1:]
    if t > k or k > MAX_LEVELS:
        raise ValueError(
            f"cannot match {t} targets to {k} levels: at most as many targets as levels, {MAX_LEVELS} levels"
        )
    choices = to_device(_choices(k, t), cost.device)
    picked = F.one_hot(choices, k).transpose(1, 2).flatten(1).double()
    totals = cost.flatten(1).double() @ picked.T
    return choices[totals.argmin(1)]


def match_one_to_one(costs: Sequence[Float[Tensor, "b q m"]], targets: Targets) -> list[Pairs]:
    """Hungarian matching of queries and regions, per image, for each of several sets of predictions.

    Only images whose sample teaches generic queries are matched.  All costs go to the host in one transfer.
    """
    taught = [i for i, generic in enumerate(targets.generic_host) if generic and targets.num_regions_host[i] > 0]
    if not taught:
        nothing = np.zeros(0, np.int64)
        return [Pairs.of(nothing, nothing, to_device(nothing, cost.device)) for cost in costs]
    flat = torch.cat([cost.flatten() for cost in costs]).nan_to_num(UNUSABLE, UNUSABLE, -UNUSABLE).cpu().numpy()
    found = []
    for cost, values in zip(costs, np.split(flat, np.cumsum([c.numel() for c in costs])[:-1]), strict=True):
        matrices = values.reshape(cost.shape)
        matched = [linear_sum_assignment(matrices[i, :, : targets.num_regions_host[i]]) for i in taught]
        image = np.repeat(taught, [len(query) for query, _ in matched])
        query, region = (np.concatenate([match[side] for match in matched]) for side in (0, 1))
        found.append(Pairs.of(image, region, to_device(query, cost.device)))
    return found


@lru_cache
def _choices(k: int, t: int) -> Int64[np.ndarray, "choices t"]:
    """Every ordered choice of t out of k levels."""
    return np.array(list(itertools.permutations(range(k), t)), np.int64).reshape(math.perm(k, t), t)
