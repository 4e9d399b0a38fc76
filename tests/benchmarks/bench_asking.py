"""CPU seconds of asking about an SA-1B-like image outside the model: overlaps, clicks, box choices, names.

One image of 1500 x 2250 pixels with 100 regions that nest and overlap; the model's own share (encoding and decoding)
is taken off.  The bound is that of issue "evaluation": at most 0.3 s, where the dense way took nine.

    python tests/benchmarks/bench_asking.py
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region
from semsam.encoded_image import EncodedImage
from semsam.evaluation.asking import ask
from semsam.evaluation.baselines import BaselineFit, blind_item
from semsam.evaluation.questions import Questions
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor

HEIGHT, WIDTH, REGIONS = 1500, 2250, 100
BOUND = 0.3
ROUNDS = 3


def record() -> Record:
    """Ellipses of all sizes, many of them in one another."""
    rng, (ys, xs) = np.random.default_rng(0), np.mgrid[:HEIGHT, :WIDTH]
    regions = []
    for number in range(REGIONS):
        y, x = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        half_y, half_x = np.exp(rng.uniform(np.log(12), np.log(300), 2))
        mask = ((ys - y) / half_y) ** 2 + ((xs - x) / half_x) ** 2 <= 1
        mask[int(y) % HEIGHT, int(x) % WIDTH] = True
        counts = rle.encode(mask)
        box = rle.box_xyxy(counts, HEIGHT, WIDTH)
        regions.append(Region(str(number), counts, box, float(mask.sum()), Kind.CLASS_AGNOSTIC))
    # As much detail as a photograph has: a JPEG of noise would take three times as long to decode.
    noise = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
    image = encode_jpeg(noise)
    return Record("sa1b", "val", "1", image, HEIGHT, WIDTH, HEIGHT, WIDTH, tuple(regions))


class Model:
    """What the model itself takes, summed up over its calls."""

    def __init__(self, predictor: Predictor) -> None:
        self.seconds = 0.0
        for name in ("set_image", "decode"):
            setattr(predictor, name, self._timed(getattr(predictor, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            found = call(*arguments, **named)
            found = list(found) if hasattr(found, "__next__") else found
            self.seconds += time.process_time() - started
            return found

        return timed


def trained_masks(image: EncodedImage, rng: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits as a trained model has them, one soft blob each, in place of random weights' noise."""
    height, width = image.features.mask_features.shape[2:]
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

    def logits(embeddings: torch.Tensor) -> torch.Tensor:
        count = len(embeddings)
        y, x = torch.rand(count, generator=rng) * height, torch.rand(count, generator=rng) * width
        half = torch.exp(torch.empty(2, count).uniform_(1.0, 3.7, generator=rng))
        squared = ((ys - y[:, None, None]) / half[0][:, None, None]) ** 2
        return 1 - squared - ((xs - x[:, None, None]) / half[1][:, None, None]) ** 2

    return logits


def main() -> None:
    torch.set_num_threads(1)
    some = record()
    predictor = Predictor(SemanticSam.untrained("debug"), ImageSize(800, 1333))
    model, outside, blind = Model(predictor), [], []
    baselines = BaselineFit.of(some).compute(6)
    small, rng = EncodedImage.small_mask_logits, torch.Generator()

    def blobs(image: EncodedImage, embeddings: torch.Tensor) -> torch.Tensor:
        started = time.process_time()
        found = trained_masks(image, rng)(embeddings)
        model.seconds += time.process_time() - started
        return found

    EncodedImage.small_mask_logits = blobs  # type: ignore[method-assign]
    try:
        for _ in range(ROUNDS):
            rng.manual_seed(0)  # The same masks, however many are made in one go.
            model.seconds, started = 0.0, time.process_time()
            ask(predictor, some, Questions(random_clicks=0))
            outside.append(time.process_time() - started - model.seconds)
            started = time.process_time()
            blind_item(some, baselines, Questions(random_clicks=0), Vocabulary(()), 6)
            blind.append(time.process_time() - started)
    finally:
        EncodedImage.small_mask_logits = small  # type: ignore[method-assign]
    taken = statistics.median(outside)
    print(f"{REGIONS} regions at {HEIGHT}x{WIDTH}, {2 * REGIONS} prompts, {12 * REGIONS} masks, one thread")
    print(f"asking, less the model: {taken:.2f} CPU-seconds (bound {BOUND})")
    print(f"guessing blindly:       {statistics.median(blind):.2f} CPU-seconds")
    if taken > BOUND:
        sys.exit(f"asking takes {taken:.2f} s, more than {BOUND}")


if __name__ == "__main__":
    main()
