"""What an evaluation's numbers cost once the model has answered: against pycocotools and dense maps, and at full size.

    python tests/benchmarks/bench_evaluation_numbers.py [--images 2000] [--full]

Prints ratios of times taken in one run: boxes' and masks' AP against pycocotools, PQ against maps of segments in NumPy.
`--full` takes 5,000 images of 50 masks and 50 answers through every number and every interval, and looks at the
process's memory.  Ends with an error where a bound is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Int64
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.boundary_ap import boundary_average_precision
from semsam.evaluation.intervals import intervals
from semsam.evaluation.items import ImageItem, NamedMask
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from semsam.evaluation.panoptic_quality import panoptic_quality
from semsam.evaluation.semantic_iou import semantic_iou

HEIGHT, WIDTH = 480, 640
MASKS = 50
SEGMENTS = 25
NAMES_OF_IMAGE = 8
NAMES = Vocabulary(tuple(f"name {i}" for i in range(133)), things=tuple(i < 80 for i in range(133)))
LEAST_AP_RATIO, LEAST_PQ_RATIO = 20, 4
MOST_SECONDS, MOST_INTERVAL_SECONDS, MOST_BYTES = 60, 300, 2 * 2**30


class Pictures:
    """Shapes, and divisions of an image, drawn once: drawing all of them anew would take longer than measuring."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        outlines = [self._ellipse() for _ in range(300)]
        # Each with the same one a little off: what a model would answer.
        self.shapes = [(_encoded(mask), _encoded(self._shifted(mask))) for mask in outlines]
        self.divisions = [self._division(outlines) for _ in range(60)]

    def item(self, number: int, masks: int, answers_of_image: int) -> ImageItem:
        rng = self.rng
        names = rng.choice(80, NAMES_OF_IMAGE, replace=False)
        regions, answers = [], []
        for place in rng.integers(0, len(self.shapes), masks):
            (counts, box, area), (other, other_box, _) = self.shapes[place]
            name, score = int(rng.choice(names)), float(np.float32(rng.random()))
            crowd = bool(rng.random() < 0.02)
            regions.append(Region("0", copied(counts), box, area, Kind.INSTANCE, name, is_crowd=crowd))
            answered = name if rng.random() < 0.8 else int(rng.choice(names))
            answers.append(NamedMask(copied(other), other_box, answered, None, score))
        for place in rng.integers(0, len(self.shapes), answers_of_image - masks):
            counts, box, _ = self.shapes[place][0]
            name, score = int(rng.choice(names) if rng.random() < 0.5 else rng.integers(80)), rng.random() / 2
            answers.append(NamedMask(copied(counts), box, name, None, float(np.float32(score))))
        truth, predicted = self.divisions[rng.integers(len(self.divisions))]
        name_of = rng.integers(0, 133, SEGMENTS)
        for segment, (counts, box, area) in truth.items():
            crowd = bool(rng.random() < 0.02)
            regions.append(Region("0", copied(counts), box, area, Kind.PANOPTIC, int(name_of[segment]), is_crowd=crowd))
        panoptic = [
            NamedMask(copied(counts), box, int(name_of[segment if rng.random() < 0.8 else 0]), None, 1.0)
            for segment, (counts, box, _) in predicted.items()
        ]
        semantic = [NamedMask(one.rle, one.box_xyxy, name, None, 1.0) for name, one in enumerate(panoptic)]
        size = HEIGHT, WIDTH
        answers.sort(key=lambda answer: -answer.score)
        lists: dict[str, Any] = {"instances": answers, "panoptic": panoptic, "semantic": semantic}
        return ImageItem(
            f"{number:012d}", *size, *size, tuple(regions), **{name: tuple(list_) for name, list_ in lists.items()}
        )

    def _ellipse(self) -> Bool[np.ndarray, "h w"]:
        """An ellipse with a rough edge: about as many runs as an annotator's polygon has."""
        canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
        radius = 4 * 60 ** self.rng.random()  # A third each are small, medium and large, about as in COCO.
        centre = tuple(int(c) for c in self.rng.integers(0, (WIDTH, HEIGHT)))
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        away = radius * self.rng.uniform(0.7, 1, len(angles))
        points = np.stack([np.cos(angles), np.sin(angles) * 0.7], 1) * away[:, None] + centre
        cv2.fillPoly(canvas, [points.astype(np.int32)], 1)
        canvas[centre[1], centre[0]] = 1
        return canvas.astype(bool)

    def _shifted(self, mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        return np.roll(mask, tuple(self.rng.integers(-5, 6, 2)), (0, 1))

    def _division(self, outlines: list[Bool[np.ndarray, "h w"]]) -> tuple[dict[int, Any], dict[int, Any]]:
        labels: Int64[np.ndarray, "h w"] = np.full((HEIGHT, WIDTH), -1)
        answer = labels.copy()
        for segment, place in enumerate(self.rng.integers(0, len(outlines), SEGMENTS)):
            labels[outlines[place]] = segment
            answer[self._shifted(outlines[place])] = segment
        return tuple({int(s): _encoded(one == s) for s in np.unique(one) if s >= 0} for one in (labels, answer))  # type: ignore[return-value]


def _encoded(mask: Bool[np.ndarray, "h w"]) -> tuple[bytes, tuple[float, float, float, float], float]:
    counts = rle.encode(mask)
    return counts, rle.box_xyxy(counts, HEIGHT, WIDTH), float(mask.sum())


def copied(counts: bytes) -> bytes:
    """The same bytes in memory of their own, as they come from a file."""
    return bytes(bytearray(counts))


def pycocotools_average_precision(items: list[ImageItem], overlap: Overlap) -> None:
    """The official tool, without its reading of files."""
    truth, found = [], []
    for image, item in enumerate(items):
        size = [item.height, item.width]
        for region in item.regions:
            if region.kind is Kind.INSTANCE:
                x1, y1, x2, y2 = region.box_xyxy
                where = {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": {"size": size, "counts": region.rle}}
                ids = {"id": len(truth) + 1, "image_id": image, "category_id": region.object_category}
                truth.append({**ids, **where, "area": region.area, "iscrowd": int(region.is_crowd)})
        for answer in item.instances or ():
            x1, y1, x2, y2 = answer.box_xyxy
            mask = {"segmentation": {"size": size, "counts": answer.rle}}
            where = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if overlap is Overlap.BOXES else mask
            found.append({"image_id": image, "category_id": answer.object_category, "score": answer.score, **where})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": i, "height": item.height, "width": item.width} for i, item in enumerate(items)]
        coco.dataset = {"images": images, "annotations": truth, "categories": [{"id": c} for c in range(80)]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox" if overlap is Overlap.BOXES else "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()


def numpy_panoptic_quality(items: list[ImageItem]) -> float:
    """PQ from maps of segments: pairs of labels, counted pixel by pixel."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0, 0, 0])
    for item in items:
        truth = [region for region in item.regions if region.kind is Kind.PANOPTIC]
        predicted = list(item.panoptic or ())
        maps = []
        for side in (truth, predicted):
            labels = np.zeros((item.height, item.width), np.int64)
            for number, segment in enumerate(side):
                labels[rle.decode(segment.rle or b"", item.height, item.width)] = number + 1
            maps.append(labels)
        pairs, counts = np.unique(maps[0] * 1000 + maps[1], return_counts=True)
        pixels = np.zeros((len(truth) + 1, len(predicted) + 1))
        pixels[pairs // 1000, pairs % 1000] = counts
        matched: set[int] = set()
        crowds = {region.object_category: t for t, region in enumerate(truth, 1) if region.is_crowd}
        for t, region in enumerate(truth, 1):
            hit = False
            for p, answer in enumerate(predicted, 1):
                if region.is_crowd or answer.object_category != region.object_category:
                    continue
                union = pixels[t].sum() + pixels[1:, p].sum() - pixels[t, p]
                if pixels[t, p] / union > 0.5:
                    hit = True
                    matched.add(p)
                    sums[answer.object_category][0] += pixels[t, p] / union
                    sums[answer.object_category][1] += 1
            if not hit and not region.is_crowd:
                sums[region.object_category or 0][3] += 1
        for p, answer in enumerate(predicted, 1):
            no_mistake = pixels[0, p] + pixels[crowds.get(answer.object_category, 0), p] * (
                answer.object_category in crowds
            )
            if p not in matched and no_mistake / pixels[:, p].sum() <= 0.5:
                sums[answer.object_category][2] += 1
    quality = [iou / (tp + fp / 2 + fn / 2) for iou, tp, fp, fn in sums.values() if tp + fp + fn]
    return float(np.mean(quality))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """CPU time, of all threads: what else runs on the machine does not matter."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--full", action="store_true", help="5,000 images through every number and interval")
    arguments = parser.parse_args()
    missed = at_full_size() if arguments.full else against_others(arguments.images)
    for bound in missed:
        print(f"missed: {bound}")
    return 1 if missed else 0


def against_others(num_images: int) -> list[str]:
    pictures = Pictures(0)
    items = [pictures.item(number, 7, 100) for number in range(num_images)]  # As in COCO.
    missed = []
    together = np.zeros(2)
    for overlap in Overlap:
        ours, seconds = timed(lambda overlap=overlap: average_precision(items, NAMES, Names.THINGS, overlap))
        _, theirs = timed(lambda overlap=overlap: pycocotools_average_precision(items, overlap))
        assert isinstance(ours, Numbers)
        print(
            f"AP of {overlap.value}: {theirs / seconds:.1f} times as fast as pycocotools"
            f" ({seconds:.2f} s, {theirs:.1f} s; {num_images} images, ap {ours.values['ap']:.4f})"
        )
        together += seconds, theirs
    print(f"AP of both: {together[1] / together[0]:.1f} times as fast")
    if together[1] / together[0] < LEAST_AP_RATIO:
        missed.append(f"AP of boxes and masks is to be {LEAST_AP_RATIO} times as fast as pycocotools")
    few = items[: max(num_images // 10, 1)]  # Dense maps take too long for all.
    ours, seconds = timed(lambda: panoptic_quality(few, NAMES))
    expected, theirs = timed(lambda: numpy_panoptic_quality(few))
    assert isinstance(ours, Numbers)
    assert abs(ours.values["pq"] - expected) < 1e-12, (ours.values, expected)
    print(f"PQ: {theirs / seconds:.1f} times as fast as maps ({seconds:.2f} s, {theirs:.1f} s; {len(few)} images)")
    if theirs / seconds < LEAST_PQ_RATIO:
        missed.append(f"PQ is to be {LEAST_PQ_RATIO} times as fast as maps in NumPy")
    return missed


def at_full_size() -> list[str]:
    pictures = Pictures(0)
    items = [pictures.item(number, MASKS, MASKS) for number in range(5000)]
    print(f"5,000 items: {_peak_bytes() / 2**30:.2f} GiB")
    protocols: dict[str, Callable[[], Numbers | Absent]] = {
        "AP of boxes": lambda: average_precision(items, NAMES, Names.THINGS, Overlap.BOXES),
        "AP of masks": lambda: average_precision(items, NAMES, Names.THINGS, Overlap.MASKS),
        "boundary AP": lambda: boundary_average_precision(items, NAMES),
        "PQ": lambda: panoptic_quality(items, NAMES),
        "mIoU": lambda: semantic_iou(items, NAMES),
    }
    numbers_seconds = interval_seconds = 0.0
    for name, measure in protocols.items():
        numbers, seconds = timed(measure)
        assert isinstance(numbers, Numbers)
        numbers_seconds += seconds
        _, more = timed(lambda numbers=numbers: intervals(numbers.images))
        interval_seconds += more
        print(f"{name}: {seconds:.1f} s, intervals {more:.1f} s; peak {_peak_bytes() / 2**30:.2f} GiB", flush=True)
    print(f"together: {numbers_seconds:.1f} s, intervals {interval_seconds:.1f} s")
    bounds = {
        f"all numbers in {MOST_SECONDS} s": numbers_seconds <= MOST_SECONDS,
        f"all intervals in {MOST_INTERVAL_SECONDS} s": interval_seconds <= MOST_INTERVAL_SECONDS,
        "2 GiB of memory": _peak_bytes() <= MOST_BYTES,
    }
    return [bound for bound, holds in bounds.items() if not holds]


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
