"""The criterion against the usual dense way, in one run: ratios of CPU time and of peak memory.

Both sides get the same predicted maps as leaves and the same targets; each runs in a process of its own, so that peak
memory can be told apart.  The dense way is the customary one: full-resolution masks stacked once per pair (duplicates
included) in the matcher and in every layer, `grid_sample` on them, one padded assignment, plain autograd.

How a batch's cost grows is measured in one process that keeps its memory (glibc is told to give none back, as
allocators for GPUs do), in interleaved rounds after one that is not timed.  Otherwise what is measured is how fast a
virtual machine hands out fresh pages (2 to 20 us each, the slower the more are asked for), and not the criterion.

    python tests/benchmarks/bench_criterion.py [--clicks 60] [--masks 100] [--size 1024] [--layers 9] [--images 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from semsam.data.atoms import AtomMap
from semsam.data.manifest import Vocabulary
from semsam.data.sample import Batch, Prompts, Regions, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.criterion import Criterion, CriterionSettings
from semsam.losses.mask_losses import MaskSource
from semsam.losses.targets import Targets, count_targets
from semsam.model.predictions import ModelOutput, Predictions
from semsam.ops.boxes import cxcywh_to_xyxy, generalized_iou, pairwise_generalized_iou
from semsam.ops.point_sampling import sample_maps

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**35)}  # Read by glibc.
GROWTH_ROUNDS = 3
LEVELS = 6
WEIGHTS = {"mask_bce": 5, "mask_dice": 5, "box_l1": 5, "giou": 2, "iou": 1}


@dataclass(frozen=True)
class Sizes:
    clicks: int
    masks: int
    size: int
    layers: int
    images: int
    points: int


def nested_masks(sizes: Sizes, rng: np.random.Generator) -> np.ndarray:
    """Ellipses of all sizes, many inside others, as SA-1B's masks are: about six under a random click."""
    ys, xs = (np.mgrid[: sizes.size, : sizes.size] + 0.5) / sizes.size
    masks = np.zeros((sizes.masks, sizes.size, sizes.size), bool)
    for mask in masks:
        radius = np.exp(rng.uniform(np.log(0.02), np.log(0.5))) * rng.uniform(0.6, 1.6, 2)
        centre = rng.uniform(0, 1, 2)
        mask[:] = ((ys - centre[0]) / radius[0]) ** 2 + ((xs - centre[1]) / radius[1]) ** 2 < 1
    return masks


def make_sample(index: int, sizes: Sizes) -> tuple[Sample, np.ndarray]:
    """A sample, and its masks for the dense way."""
    rng = np.random.default_rng(index)
    masks = nested_masks(sizes, rng)
    bits = np.packbits(masks.reshape(len(masks), -1), axis=0).T.copy()
    patterns, labels = np.unique(bits.view(f"V{bits.shape[1]}")[:, 0], return_inverse=True)
    table = np.unpackbits(patterns.view(np.uint8).reshape(len(patterns), -1), axis=1)[:, : len(masks)].astype(bool)
    table = np.concatenate([np.zeros((1, len(masks)), bool), table])
    atoms = AtomMap((labels.reshape(masks.shape[1:]) + 1).astype(np.uint16), table)
    targets = np.full((sizes.clicks, LEVELS), -1, np.int32)
    for row, mask in zip(targets, np.resize(rng.permutation(len(masks)), sizes.clicks), strict=True):
        y, x = rng.permutation(np.argwhere(masks[mask]))[0]
        found = rng.permutation(np.flatnonzero(masks[:, y, x]))[:LEVELS]
        row[: len(found)] = np.sort(found)
    boxes = np.array([tight_box(mask) for mask in masks], np.float32) / sizes.size
    none = np.full(len(masks), -1, np.int32)
    everything = np.ones(len(masks), bool)
    prompts = Prompts(
        boxes[np.resize(np.arange(len(masks)), sizes.clicks)],
        np.zeros(sizes.clicks, bool),
        np.ones(sizes.clicks, bool),
        targets,
        targets[:, 0],
    )
    regions = Regions(boxes, everything, none, none, none, everything)
    image = np.zeros((3, sizes.size, sizes.size), np.uint8)
    return Sample(index, "sa1b", str(index), image, atoms, regions, prompts), masks


def tight_box(mask: np.ndarray) -> tuple[float, float, float, float]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low, high = np.array([xs[0], ys[0]]), np.array([xs[-1] + 1, ys[-1] + 1])
    return (*((low + high) / 2), *(high - low))


@dataclass(frozen=True)
class Leaves:
    """What both sides differentiate: one entry per layer, and maps image by image."""

    maps: list[list[Tensor]]
    boxes: list[Tensor]
    ious: list[Tensor]

    @staticmethod
    def of(sizes: Sizes) -> Leaves:
        generator = torch.Generator().manual_seed(0)
        b, q, side = sizes.images, sizes.clicks * LEVELS, sizes.size // 4
        leaves = Leaves([], [], [])
        for _ in range(sizes.layers):
            coarse = torch.randn((b, q, 8, 8), generator=generator) * 4
            maps = [F.interpolate(one[None], (side, side), mode="bilinear")[0] for one in coarse]
            leaves.maps.append([m.requires_grad_() for m in maps])
            leaves.boxes.append(torch.rand((b, q, 4), generator=generator).mul_(0.5).add_(0.1).requires_grad_())
            leaves.ious.append(torch.rand((b, q), generator=generator).requires_grad_())
        for leaf in (*itertools.chain(*leaves.maps), *leaves.boxes, *leaves.ious):
            leaf.grad = torch.zeros_like(leaf) + 0.0
        return leaves


class GivenPairs(NamedTuple):
    """Some of the maps of an image."""

    all_maps: Tensor
    queries: Tensor

    def shape(self) -> tuple[int, int, int]:
        return len(self.queries), *self.all_maps.shape[1:]

    def maps(self, rows: slice) -> Tensor:
        return self.all_maps.index_select(0, self.queries[rows])

    def add_gradients(self, gradients: Sequence[Tensor], rows: slice, of_maps: Tensor) -> None:
        gradients[0].index_add_(0, self.queries[rows], of_maps)


@dataclass(frozen=True)
class GivenMasks:
    """Predicted maps as leaves."""

    maps: list[Tensor]

    def pairs(self, image: int, queries: Tensor) -> GivenPairs:
        return GivenPairs(self.maps[image], queries)

    def at(self, points: Tensor) -> Tensor:
        return torch.stack([sample_maps(m, p.expand(len(m), -1, -1)) for m, p in zip(self.maps, points, strict=True)])


def ours(batch: Batch, leaves: Leaves, sizes: Sizes) -> tuple[Tensor, dict[str, float]]:
    b, q = leaves.ious[0].shape
    nothing = torch.zeros(b, 0, 0)
    names = torch.zeros(b, q, 0)
    none = Predictions(nothing, nothing[..., None], torch.zeros(b, 0, 4), torch.zeros(b, 0), nothing, nothing)
    layers = [
        Predictions(torch.zeros(b, q, 0), nothing[..., None], boxes, ious, names, names)
        for boxes, ious in zip(leaves.boxes, leaves.ious, strict=True)
    ]

    def masks_of(found: Sequence[Predictions]) -> list[MaskSource]:
        maps = {id(layer): GivenMasks(m) for layer, m in zip(layers, leaves.maps, strict=True)}
        return [maps.get(id(layer), GivenMasks([torch.zeros(0, 4, 4)] * b)) for layer in found]

    criterion = Criterion(CriterionSettings(num_points=sizes.points), masks_of)
    targets = Targets.of(batch, JointVocabulary.of({"sa1b": Vocabulary(objects=())}), torch.device("cpu"))
    output = criterion(ModelOutput(layers, [none], none), targets, torch.from_numpy(count_targets(batch)), seed=0)
    terms = {name: output.terms[f"click/{name}"].item() for name in WEIGHTS}
    return output.loss, terms


def dense(batch: Batch, masks: list[np.ndarray], leaves: Leaves, sizes: Sizes) -> tuple[Tensor, dict[str, float]]:
    """The usual way, image by image."""
    normalizer = float(count_targets(batch)[0])
    terms = dict.fromkeys(WEIGHTS, torch.zeros(()))
    for image, sample in enumerate(batch.samples):
        click, slot = np.nonzero(sample.prompts.targets >= 0)
        wanted = sample.prompts.targets[click, slot]
        truth = torch.from_numpy(masks[image][wanted]).float()
        boxes = torch.from_numpy(sample.regions.boxes_cxcywh[wanted])
        query, target = dense_match(leaves, image, truth, boxes, torch.from_numpy(click), sizes)
        for layer in range(sizes.layers):
            bce, dice = dense_mask_losses(leaves.maps[layer][image][query], truth[target], sizes)
            found = leaves.boxes[layer][image][query]
            giou = 1 - generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(boxes[target]))
            layer_terms = {
                "mask_bce": bce.sum(),
                "mask_dice": dice.sum(),
                "box_l1": (found - boxes[target]).abs().sum(),
                "giou": giou.sum(),
                "iou": (leaves.ious[layer][image][query] - (1 - dice)).square().sum(),
            }
            terms = {name: terms[name] + WEIGHTS[name] * value / normalizer for name, value in layer_terms.items()}
    return torch.stack(list(terms.values())).sum(), {name: term.item() for name, term in terms.items()}


@torch.no_grad()
def dense_match(
    leaves: Leaves, image: int, truth: Tensor, boxes: Tensor, click: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    points = torch.rand(1, sizes.points, 2) * 2 - 1
    maps = leaves.maps[-1][image]
    logits, values = (
        sample_maps(maps, points.expand(len(maps), -1, -1)),
        sample_maps(truth, points.expand(len(truth), -1, -1)),
    )
    positive = F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    negative = F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), reduction="none")
    bce = (positive @ values.T + negative @ (1 - values).T) / sizes.points
    p = logits.sigmoid()
    dice = 1 - (2 * p @ values.T + 1) / (p.sum(1)[:, None] + values.sum(1)[None] + 1)
    found = leaves.boxes[-1][image]
    l1 = torch.cdist(found, boxes, p=1)
    giou = pairwise_generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(boxes))
    cost = 5 * bce + 5 * dice + 5 * l1 - 2 * giou
    cost[torch.arange(len(cost))[:, None] // LEVELS != click] = 1e6
    query, target = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(query), torch.from_numpy(target)


def dense_mask_losses(maps: Tensor, truth: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
    m, uncertain = len(maps), int(0.75 * sizes.points)
    with torch.no_grad():
        candidates = torch.rand(m, 3 * sizes.points, 2) * 2 - 1
        kept = sample_maps(maps, candidates).abs().topk(uncertain, dim=1, largest=False).indices
        points = candidates.gather(1, kept[..., None].expand(-1, -1, 2))
        points = torch.cat([points, torch.rand(m, sizes.points - uncertain, 2) * 2 - 1], dim=1)
        values = sample_maps(truth, points)
    logits = sample_maps(maps, points)
    bce = F.binary_cross_entropy_with_logits(logits, values, reduction="none").mean(1)
    p = logits.sigmoid()
    return bce, 1 - (2 * (p * values).sum(1) + 1) / (p.sum(1) + values.sum(1) + 1)


def peak_bytes(reset: bool = False) -> int:
    """The most resident memory since the last reset, which sets it to what is resident now (Linux only)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(sizes: Sizes, results: multiprocessing.Queue, name: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples, masks = zip(*(make_sample(index, sizes) for index in range(sizes.images)), strict=True)
    batch = Batch.of(list(samples), step=0)
    leaves = Leaves.of(sizes)
    run: Callable[[], tuple[Tensor, dict[str, float]]]
    run = (lambda: ours(batch, leaves, sizes)) if name == "ours" else (lambda: dense(batch, list(masks), leaves, sizes))
    before = peak_bytes(reset=True)
    in_the_kernel = os.times().system
    start = time.process_time()
    loss, terms = run()
    forward = time.process_time()
    loss.backward()
    end = time.process_time()
    results.put(
        {
            "pairs": int(count_targets(batch)[0]),
            "forward_s": forward - start,
            "backward_s": end - forward,
            "total_s": end - start,
            "in_the_kernel_s": os.times().system - in_the_kernel,
            "peak_gib": (peak_bytes() - before) / 2**30,
            "terms": terms,
        }
    )


def measure_growth(sizes: Sizes, results: multiprocessing.Queue) -> None:
    """CPU seconds of so many images and of four times as many, the best of interleaved rounds each."""
    torch.set_num_threads(1)
    works = {}
    for images in (sizes.images, 4 * sizes.images):
        some = replace(sizes, images=images)
        works[images] = (
            Batch.of([make_sample(index, some)[0] for index in range(images)], step=0),
            Leaves.of(some),
            some,
        )
    times: dict[int, list[float]] = {images: [] for images in works}
    for _ in range(1 + GROWTH_ROUNDS):
        for images, work in works.items():
            start = time.process_time()
            ours(*work)[0].backward()
            times[images].append(time.process_time() - start)
    best = {images: min(taken[1:]) for images, taken in times.items()}
    results.put({"seconds": times, "ratio": best[4 * sizes.images] / best[sizes.images]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("clicks", 60),
        ("masks", 100),
        ("size", 1024),
        ("layers", 9),
        ("images", 1),
        ("points", 12_544),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", choices=["ours", "dense"])
    arguments = vars(parser.parse_args())
    only = arguments.pop("only")
    sizes = Sizes(**arguments)
    print(json.dumps(vars(sizes)))
    if only:
        in_new_process(measure, sizes, only)
        return
    ours, dense = in_new_process(measure, sizes, "ours"), in_new_process(measure, sizes, "dense")
    for what, name, bound in (("time", "total_s", 0.25), ("peak memory", "peak_gib", 0.2)):
        print(f"ours / dense: {what} {ours[name] / dense[name]:.3f}  (bound: {bound})")
    print(f"batch of 4 / one: time {in_new_process(measure_growth, sizes, **KEEP_MEMORY)['ratio']:.2f}  (bound: 4.4)")


def in_new_process(work: Callable[..., None], sizes: Sizes, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `work` finds."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    os.environ |= environment
    process = context.Process(target=work, args=(sizes, results, *arguments))
    process.start()
    for name in environment:
        del os.environ[name]
    found: dict[str, Any] = results.get()
    process.join()
    print(*arguments, json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
