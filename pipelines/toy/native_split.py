"""One split of one toy dataset on disk, and what a reader should find there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import orjson
from jaxtyping import Bool, UInt8

from pipelines.toy.scenes import Scene
from semsam.data import rle
from semsam.data.images import encode_jpeg

# The images that something is the matter with, if faults are planted, by their number in a split.
NO_ANNOTATIONS, ALL_CROWD, SOME_CROWD, SPOILED, BROKEN = range(1, 6)

Mask = Bool[np.ndarray, "h w"]
_SMALL_HOLE = 32  # Quarter pixels; whoever clicks polygons does not see these.


@dataclass
class ToySplit:
    """What preparing a split should keep and drop (in the words of its manifest), and which oddities it meets."""

    dataset: str
    split: str
    num_samples: int = 0
    num_regions: int = 0
    dropped_samples: Counter[str] = field(default_factory=Counter)
    dropped_regions: Counter[str] = field(default_factory=Counter)
    oddities: Counter[str] = field(default_factory=Counter)


class NativeSplit:
    """Writes the files of a split below its dataset's folder and counts what is in them.

    Annotations that cannot be used are planted in the train split alone: a val split is small, and one of them would
    be more than the hundredth that preparing puts up with.  ADE20K's image of crowds alone lacks its instance PNG in
    both, which the config for a small split has to allow.
    """

    def __init__(
        self,
        root: Path,
        dataset: str,
        split: str,
        scenes: Sequence[Scene],
        rng: np.random.Generator,
        faults: bool,
    ) -> None:
        self.root = root
        self.split = split
        self.scenes = scenes
        self.rng = rng  # For what is in the files, but not in the scenes.
        self.faults = faults
        self.count = ToySplit(dataset, split)

    def numbered(self) -> Iterator[tuple[int, Scene]]:
        """Scenes with their numbers from 0, which every layout turns into its kind of file names."""
        return enumerate(self.scenes)

    def has(self, oddity: int, number: int) -> bool:
        """Whether this is the image for an oddity; those that cannot be used are in train alone."""
        is_usable = oddity in (NO_ANNOTATIONS, ALL_CROWD, SOME_CROWD)
        return self.faults and number == oddity and (is_usable or self.split == "train")

    def write_image(self, path: str, image: UInt8[np.ndarray, "h w 3"], broken: bool = False) -> None:
        """Write a JPEG; a broken one ends in the middle."""
        data = encode_jpeg(image, quality=92)
        self.write(path, data[: len(data) // 2] if broken else data)

    def write_png(self, path: str, pixels: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]) -> None:
        """Write an RGB or grey PNG."""
        self.write(path, cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes())

    def write_json(self, path: str, document: Any) -> None:
        self.write(path, orjson.dumps(document))

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def keep(self, num_regions: int) -> None:
        """Count an image that can be used, with its usable regions."""
        self.count.num_samples += 1
        self.count.num_regions += num_regions
        if not num_regions:
            self.count.oddities["image without annotations"] += 1

    def drop_image(self, reason: str) -> None:
        """Count an image that cannot be used."""
        self.count.dropped_samples[reason] += 1

    def drop_region(self, reason: str, times: int = 1) -> None:
        """Count an annotation that cannot be used, or not with all that it says."""
        if times:
            self.count.dropped_regions[reason] += times

    def note(self, oddity: str, times: int = 1) -> None:
        """Count something odd that can be used all the same."""
        if times:
            self.count.oddities[oddity] += times


def xywh(mask: Mask) -> list[int]:
    """The mask's tight box as COCO writes it."""
    ys, xs = np.flatnonzero(mask.any(axis=1)).tolist(), np.flatnonzero(mask.any(axis=0)).tolist()
    return [xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0]]


def compressed_rle(mask: Mask) -> dict[str, Any]:
    """The mask as COCO's string of run lengths."""
    return {"size": list(mask.shape), "counts": rle.encode(mask).decode()}


def run_lengths(mask: Mask) -> dict[str, Any]:
    """The mask as the plain list of run lengths that COCO has for crowds."""
    return {"size": list(mask.shape), "counts": rle.decode_counts(rle.encode(mask)).tolist()}


def polygons(mask: Mask) -> list[list[float]]:
    """Polygons along the edges of the mask's pixels, a little simplified, as someone may have clicked them.

    COCO's polygons know no holes, so a mask with a hole is cut in two there.
    """
    grown = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    outlines, hierarchy = cv2.findContours(grown, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    nesting = hierarchy[0] if len(outlines) else ()
    holes = [outline for outline, row in zip(outlines, nesting, strict=True) if row[3] >= 0]
    large = [hole for hole in holes if cv2.contourArea(hole) > _SMALL_HOLE]
    if large:
        cut = round(float(max(large, key=cv2.contourArea)[:, 0, 0].mean()) / 2)
        left = np.arange(mask.shape[1]) < cut
        return polygons(mask & left) + polygons(mask & ~left)
    around = [outline for outline, row in zip(outlines, nesting, strict=True) if row[3] < 0]
    simple = [cv2.approxPolyDP(outline, 0.8, True) for outline in around]
    clicked = [few if len(few) >= 3 else all_ for few, all_ in zip(simple, around, strict=True)]
    return [((outline[:, 0] + 0.5) / 2).reshape(-1).tolist() for outline in clicked]


def polygon_area(flat: Sequence[float]) -> float:
    """The area that a polygon x1, y1, x2, y2, ... encloses."""
    x, y = np.array(flat).reshape(-1, 2).T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
