"""The maps of a pyramid, whose pixels are one row of tokens."""

from __future__ import annotations

from collections.abc import Sequence

Shapes = Sequence[tuple[int, int]]  # Height and width of each map, in the order of its tokens.
