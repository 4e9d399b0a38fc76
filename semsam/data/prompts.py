"""The clicks and boxes that a training sample asks the model about, and the regions that answer them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64

from semsam.config import Positive, Share, Weight, settings
from semsam.data.atoms import AtomMap
from semsam.data.sample import Prompts, Regions

CLICK_RADIUS = 3  # A click is handed to the model as the box of this many pixels to each side.


@settings
class PromptSettings:
    """How many prompts a sample has, and of which sort."""

    num_prompts: Positive = 60
    num_levels: Positive = 6  # Granularity levels of the model: how many targets one prompt can have.
    box_share: Share = 0.25  # The probability that a prompt is a box and not a click.
    # A box prompt's edges are moved at random, as a user's are: standard deviation in parts of the side, most pixels.
    box_noise: Weight = 0.1
    max_box_noise: Weight = 20.0


def make_prompts(
    atoms: AtomMap, regions: Regions, rng: np.random.Generator, settings: PromptSettings, height: int, width: int
) -> Prompts:
    """`num_prompts` prompts for the regions of one sample, all of them padding where it has none.

    Every region is asked for before one is asked for again.  A click is a random pixel of its region's mask, and every
    mask under it is a target, in the order of the regions; of more than `num_levels` a random choice is kept, which may
    leave out the clicked one (`asked` still names it).  A box asks for its region alone.  A region without mask gets
    boxes only.
    """
    if not len(regions):
        return no_prompts(settings)
    n = settings.num_prompts
    asked = np.resize(rng.permutation(len(regions)), n)
    is_box = (rng.random(n) < settings.box_share) | ~regions.has_mask[asked]
    boxes = np.empty((n, 4), np.float32)
    targets = np.full((n, settings.num_levels), -1, np.int32)
    boxes[is_box] = _noisy_boxes(regions.boxes_cxcywh[asked[is_box]], rng, settings, height, width)
    targets[is_box, 0] = asked[is_box]
    ys, xs = atoms.random_pixels(asked[~is_box], rng)
    boxes[~is_box] = click_boxes_cxcywh(ys, xs, height, width)
    targets[~is_box] = _targets_under(atoms.covering(ys, xs), settings.num_levels, rng)
    return Prompts(
        boxes_cxcywh=boxes, is_box=is_box, valid=np.ones(n, bool), targets=targets, asked=asked.astype(np.int32)
    )


def no_prompts(settings: PromptSettings) -> Prompts:
    """Padding alone: prompts that are computed and count for nothing."""
    n = settings.num_prompts
    return Prompts(
        boxes_cxcywh=np.tile(np.array([0.5, 0.5, 1.0, 1.0], np.float32), (n, 1)),
        is_box=np.zeros(n, bool),
        valid=np.zeros(n, bool),
        targets=np.full((n, settings.num_levels), -1, np.int32),
        asked=np.full(n, -1, np.int32),
    )


def click_boxes_cxcywh(
    ys: Int64[np.ndarray, " n"], xs: Int64[np.ndarray, " n"], height: int, width: int
) -> Float[np.ndarray, "n 4"]:
    """The boxes that stand for clicks on these pixels, relative to the image and not cut at its border."""
    side = np.full(len(xs), 2.0 * CLICK_RADIUS)
    return np.stack([xs / width, ys / height, side / width, side / height], axis=1).astype(np.float32)


def _noisy_boxes(
    boxes_cxcywh: Float[np.ndarray, "n 4"],
    rng: np.random.Generator,
    settings: PromptSettings,
    height: int,
    width: int,
) -> Float[np.ndarray, "n 4"]:
    """The boxes with edges moved inside the image; a side that is left without length gets its old place back."""
    centres, sides = boxes_cxcywh[:, :2].astype(np.float64), boxes_cxcywh[:, 2:].astype(np.float64)
    most = settings.max_box_noise / np.array([width, height])
    spread = sides * settings.box_noise
    low, high = (rng.standard_normal((2, *sides.shape)) * spread).clip(-most, most)
    low, high = (centres - sides / 2 + low).clip(0, 1), (centres + sides / 2 + high).clip(0, 1)
    is_lost = high <= low
    low, high = np.where(is_lost, centres - sides / 2, low), np.where(is_lost, centres + sides / 2, high)
    return np.concatenate([(low + high) / 2, high - low], axis=1).astype(np.float32)


def _targets_under(
    covering: Bool[np.ndarray, "p m"], num_levels: int, rng: np.random.Generator
) -> Int32[np.ndarray, "p k"]:
    """The covering masks of each click in their order, -1 padded; a random choice where there are too many."""
    targets = np.full((len(covering), num_levels), -1, np.int32)
    click, mask = np.nonzero(covering)
    counts = covering.sum(1)
    place = np.arange(len(click)) - np.repeat(np.cumsum(counts) - counts, counts)
    fits = place < num_levels
    targets[click[fits], place[fits]] = mask[fits]
    crowded = np.flatnonzero(counts > num_levels)
    if len(crowded):
        drawn = rng.random((len(crowded), covering.shape[1]))
        targets[crowded] = np.where(covering[crowded], drawn, 1).argsort(axis=1)[:, :num_levels]
    return targets
