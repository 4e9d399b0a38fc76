"""Work in pieces gives what the whole gives."""

from __future__ import annotations

import pytest
import torch

from semsam.ops.row_blocks import ROWS_AT_ONCE, by_row_blocks


@pytest.mark.parametrize("shape", [(0, 3), (5, 3), (2, ROWS_AT_ONCE, 3), (2 * ROWS_AT_ONCE + 1, 3), (3, 20, 20, 3)])
def test_pieces_equal_the_whole(shape: tuple[int, ...]) -> None:
    layer = torch.nn.Linear(3, 4)
    values = torch.randn(shape)
    sizes = []

    def apply(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(rows.shape[:-1].numel())
        return layer(rows)

    with torch.no_grad():
        torch.testing.assert_close(by_row_blocks(apply, values), layer(values))
    assert max(sizes) <= ROWS_AT_ONCE
    torch.testing.assert_close(by_row_blocks(apply, values), layer(values))
    assert sizes[-1] == values.shape[:-1].numel()
