"""The toy world: seven small datasets of drawn scenes, each in the layout that its authors release it in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from pipelines.toy.layouts import WRITERS, Layout, scenes_needed
from pipelines.toy.scenes import draw_scene
from semsam.config import settings
from semsam.data.schema import DATASETS, SPLITS


@settings
class ToySettings:
    """How large the world is.  `faults` adds what real data has: with so few images some exceed 1% of a split."""

    seed: int = 0
    train_images: int = 120  # Of each dataset.
    val_images: int = 24
    faults: bool = True


def write_toy_world(folder: str | Path, settings: ToySettings) -> dict[str, Counter[str]]:
    """Write `<folder>/<dataset>/...` for the seven datasets; gives what was spoiled on purpose, counted by reason.

    The same settings give the same bytes.  Every scene is drawn from its own key, so that more images leave the first
    ones as they are.
    """
    faults: dict[str, Counter[str]] = {}
    for dataset in DATASETS:
        faults[dataset] = Counter()
        for split in SPLITS:
            count = settings.train_images if split == "train" else settings.val_images
            keys = [[settings.seed, DATASETS.index(dataset), SPLITS.index(split), i] for i in range(count)]
            names = scenes_needed(dataset)
            # PartImageNet shows one object, as ImageNet does.
            scenes = [
                draw_scene(rng, names, 1 if dataset == "partimagenet" else int(rng.integers(2, 5)))
                for rng in map(np.random.default_rng, keys)
            ]
            layout = Layout(Path(folder) / dataset, split, settings.faults, scenes)
            WRITERS[dataset](layout)
            faults[dataset] += layout.faults
    return faults
