"""Automatic masks of one 640 x 960 photo: CPU seconds and peak memory by size of the grid and of the batch of clicks.

Once as with a model that is sure of nothing (no mask passes the filters: the price of the clicks alone), and once with
every mask of every click kept and none suppressed, which no trained model comes near: the two ends of what it can cost.

    python tests/benchmarks/bench_automatic_masks.py [--preset swin_tiny] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings
from semsam.model.presets import preset
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings
from semsam.predictor import Predictor

HEIGHT, WIDTH = 640, 960
NOTHING = AutomaticMaskSettings(min_iou=1e9)
EVERYTHING = AutomaticMaskSettings(min_iou=-1e9, min_stability=0.0, max_overlap=1.0, min_region_area=0)
# (clicks to a side, clicks to a batch, what is kept)
CASES = [
    *((side, 200, NOTHING) for side in (8, 16, 32)),
    *((32, batch, NOTHING) for batch in (50, 1024)),
    (16, 200, EVERYTHING),
    (32, 200, EVERYTHING),
    (32, 50, EVERYTHING),
]


def memory_mib(of: str) -> float:
    """`VmRSS` (now) or `VmHWM` (the most since `forget_peak`) of this process; nan where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(of)), float("nan"))


def forget_peak() -> None:
    """Let the peak be what is in use now."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="swin_tiny")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = preset(args.preset)
    # The text encoder takes no part.
    model = SemanticSam(replace(settings, text=TextSettings(kind="byte_ngrams", dim=settings.text.dim))).eval()
    predictor = Predictor(model)
    photo = np.random.default_rng(0).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    photo = photo.repeat(16, axis=0).repeat(16, axis=1)
    start = time.process_time()
    [image] = predictor.encode([photo])
    seconds = time.process_time() - start
    print(f"{args.preset}, {HEIGHT} x {WIDTH} photo, {args.threads} thread(s); encoding it: {seconds:.2f} CPU s")
    print(f"{'clicks':>8}{'a batch':>9}{'kept':>8}{'CPU s':>8}{'ms/click':>10}{'peak memory over the model':>29}")
    for side, batch, kept in CASES:
        masks = AutomaticMasks(predictor, replace(kept, points_per_side=side, points_per_batch=batch))
        before = memory_mib("VmRSS")
        forget_peak()
        start = time.process_time()
        found = masks._of_encoded(image)
        seconds = time.process_time() - start
        peak = memory_mib("VmHWM") - before
        per_click = 1000 * seconds / side**2
        print(f"{side**2:>8}{batch:>9}{len(found):>8}{seconds:>8.2f}{per_click:>10.2f}{peak:>25.0f} MiB")


if __name__ == "__main__":
    main()
