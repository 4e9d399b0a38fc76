"""The toy world: seven small datasets of drawn scenes, each in the native layout of the dataset it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipelines.toy.layouts import LAYOUTS
from pipelines.toy.names import OBJECTS
from pipelines.toy.native_split import NativeSplit, ToySplit
from pipelines.toy.scenes import Scene, draw_scene
from pipelines.toy.shapes import KINDS, POLE
from semsam.config import Positive, Seed, settings
from semsam.data.schema import SPLITS


@settings
class ToySettings:
    """How large the world is, for each dataset, and whether it has the faults that real data has.

    A train split has at most one image that cannot be used, and a few such annotations.  With fewer images than by
    default that is more than a hundredth, and preparing needs a larger `max_rejected`.
    """

    seed: Seed = 0
    train_images: Positive = 120
    val_images: Positive = 40
    faults: bool = True


def write_toy_world(folder: str | Path, settings: ToySettings) -> tuple[ToySplit, ...]:
    """Write `<folder>/<dataset>/` for all seven and give what preparing each split should keep and drop.

    The same settings give the same bytes, and more images leave the first scenes as they are.  Raises `ValueError` for
    a folder that holds anything already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: the toy world needs a new or empty folder")
    counts = []
    for dataset, write in LAYOUTS.items():
        for split in SPLITS:
            scenes = toy_scenes(dataset, split, settings)
            rng = _generator(settings.seed, dataset, split, 0)
            native = NativeSplit(folder / dataset, dataset, split, scenes, rng, settings.faults)
            write(native)
            counts.append(native.count)
    return tuple(counts)


def toy_scenes(dataset: str, split: str, settings: ToySettings) -> list[Scene]:
    """The scenes behind a split, in the order of its files."""
    count = settings.train_images if split == "train" else settings.val_images
    return [_draw(dataset, number, _generator(settings.seed, dataset, split, 1 + number)) for number in range(count)]


def _draw(dataset: str, number: int, rng: np.random.Generator) -> Scene:
    kinds = [kind for kind in OBJECTS.get(dataset, KINDS) if kind != POLE]
    chosen = [kinds[number % len(kinds)]]  # Each kind as often as the others.
    if dataset != "partimagenet":  # Its images show one object, as ImageNet's do.
        chosen += rng.choice(kinds, rng.integers(0, 3), replace=False).tolist()
    return draw_scene(rng, chosen, pole_share=0.25)


def _generator(seed: int, dataset: str, split: str, use: int) -> np.random.Generator:
    """Random numbers for one use: 0 for what a layout makes up itself, 1 + number for a scene."""
    return np.random.default_rng([seed, list(LAYOUTS).index(dataset), SPLITS.index(split), use])
