"""Groups side by side are matched as one detection after the other would be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from semsam.evaluation.matching import IOU_THRESHOLDS, Group, match


def slow_match(group: Group, crowd: np.ndarray, ignored: np.ndarray, threshold: float) -> list[tuple[bool, bool]]:
    """Of each detection of a group whether it got a region, and whether an ignored one."""
    taken: set[int] = set()
    fates = []
    for row in group.ious:
        fits = [g for g in range(len(row)) if row[g] >= threshold and (g not in taken or crowd[group.regions[g]])]
        wanted = [g for g in fits if not ignored[group.regions[g]]] or fits
        best = max(wanted, key=lambda g: (row[g], g), default=None)
        if best is not None:
            taken.add(best)
        fates.append((best is not None, best is not None and bool(ignored[group.regions[best]])))
    return fates


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_matches_are_those_of_one_detection_after_the_other(seed: int, num_groups: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 6, (num_groups, 2))
    ends = np.cumsum(sizes, axis=0)
    groups = [
        Group(rng.integers(8, 21, (d, g)) / 20, np.arange(end[0] - d, end[0]), np.arange(end[1] - g, end[1]))
        for (d, g), end in zip(sizes.tolist(), ends.tolist(), strict=True)
    ]
    num_detections, num_regions = sizes.sum(0).tolist()
    crowd = rng.random(num_regions) < 0.2
    ignored = crowd | (rng.random((2, num_regions)) < 0.3)
    is_matched, on_ignored = match(groups, crowd, ignored, num_detections)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        for a in range(2):
            for group in groups:
                expected = slow_match(group, crowd, ignored[a], threshold)
                fates = zip(is_matched[t, a, group.detections], on_ignored[t, a, group.detections], strict=True)
                assert [(bool(one), bool(other)) for one, other in fates] == expected
