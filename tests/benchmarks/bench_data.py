"""What one training sample costs on atom maps, against the usual way of dense masks, in one process and one thread.

    python tests/benchmarks/bench_data.py

The two ways take turns, and the ratio of their fastest rounds is what counts: absolute times are this machine's.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.data.augmentation import Geometry, random_geometry
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.prompts import make_prompts
from semsam.data.randomness import generator
from semsam.data.schema import Kind, Record, Region
from semsam.data.training_sample import SampleSettings, training_sample

SETTINGS = SampleSettings()


def nested_masks(height: int, width: int, num: int, seed: int) -> list[np.ndarray]:
    """Wobbly discs, most of them inside another one, from a hundredth to half of the image's side."""
    rng = np.random.default_rng(seed)
    angles = np.linspace(0, 2 * np.pi, 140, endpoint=False)
    parents = [(width / 2, height / 2, width * 0.5, height * 0.5)]
    masks = []
    for _ in range(num):
        x, y, a, b = parents[int(rng.integers(min(len(parents), 30)))]
        share = np.exp(rng.uniform(np.log(0.08), np.log(0.7)))
        a_new, b_new = max(6.0, a * share * rng.uniform(0.7, 1.4)), max(6.0, b * share * rng.uniform(0.7, 1.4))
        x_new, y_new = x + rng.uniform(-1, 1) * max(0, a - a_new), y + rng.uniform(-1, 1) * max(0, b - b_new)
        radii = 1 + 0.07 * rng.standard_normal(len(angles))
        outline = np.stack([x_new + a_new * radii * np.cos(angles), y_new + b_new * radii * np.sin(angles)], axis=1)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [outline.round().astype(np.int32)], 1)
        masks.append(mask)
        parents.append((x_new, y_new, a_new, b_new))
    return masks


def scene(dataset: str, height: int, width: int, num: int, seed: int = 0, boxes_only: bool = False) -> Record:
    """A record with a photograph's amount of detail and nested masks."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 1.5)
    smooth = cv2.resize(
        rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    image = encode_jpeg(cv2.addWeighted(smooth, 0.7, noise, 0.6, -40))
    regions = []
    for j, mask in enumerate(nested_masks(height, width, num, seed)):
        counts = rle.encode(mask.astype(bool))
        box = rle.box_xyxy(counts, height, width)
        regions.append(Region(str(j), None if boxes_only else counts, box, float(mask.sum()), Kind.CLASS_AGNOSTIC))
    return Record(dataset, "train", "bench", image, height, width, height, width, tuple(regions))


def dense_masks(record: Record, geometry: Geometry) -> np.ndarray:
    """The usual way: every mask decoded, resized, mirrored, cut and padded by itself."""
    size = geometry.crop_size
    masks = np.zeros((len(record.regions), size, size), np.uint8)
    scale_y = geometry.visible_height / geometry.window_height * geometry.eighths / 8
    scale_x = geometry.visible_width / geometry.window_width * geometry.eighths / 8
    new_size = max(1, round(record.width * scale_x)), max(1, round(record.height * scale_y))
    top, left = (
        round(geometry.top * 8 / geometry.eighths * scale_y),
        round(geometry.left * 8 / geometry.eighths * scale_x),
    )
    for j, region in enumerate(record.regions):
        mask = coco_mask.decode({"size": [record.height, record.width], "counts": region.rle})
        mask = cv2.resize(mask, new_size, interpolation=cv2.INTER_NEAREST)
        mask = mask[top : top + size, left : left + size]
        masks[j, : mask.shape[0], : mask.shape[1]] = mask[:, ::-1] if geometry.flip else mask
    return masks


def dense_clicks(masks: np.ndarray, num_prompts: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A random pixel of a mask and every mask under it, for each prompt."""
    boxes = np.array([cv2.boundingRect(mask) for mask in masks])
    visible = np.flatnonzero(boxes[:, 2])
    targets = []
    for j in np.resize(rng.permutation(visible), num_prompts):
        pixels = np.flatnonzero(masks[j])
        y, x = np.divmod(pixels[rng.integers(len(pixels))], masks.shape[2])
        targets.append(np.flatnonzero(masks[:, y, x]))
    return targets


def dense_sample(record: Record, index: int) -> list[np.ndarray]:
    """The whole sample the usual way; the image alone is made as ours is."""
    geometry = geometry_of(record, index)
    image = cv2.cvtColor(decode_jpeg(record.image), cv2.COLOR_RGB2BGR)
    cv2.resize(image, (geometry.visible_width, geometry.visible_height))
    return dense_clicks(dense_masks(record, geometry), SETTINGS.prompts.num_prompts, generator(0, index, "prompts"))


def geometry_of(record: Record, index: int) -> Geometry:
    augmentation = SETTINGS.augmentation
    scales = augmentation.scale_range(record.dataset)
    return random_geometry(record.height, record.width, scales, augmentation, generator(0, index, "augmentation"))


def take_turns(ways: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Fastest CPU milliseconds of each way; round `i` gives all of them the same `i`, so that they do the same work."""
    times = np.full((rounds, len(ways)), np.inf)
    for i in range(-1, rounds):  # The first round warms up.
        for j, way in enumerate(ways):
            start = time.thread_time()
            way(max(i, 0))
            if i >= 0:
                times[i, j] = 1e3 * (time.thread_time() - start)
    return times.min(0).tolist()


def compare(name: str, fast: float, dense: float, bound: str = "") -> None:
    print(f"  {name:<46} {dense:8.1f} ms dense  {fast:8.2f} ms atoms   1/{dense / fast:.0f}{bound}")


def sa1b_like(height: int, width: int, rounds: int = 7) -> None:
    record = scene("sa1b", height, width, 100)
    rles = [region.rle for region in record.regions]
    geometry = geometry_of(record, 0)
    rows, cols = geometry.rows(), geometry.cols()
    crop = AtomMap.from_rles(rles, height, width, rows, cols)
    regions = training_sample(record, 0, 0, SETTINGS).regions
    dense = dense_masks(record, geometry)
    size, num_bytes = geometry.crop_size, sum(len(one or b"") for one in rles)
    print(f"{height} x {width}, 100 masks, {num_bytes / 1e3:.0f} kB of RLE, {len(crop.table)} labels, crop {size}")

    def decode_all(_: int) -> None:
        for one in rles:
            coco_mask.decode({"size": [height, width], "counts": one})

    fast, slow = take_turns([lambda _: AtomMap.from_rles(rles, height, width), decode_all], rounds)
    compare("strings to full resolution", fast, slow)
    fast, slow = take_turns(
        [lambda _: AtomMap.from_rles(rles, height, width, rows, cols), lambda _: dense_masks(record, geometry)], rounds
    )
    compare("strings to resize, flip and crop", fast, slow)
    prompts = SETTINGS.prompts
    fast, slow = take_turns(
        [
            lambda i: make_prompts(crop, regions, generator(0, i, "prompts"), prompts, size, size),
            lambda i: dense_clicks(dense, prompts.num_prompts, generator(0, i, "prompts")),
        ],
        rounds,
    )
    compare("60 prompts and every mask under each click", fast, slow)
    fast, slow, decode = take_turns(
        [
            lambda i: training_sample(record, i, 0, SETTINGS),
            lambda i: dense_sample(record, i),
            lambda _: decode_jpeg(record.image),
        ],
        rounds,
    )
    compare("the whole sample, JPEG included", fast, slow, "  (bound: 1/15)")
    bound = f"(bound: 1.6 times the decode + 12 = {1.6 * decode + 12:.1f} ms)"
    print(f"  JPEG decode alone {decode:.1f} ms, the whole sample {fast:.1f} ms  {bound}")


def images_per_second(rounds: int = 12) -> None:
    """Samples of the seven datasets at sizes and numbers of regions that are typical of them."""
    typical = {
        "sa1b": (683, 1024, 100),
        "coco_panoptic": (480, 640, 12),
        "objects365": (512, 768, 16),
        "ade20k": (512, 683, 20),
        "pascal_part": (375, 500, 15),
        "paco": (480, 640, 30),
        "partimagenet": (375, 500, 5),
    }
    print("samples per second of one core, crop 1024, from records in memory")
    for dataset, (height, width, num) in typical.items():
        record = scene(dataset, height, width, num, boxes_only=dataset == "objects365")
        start = time.thread_time()
        for i in range(rounds):
            training_sample(record, i, 0, SETTINGS)
        print(f"  {dataset:<14} {height:4} x {width:4}, {num:3} regions: {rounds / (time.thread_time() - start):6.0f}")


if __name__ == "__main__":
    cv2.setNumThreads(1)
    sa1b_like(1500, 2250)
    sa1b_like(683, 1024)
    images_per_second()
