"""What was dropped is counted by reason, with a few examples in a fixed order."""

from __future__ import annotations

from pipelines.dropped import EXAMPLES_PER_REASON, Dropped
from pipelines.sources.source import Rejected

MANY = [Rejected("empty mask", f"{i:03d}", f"detail {i}") for i in range(20)]
FEW = [Rejected("broken RLE", "700", "cut"), Rejected("empty mask", "701", "thin")]


def test_a_tally_counts_all_and_keeps_the_first_examples() -> None:
    tally = Dropped.of([*MANY, *FEW])
    assert tally.counts == {"broken RLE": 1, "empty mask": 21}
    assert [e.sample_id for e in tally.examples["empty mask"]] == [f"{i:03d}" for i in range(EXAMPLES_PER_REASON)]
    assert tally.total() == 22


def test_merged_halves_are_the_whole() -> None:
    assert Dropped.merge([Dropped.of(FEW), Dropped.of(MANY)]) == Dropped.of([*FEW, *MANY])
    assert Dropped.merge([]) == Dropped.of([]) == Dropped()


def test_the_commonest_reason_comes_first() -> None:
    assert Dropped.of([*FEW, *MANY]).lines() == [
        "21 x empty mask (e.g. 701: thin)",
        "1 x broken RLE (e.g. 700: cut)",
    ]


def test_what_a_dataset_leaves_out_by_design_can_be_set_aside() -> None:
    tally = Dropped.of(
        [Rejected("part without category", "1", "car: hood"), Rejected("empty mask", "2", "annotation 3")]
    )
    assert tally.without(frozenset({"part without category"})) == Dropped.of(
        [Rejected("empty mask", "2", "annotation 3")]
    )
