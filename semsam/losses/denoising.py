"""What denoising queries are given and what they are to restore: pairs that need no matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64

from semsam.data.randomness import generator
from semsam.data.sample import NOT_ANNOTATED, Sample
from semsam.losses.router import Lesson, NameLesson, row_of
from semsam.model.generic_queries import NoisedRegions

# Layers of the purpose `denoising` in the random keys.
_CHOICE, _NOISE = 0, 1


@dataclass(frozen=True)
class Noise:
    """How much of it: a box moves by up to `scale` half sides, and a name is wrong with probability `scale` / 2."""

    num_queries: int
    scale: float
    seed: int

    def regions(self, sample: Sample) -> Int64[np.ndarray, " r"]:
        """The region that each of a sample's queries is to restore; -1: none, where generic queries learn nothing.

        Group after group, each with every region once in an order of its own; the last is cut off.
        """
        num_regions = len(sample.regions)
        if not row_of(sample.dataset).generic or not num_regions:
            return np.full(self.num_queries, -1, np.int64)
        rng = generator(self.seed, sample.index, "denoising", _CHOICE)
        num_groups = -(-self.num_queries // num_regions)
        groups = [rng.permutation(num_regions) for _ in range(num_groups)]
        return np.concatenate([np.zeros(0, np.int64), *groups])[: self.num_queries]


def noised_regions(
    samples: Sequence[Sample],
    lessons: Sequence[Lesson],
    restored: Sequence[Int64[np.ndarray, " r"]],
    noise: Noise,
    box_scale: Float[np.ndarray, " 4"],
    device: torch.device,
) -> NoisedRegions:
    """The regions to be `restored`, with their noise, on `device`.

    `box_scale` takes boxes relative to the crop to those relative to the padded image.  Queries without a region are
    padding: the whole image without a name, in a group of their own.
    """
    boxes = np.tile(np.array([0.5, 0.5, 1.0, 1.0]), (len(samples), noise.num_queries, 1))
    names = np.full(boxes.shape[:2], NOT_ANNOTATED, np.int64)
    groups = np.zeros(boxes.shape[:2], np.int64)
    for i, (sample, lesson, regions) in enumerate(zip(samples, lessons, restored, strict=True)):
        if not (regions >= 0).all():
            continue
        rng = generator(noise.seed, sample.index, "denoising", _NOISE)
        boxes[i] = _moved(sample.regions.boxes_cxcywh[regions].astype(np.float64), noise.scale, rng)
        names[i] = _renamed(sample, lesson, regions, noise.scale, rng)
        groups[i] = np.arange(noise.num_queries) // len(sample.regions)
    return NoisedRegions(
        boxes_cxcywh=torch.from_numpy((boxes * box_scale).astype(np.float32)).to(device),
        names=torch.from_numpy(names).to(device),
        groups=torch.from_numpy(groups).to(device),
    )


def _moved(boxes_cxcywh: Float[np.ndarray, "r 4"], scale: float, rng: np.random.Generator) -> Float[np.ndarray, "r 4"]:
    """Boxes whose centre stays inside the true one, and whose sides are up to `scale` longer or shorter."""
    sides = boxes_cxcywh[:, 2:]
    most = scale * np.concatenate([sides / 2, sides], axis=1)
    return (boxes_cxcywh + rng.uniform(-1, 1, boxes_cxcywh.shape) * most).clip(0, 1)


def _renamed(
    sample: Sample, lesson: Lesson, regions: Int64[np.ndarray, " r"], scale: float, rng: np.random.Generator
) -> Int64[np.ndarray, " r"]:
    """Names of regions (a part's is its part name), some of them replaced by others that the sample speaks of."""
    is_part = (sample.regions.parent >= 0) | (lesson.parts.names >= 0)
    wrong, luck = rng.random(len(regions)) < scale / 2, rng.random(len(regions))
    as_objects = _replaced(lesson.objects, regions, wrong, luck)
    as_parts = _replaced(lesson.parts, regions, wrong, luck)
    as_parts[as_parts >= 0] += len(lesson.objects.allowed)
    return np.where(is_part[regions], as_parts, as_objects)


def _replaced(
    head: NameLesson, regions: Int64[np.ndarray, " r"], wrong: np.ndarray, luck: Float[np.ndarray, " r"]
) -> Int64[np.ndarray, " r"]:
    """The regions' names in one head, and where `wrong` any other allowed one."""
    true, allowed = head.names[regions], np.flatnonzero(head.allowed)
    if len(allowed) < 2:
        return true.copy()
    other = (luck * (len(allowed) - 1)).astype(np.int64)
    other += other >= np.searchsorted(allowed, true)
    return np.where(wrong & (true >= 0), allowed[other.clip(max=len(allowed) - 1)], true)
