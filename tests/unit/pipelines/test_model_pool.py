"""A pool has as many actors as its settings say, and never more than there are parts."""

from __future__ import annotations

import pytest

from pipelines.model_pool import Pool


@pytest.mark.parametrize(
    ("pool", "parts", "sizes"),
    [
        (Pool(), 9, (2, 2)),
        (Pool(), 1, (1, 1)),
        (Pool(4), 9, (4, 4)),
        (Pool(4), 3, (3, 3)),
        (Pool(max_actors=8), 9, (1, 8)),
        (Pool(max_actors=8), 5, (1, 5)),
        (Pool(3, max_actors=8), 2, (2, 2)),
        (Pool(3, max_actors=3), 9, (3, 3)),
    ],
)
def test_a_pool_begins_with_some_actors_and_grows_where_it_may(pool: Pool, parts: int, sizes: tuple[int, int]) -> None:
    compute = pool.options(parts)["compute"]
    assert (compute.min_size, compute.max_size) == sizes


@pytest.mark.parametrize("first", [3, 64])
def test_a_pool_cannot_begin_above_where_it_may_grow_to(first: int) -> None:
    with pytest.raises(ValueError, match=f"^max_actors: 2 is less than num_actors, {first}$"):
        Pool(first, max_actors=2)
