"""A batch's ground truth on the device, and the counts by which its losses are divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
from torch import Tensor

from semsam.data.sample import NOT_ANNOTATED, Batch, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.denoising import Noise, noised_regions
from semsam.losses.router import NameLesson, route, row_of
from semsam.model.generic_queries import NoisedRegions
from semsam.model.semantic_sam import padded_size
from semsam.ops.point_sampling import LabelMaps

# What `count_targets` counts, in this order: the pairs of a prediction and a target that each group of terms sums over.
NORMALIZERS = (
    "click/boxes",
    "click/masks",
    "click/objects",
    "click/parts",
    "generic/boxes",
    "generic/masks",
    "generic/objects",
    "generic/parts",
    "denoising/boxes",
    "denoising/masks",
    "denoising/objects",
    "denoising/parts",
)


@dataclass(frozen=True)
class NameTargets:
    """What the samples teach one head, as `router.NameLesson` has it for one sample."""

    names: Int64[Tensor, "b m"]
    teaches: Bool[Tensor, "b m"]
    allowed: Bool[Tensor, "b x"]
    exhaustive: Bool[Tensor, "b x"]
    # The shortest range of names with all allowed ones of each sample: a dataset's names are neighbours.
    spans_host: tuple[slice, ...]

    @staticmethod
    def of(lessons: Sequence[NameLesson], device: torch.device) -> NameTargets:
        """The lessons of a batch's samples on `device`."""
        return NameTargets(
            names=_ragged([lesson.names for lesson in lessons], device, fill=NOT_ANNOTATED),
            teaches=_ragged([lesson.teaches for lesson in lessons], device),
            allowed=torch.from_numpy(np.stack([lesson.allowed for lesson in lessons])).to(device),
            exhaustive=torch.from_numpy(np.stack([lesson.exhaustive for lesson in lessons])).to(device),
            spans_host=tuple(_span(lesson.allowed) for lesson in lessons),
        )


@dataclass(frozen=True)
class Targets:
    """The targets of `b` images with at most `m` regions, `a` labels and `n` prompts of `t` targets.

    Boxes and label maps are relative to the padded image, as the model's predictions are.  Fields whose names end in
    `_host` are what the host must know to cut tensors into shape without waiting for the device.
    """

    samples: tuple[int, ...]  # Global sample indices: the keys of random draws.
    labels: LabelMaps
    tables: Float[Tensor, "b a m"]  # 1 where region m covers label a.
    ignored: Float[Tensor, "b a"] | None  # 1 where a label is void or crowd; None: nowhere in the batch.
    boxes_cxcywh: Float[Tensor, "b m 4"]
    teaches_mask: Bool[Tensor, "b m"]
    objects: NameTargets
    parts: NameTargets
    prompt_targets: Int64[Tensor, "b n t"]  # Regions of the prompt's image; -1: none.
    generic_host: tuple[bool, ...]  # Samples that teach generic queries.
    num_regions_host: tuple[int, ...]
    teaches_mask_host: Bool[np.ndarray, "b m"]
    prompt_targets_host: Int64[np.ndarray, "b n t"]
    prompt_asked_host: Int64[np.ndarray, "b n"]  # The region that each prompt was made for; -1: none.
    noised: NoisedRegions | None  # What denoising queries are given, if there are any,
    restored_host: Int64[np.ndarray, "b r"]  # and the regions that they are to restore; -1: none.

    @staticmethod
    def of(batch: Batch, vocabulary: JointVocabulary, device: torch.device, noise: Noise | None = None) -> Targets:
        """Route every sample of `batch` and move what it teaches to `device`; `noise` is for denoising queries."""
        lessons = [route(sample, vocabulary) for sample in batch.samples]
        height, width = batch.images.shape[2:]
        padded = padded_size(height), padded_size(width)
        scale = np.array([width / padded[1], height / padded[0]] * 2, np.float32)
        prompt_targets = np.where(batch.prompt_valid[..., None], batch.prompt_targets, -1).astype(np.int64)
        teaches_mask = _padded([lesson.teaches_mask for lesson in lessons], fill=0)
        restored = [noise.regions(sample) if noise else np.zeros(0, np.int64) for sample in batch.samples]
        return Targets(
            samples=tuple(int(index) for index in batch.indices),
            labels=LabelMaps.of(torch.from_numpy(_label_maps(batch.samples, padded)).to(device)),
            tables=torch.from_numpy(_tables(batch.samples)).to(device).float(),
            ignored=_ignored(batch.samples, device),
            boxes_cxcywh=_ragged([sample.regions.boxes_cxcywh * scale for sample in batch.samples], device),
            teaches_mask=torch.from_numpy(teaches_mask).to(device),
            objects=NameTargets.of([lesson.objects for lesson in lessons], device),
            parts=NameTargets.of([lesson.parts for lesson in lessons], device),
            prompt_targets=torch.from_numpy(prompt_targets).to(device),
            generic_host=tuple(lesson.generic for lesson in lessons),
            num_regions_host=tuple(len(sample.regions) for sample in batch.samples),
            teaches_mask_host=teaches_mask,
            prompt_targets_host=prompt_targets,
            prompt_asked_host=np.where(batch.prompt_valid, batch.prompt_asked, -1).astype(np.int64),
            noised=noised_regions(batch.samples, lessons, restored, noise, scale, device) if noise else None,
            restored_host=np.stack(restored),
        )


def count_targets(
    batch: Batch, many_to_one: bool = False, noise: Noise | None = None
) -> Float64[np.ndarray, " normalizers"]:
    """How much this batch adds to each of `NORMALIZERS`; known before the forward pass, and summed over all workers.

    A target counts for a head if its dataset teaches that head, so objects count for the part head as negatives.  With
    `many_to_one` a prompt has one target, the region that it was made for; `noise` is that of `Targets.of`.
    """
    counts = dict.fromkeys(NORMALIZERS, 0)
    for position, sample in enumerate(batch.samples):
        row = row_of(sample.dataset)
        teaches_mask = sample.regions.has_mask & row.masks
        per_prompt = (batch.prompt_asked if many_to_one else batch.prompt_targets)[position]
        targets = per_prompt[batch.prompt_valid[position]]
        targets = targets[targets >= 0]
        restored = noise.regions(sample) if noise else np.zeros(0, np.int64)
        for branch, regions in (
            ("click", targets),
            ("generic", np.arange(len(sample.regions) if row.generic else 0)),
            ("denoising", restored[restored >= 0]),
        ):
            counts[f"{branch}/boxes"] += len(regions)
            counts[f"{branch}/masks"] += int(teaches_mask[regions].sum())
            counts[f"{branch}/objects"] += len(regions) if row.objects else 0
            counts[f"{branch}/parts"] += len(regions) if row.parts else 0
    return np.array([counts[name] for name in NORMALIZERS], np.float64)


def _label_maps(samples: Sequence[Sample], padded: tuple[int, int]) -> Int32[np.ndarray, "b h w"]:
    maps = np.zeros((len(samples), *padded), np.int32)
    for target, sample in zip(maps, samples, strict=True):
        labels = sample.atoms.labels
        target[: labels.shape[0], : labels.shape[1]] = labels
    return maps


def _tables(samples: Sequence[Sample]) -> Bool[np.ndarray, "b a m"]:
    num_labels = max(len(sample.atoms.table) for sample in samples)
    # At least one region: look-ups by index need something to point at.
    num_regions = max(1, *(sample.atoms.table.shape[1] for sample in samples))
    tables = np.zeros((len(samples), max(1, num_labels), num_regions), bool)
    for table, sample in zip(tables, samples, strict=True):
        found = sample.atoms.table
        table[: found.shape[0], : found.shape[1]] = found
    return tables


def _ignored(samples: Sequence[Sample], device: torch.device) -> Float[Tensor, "b a"] | None:
    if all(sample.ignored is None for sample in samples):
        return None
    ignored = np.zeros((len(samples), max(len(sample.atoms.table) for sample in samples)), np.float32)
    for row, sample in zip(ignored, samples, strict=True):
        if sample.ignored is not None:
            row[: len(sample.ignored)] = sample.ignored
    return torch.from_numpy(ignored).to(device)


def _padded(columns: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Columns of unequal length as one array, at least one region long."""
    length = max(1, *(len(column) for column in columns))
    padded = np.full((len(columns), length, *columns[0].shape[1:]), fill, columns[0].dtype)
    for row, column in zip(padded, columns, strict=True):
        row[: len(column)] = column
    return padded


def _ragged(columns: Sequence[np.ndarray], device: torch.device, fill: int = 0) -> Tensor:
    return torch.from_numpy(_padded(columns, fill)).to(device)


def _span(allowed: Bool[np.ndarray, " x"]) -> slice:
    (found,) = np.nonzero(allowed)
    return slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0)
