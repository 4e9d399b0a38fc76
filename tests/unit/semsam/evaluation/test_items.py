"""What an evaluation keeps of each image comes back from a file as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from semsam.data.named_mask import NamedMask
from semsam.data.schema import Kind, Region
from semsam.evaluation.items import BEST, ITEM, Ask, ImageItem, Prompted, from_table, to_table


def prompted(rng: np.random.Generator, prompts: int, levels: int) -> Prompted:
    under = rng.integers(0, 3, prompts)
    shape = (prompts, levels)

    def scores(*shape: int) -> np.ndarray:
        return rng.random(shape, np.float32)

    return Prompted(
        ask=np.full(prompts, Ask.INNERMOST, np.int32),
        region=np.arange(prompts, dtype=np.int32),
        click_xy=rng.integers(0, 9, (prompts, 2)).astype(np.int32),
        chosen=rng.integers(0, levels, prompts).astype(np.int32),
        iou_predictions=scores(*shape),
        ious=np.where(rng.random(shape) < 0.3, np.nan, scores(*shape)).astype(np.float32),
        under_starts=np.concatenate([[0], np.cumsum(under)]),
        under=np.zeros(under.sum(), np.int32),
        under_ious=scores(under.sum(), levels),
        level_ious=scores(*shape, levels),
        objects=rng.integers(-1, 9, (*shape, BEST)).astype(np.int32),
        object_scores=scores(*shape, BEST),
        true_object_score=scores(*shape),
        parts=rng.integers(-1, 9, (*shape, BEST)).astype(np.int32),
        part_scores=scores(*shape, BEST),
        true_part_score=scores(*shape),
    )


def item(sample_id: str, **fields: object) -> ImageItem:
    region = Region("9007199254740993", b"\x00P", (0.0, 0.0, 2.0, 1.0), 2.0, Kind.PART, 3, None, 0, False, True)
    boxed = Region("0", None, (0.5, 0.0, 2.0, 1.0), 2.0, Kind.INSTANCE)
    return ImageItem(sample_id, 4, 5, 8, 10, (region, boxed), **fields)  # type: ignore[arg-type]


def assert_same(one: ImageItem, other: ImageItem) -> None:
    for field in dataclasses.fields(ImageItem):
        if field.name != "prompted":
            assert getattr(one, field.name) == getattr(other, field.name)
    if one.prompted is None or other.prompted is None:
        assert one.prompted is other.prompted
        return
    for field in dataclasses.fields(Prompted):
        mine, theirs = getattr(one.prompted, field.name), getattr(other.prompted, field.name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("prompts", "levels"), [(0, 6), (1, 1), (7, 6)])
def test_items_come_back_as_they_were(prompts: int, levels: int) -> None:
    mask = NamedMask(b"04", (0.25, 0.0, 1.0, 1.0), 3, None, 0.5)
    part = NamedMask(b"\x00\xff", (0.0, 0.0, 1.0, 1.0), 3, 1, 0.25)
    items = [
        item("a", prompted=prompted(np.random.default_rng(0), prompts, levels), instances=(mask, part)),
        item("b", checked_objects=(), checked_parts=(1, 2), panoptic=(), semantic=(mask,)),
        item("c"),
    ]
    back = from_table(to_table(items))
    assert len(back) == len(items)
    for one, other in zip(items, back, strict=True):
        assert_same(one, other)


def test_no_items_are_a_table_without_rows() -> None:
    table = to_table([])
    assert table.schema == ITEM
    assert from_table(table) == []


def test_items_of_another_version_are_refused() -> None:
    old = to_table([item("a")]).replace_schema_metadata({"semsam_items_version": "0"})
    with pytest.raises(ValueError, match="items of version 0, not 1"):
        from_table(old)
    with pytest.raises(ValueError, match="version none"):
        from_table(pa.table({"a": [1]}))
