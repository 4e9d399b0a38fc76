"""Shapes that can be guessed without seeing the image: discs around a click, and what fills a box.

Each is one run of pixels per column, so its overlap with a region is a sum over the region's runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from semsam.data.label_runs import LabelRuns


@dataclass(frozen=True)
class ColumnShapes:
    """`s` shapes in an image of width `w`: in column x, shape i is the rows from top[i, x] to bottom[i, x]."""

    top: Int64[np.ndarray, "s w"]
    bottom: Int64[np.ndarray, "s w"]  # The row after the last; not above `top`.

    def areas(self) -> Int64[np.ndarray, " s"]:
        return (self.bottom - self.top).sum(axis=1)

    def ious(self, regions: RegionRuns) -> Float[np.ndarray, "s r"]:
        """IoU of every shape with every region; two empty ones have 0."""
        runs = regions.runs
        first = np.maximum(self.top[:, runs.col], runs.row)
        last = np.minimum(self.bottom[:, runs.col], runs.row + runs.length)
        before = np.zeros((len(self.top), len(runs.col) + 1), np.int64)
        np.cumsum((last - first).clip(0), axis=1, out=before[:, 1:])
        shared = before[:, regions.starts[1:]] - before[:, regions.starts[:-1]]
        return shared / np.maximum(self.areas()[:, None] + regions.areas - shared, 1)


@dataclass(frozen=True)
class RegionRuns:
    """Some regions of an image as runs down its columns; those of region i are starts[i] to starts[i + 1]."""

    runs: LabelRuns
    starts: Int64[np.ndarray, " r+1"]
    areas: Int64[np.ndarray, " r"]

    @staticmethod
    def of(runs: LabelRuns, table: Bool[np.ndarray, "a m"], areas: Int64[np.ndarray, " m"]) -> RegionRuns:
        """All regions of an atom map."""
        inside = table[runs.label].T
        region, run = np.nonzero(inside)
        taken = LabelRuns(runs.label[run], runs.row[run], runs.col[run], runs.length[run])
        return RegionRuns(taken, np.searchsorted(region, np.arange(len(areas) + 1)), areas)

    def take(self, kept: Int64[np.ndarray, " k"]) -> RegionRuns:
        """Some of the regions, in this order."""
        counts = np.diff(self.starts)[kept]
        starts = np.concatenate([[0], np.cumsum(counts)])
        run = np.arange(starts[-1]) + np.repeat(self.starts[kept] - starts[:-1], counts)
        runs = LabelRuns(self.runs.label[run], self.runs.row[run], self.runs.col[run], self.runs.length[run])
        return RegionRuns(runs, starts, self.areas[kept])


def discs(click_xy: tuple[int, int], radii: Float[np.ndarray, " s"], height: int, width: int) -> ColumnShapes:
    """Discs around a pixel; radii as shares of the image's geometric mean side."""
    x, y = click_xy
    squared = (radii * np.sqrt(height * width))[:, None] ** 2 - (np.arange(width) - x) ** 2
    half = np.floor(np.sqrt(squared.clip(0))).astype(np.int64)
    top, bottom = (y - half).clip(0, height), (y + half + 1).clip(0, height)
    return ColumnShapes(np.where(squared < 0, 0, top), np.where(squared < 0, 0, bottom))


def box_fillings(box_xyxy: tuple[float, float, float, float], height: int, width: int) -> ColumnShapes:
    """The filled box, and the ellipse that touches its sides: the pixels whose centres lie inside."""
    x1, y1, x2, y2 = box_xyxy
    x = np.arange(width) + 0.5
    from_middle = np.abs(x - (x1 + x2) / 2) / max((x2 - x1) / 2, 1e-9)
    halves = (y2 - y1) / 2 * np.stack([np.ones(width), np.sqrt((1 - from_middle**2).clip(0))])
    middle = (y1 + y2) / 2
    top = np.ceil(middle - halves - 0.5).clip(0, height).astype(np.int64)
    bottom = (np.floor(middle + halves - 0.5) + 1).clip(0, height).astype(np.int64)
    is_beside = (from_middle > 1) | (bottom < top)
    return ColumnShapes(np.where(is_beside, 0, top), np.where(is_beside, 0, bottom))
