"""What can be had without looking at the image: every learned number is printed beside one of these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
from jaxtyping import Float

from semsam.data.atoms import AtomMap
from semsam.evaluation.overlaps import ious_from_counts

# Radii to choose from, as shares of the image's geometric mean side: from a speck to the whole image.
CANDIDATE_RADII = np.geomspace(0.01, 1.5, 32)


def disc_ious(atoms: AtomMap, click_xy: tuple[int, int], radii: Float[np.ndarray, " r"]) -> Float[np.ndarray, "r m"]:
    """IoU of discs around a click with every region; radii as shares of the image's geometric mean side, ascending."""
    height, width = atoms.labels.shape
    squared = (np.arange(height)[:, None] - click_xy[1]) ** 2 + (np.arange(width)[None] - click_xy[0]) ** 2
    ring = np.searchsorted((radii * np.sqrt(height * width)) ** 2, squared.reshape(-1))  # r: outside every disc
    num_labels = len(atoms.table)
    counts = np.bincount(ring * num_labels + atoms.labels.reshape(-1), minlength=(len(radii) + 1) * num_labels)
    return ious_from_counts(counts.reshape(-1, num_labels)[:-1].cumsum(axis=0), atoms)


def best_radii(ious: Float[np.ndarray, "n r"], count: int) -> list[int]:
    """Positions of the `count` radii whose best IoU per region has the highest mean, by greedy choice and exchange."""
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(_best_addition(ious, chosen))
    while True:
        before = ious[:, chosen].max(axis=1).mean()
        for position in range(count):
            rest = chosen[:position] + chosen[position + 1 :]
            chosen = [*rest[:position], _best_addition(ious, rest), *rest[position:]]
        if ious[:, chosen].max(axis=1).mean() <= before + 1e-9:
            return sorted(chosen)


def _best_addition(ious: Float[np.ndarray, "n r"], chosen: Sequence[int]) -> int:
    so_far = ious[:, list(chosen)].max(axis=1) if chosen else np.zeros(len(ious))
    return int(np.argmax(np.maximum(ious, so_far[:, None]).mean(axis=0)))


@dataclass
class BaselineFit:
    """What the blind baselines learn from a train split; merged over workers like a metric."""

    ious: list[Float[np.ndarray, " r"]] = field(default_factory=list)
    objects: Counter[int] = field(default_factory=Counter)
    parts: Counter[int] = field(default_factory=Counter)

    def update(
        self, region_ious: Float[np.ndarray, " r"] | None, object_category: int | None, part_category: int | None
    ) -> None:
        """Add one region of the train split; `region_ious` is None where it has no mask to click on."""
        if region_ious is not None:
            self.ious.append(region_ious)
        if object_category is not None:
            self.objects[object_category] += 1
        if part_category is not None:
            self.parts[part_category] += 1

    def merge(self, other: BaselineFit) -> None:
        self.ious.extend(other.ious)
        self.objects.update(other.objects)
        self.parts.update(other.parts)

    def to_json(self) -> bytes:
        """The state as text, for another process."""
        ious = np.stack(self.ious).tolist() if self.ious else []
        return orjson.dumps([ious, sorted(self.objects.items()), sorted(self.parts.items())])

    @staticmethod
    def from_json(data: bytes) -> BaselineFit:
        """The inverse of `to_json`."""
        ious, objects, parts = orjson.loads(data)
        return BaselineFit([np.array(row) for row in ious], Counter(dict(objects)), Counter(dict(parts)))

    def compute(self, levels: int) -> Baselines:
        """The `levels` best discs, the best one, and the commonest classes (smallest index of a tie)."""
        if not self.ious:
            return Baselines((), 0, _commonest(self.objects), _commonest(self.parts))
        ious = np.stack(self.ious)
        chosen = best_radii(ious, levels)
        single = chosen[int(np.argmax(ious[:, chosen].mean(axis=0)))]
        return Baselines(
            radii=tuple(float(CANDIDATE_RADII[i]) for i in chosen),
            single=chosen.index(single),
            commonest_object=_commonest(self.objects),
            commonest_part=_commonest(self.parts),
        )


@dataclass(frozen=True)
class Baselines:
    """Blind guesses tuned on train: discs around the click, and the commonest class."""

    radii: tuple[float, ...]  # Shares of the image's geometric mean side, ascending; empty without masks.
    single: int  # Position in `radii` of the one to guess when only one may be.
    commonest_object: int | None
    commonest_part: int | None


def _commonest(counts: Counter[int]) -> int | None:
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None
