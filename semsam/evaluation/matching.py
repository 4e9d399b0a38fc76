"""Which detections are true, at every IoU threshold and size of object: what an average precision is made of.

The library that computes the numbers of a whole dataset gives its matches as Python lists, a gigabyte and a minute for
five thousand images.  So the matches are made here once more from the same IoUs, all groups (detections of one name in
one image) side by side; that the numbers are the library's is checked where it gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

# As pycocotools has them: linspace, for arange would be a bit above.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREAS = ("all", "small", "medium", "large")
AREA_RANGES = np.array([[0.0, 1e5**2], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e5**2]])
_CELLS_AT_ONCE = 50_000  # Pairs of a detection and a region, times thresholds and sizes.


@dataclass(frozen=True)
class Group:
    """Detections of one name in one image, the best first, and its regions in the record's order."""

    ious: Float64[np.ndarray, "d g"]
    detections: Int64[np.ndarray, " d"]  # Rows of what is to be filled.
    regions: Int64[np.ndarray, " g"]


def match(
    groups: Sequence[Group],
    is_crowd: Bool[np.ndarray, " regions"],
    is_ignored: Bool[np.ndarray, "a regions"],
    num_detections: int,
) -> tuple[Bool[np.ndarray, "t a detections"], Bool[np.ndarray, "t a detections"]]:
    """Whether each detection got a region, and whether that is an ignored one.

    In the order of scores every detection takes the free region with the highest IoU; one that counts goes before one
    that is ignored, of equal ones the last is taken, and a crowd is never used up.
    """
    is_matched = np.zeros((len(IOU_THRESHOLDS), len(is_ignored), num_detections), bool)
    on_ignored = np.zeros_like(is_matched)
    for chunk in _chunks([group for group in groups if group.ious.size]):
        _match_chunk(chunk, is_crowd, is_ignored, is_matched, on_ignored)
    return is_matched, on_ignored


def _chunks(groups: list[Group]) -> list[list[Group]]:
    """Groups with about as many regions and detections, so that little of a block of them is padding."""
    groups = sorted(groups, key=lambda group: (_round_up(len(group.regions)), len(group.detections)))
    chunks: list[list[Group]] = []
    width = 0
    for group in groups:
        if _round_up(len(group.regions)) != width or (len(chunks[-1]) + 1) * width > _CELLS_AT_ONCE:
            chunks.append([])
            width = _round_up(len(group.regions))
        chunks[-1].append(group)
    return chunks


def _round_up(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _match_chunk(
    groups: list[Group],
    is_crowd: Bool[np.ndarray, " regions"],
    is_ignored: Bool[np.ndarray, "a regions"],
    is_matched: Bool[np.ndarray, "t a detections"],
    on_ignored: Bool[np.ndarray, "t a detections"],
) -> None:
    """All groups in rounds, in each of which every group's next detection takes its region."""
    groups = sorted(groups, key=lambda group: -len(group.detections))
    width = max(len(group.regions) for group in groups)
    # From right to left, so that the first of equal IoUs is the record's last.
    regions = np.full((len(groups), width), -1)
    for i, group in enumerate(groups):
        regions[i, : len(group.regions)] = group.regions[::-1]
    crowd = is_crowd[regions] & (regions >= 0)
    counts = ~is_ignored[:, regions]
    taken = np.zeros((len(IOU_THRESHOLDS), *counts.shape), bool)
    floor = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None, None, None]
    t, a = (grid[..., None] for grid in np.indices(taken.shape[:2]))
    for turn in range(len(groups[0].detections)):
        active = sum(len(group.detections) > turn for group in groups)
        ious = np.full((active, width), -1.0)
        for i in range(active):
            row = groups[i].ious[turn]
            ious[i, : len(row)] = row[::-1]
        detections = np.array([group.detections[turn] for group in groups[:active]])
        is_free = (ious >= floor) & ~(taken[:, :, :active] & ~crowd[:active])
        is_first_choice = is_free & counts[:, :active]
        has_first_choice = is_first_choice.any(-1)
        allowed = np.where(has_first_choice[..., None], is_first_choice, is_free)
        best = np.where(allowed, ious, -2.0).argmax(-1)
        found = allowed.any(-1)
        g = np.arange(active)[None, None]
        taken[t, a, g, best] |= found
        is_matched[:, :, detections] = found
        on_ignored[:, :, detections] = found & ~has_first_choice
