"""What is kept of many images for as long as there is room: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Values by key, at most `max_count` of them and `max_bytes` of all together.

    One that is larger than `max_bytes` on its own is not kept.
    """

    def __init__(self, max_bytes: int, max_count: int) -> None:
        self.max_bytes, self.max_count = max_bytes, max_count
        self.num_bytes = 0
        self._values: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> T | None:
        """The value, which is the most recently used one from now on; None where it is not kept."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: str, value: T, num_bytes: int) -> None:
        """Keep a value of so many bytes, in place of an earlier one and at the cost of those not used for longest."""
        if key in self._values:
            self.num_bytes -= self._values.pop(key)[1]
        if num_bytes > self.max_bytes:
            return
        self._values[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes or len(self._values) > self.max_count:
            _, (_, freed) = self._values.popitem(last=False)
            self.num_bytes -= freed
