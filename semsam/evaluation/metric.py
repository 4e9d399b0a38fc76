"""What every metric offers: update with one image, merge with another worker's, compute the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Means:
    """Means by name, kept as sums so that merged halves give exactly what one pass over all images gives.

    The protocols whose number is a mean over regions derive from it and add `update`.
    """

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + float(value), count + 1)

    def merge(self, other: Means) -> None:
        for name, (more, also) in other.sums.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + more, count + also)

    def compute(self) -> dict[str, float]:
        """Each mean by its name; a name that nothing was measured for is absent, not zero."""
        return {name: total / count for name, (total, count) in sorted(self.sums.items())}

    def count(self, name: str) -> int:
        """How many values went into a mean."""
        return self.sums.get(name, (0.0, 0))[1]

    @classmethod
    def from_sums(cls, sums: Mapping[str, tuple[float, int]]) -> Means:
        """The state that another process sent."""
        return cls({name: (float(total), int(count)) for name, (total, count) in sums.items()})
