"""What every metric offers: update with one image, merge with another worker's, compute the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self


class Metric(Protocol):
    """Merged halves give exactly what one metric over all images gives."""

    def merge(self, other: Self) -> None: ...

    def compute(self) -> dict[str, float]:
        """Numbers by the last part of their name in MLflow; a number that nothing was measured for is left out."""
        ...


@dataclass
class Mean:
    """A mean that can be merged."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += float(value)
        self.count += 1

    def merge(self, other: Mean) -> None:
        self.total += other.total
        self.count += other.count

    def value(self) -> float:
        """Raises `ZeroDivisionError` when nothing was added."""
        return self.total / self.count


@dataclass
class Means:
    """Several means by name: what the mean-IoU and top-1 protocols keep."""

    by_name: dict[str, Mean]

    def add(self, name: str, value: float) -> None:
        self.by_name.setdefault(name, Mean()).add(value)

    def merge(self, other: Means) -> None:
        for name, mean in other.by_name.items():
            self.by_name.setdefault(name, Mean()).merge(mean)

    def compute(self) -> dict[str, float]:
        return {name: mean.value() for name, mean in sorted(self.by_name.items()) if mean.count}
