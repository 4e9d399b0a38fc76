from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from pipelines.sources import SOURCES
from pipelines.toy.layouts import LAYOUTS
from semsam.data.manifest import Vocabulary
from semsam.data.sample import NOT_ANNOTATED, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.router import TABLE, route

MakeSample = Callable[..., Sample]
WITH_OBJECTS = {"coco_panoptic", "objects365", "ade20k", "pascal_part", "paco", "partimagenet"}
WITH_PARTS = {"pascal_part", "paco", "partimagenet"}


def test_the_table_has_a_row_for_every_dataset() -> None:
    assert set(TABLE) == set(SOURCES)


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_a_sample_teaches_what_its_dataset_annotates(
    dataset: str, make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    lesson = route(make_sample(dataset, index=1), vocabulary)
    assert lesson.generic == (dataset != "sa1b")
    assert lesson.teaches_mask.all() == (dataset != "objects365")
    assert lesson.objects.teaches.all() == (dataset in WITH_OBJECTS)
    assert lesson.parts.teaches.all() == (dataset in WITH_PARTS)
    own = [name for name, kept in zip(vocabulary.objects, lesson.objects.allowed, strict=True) if kept]
    assert own == [
        name for name in vocabulary.objects if name.startswith(dataset.replace("_", " ")) and dataset != "sa1b"
    ]
    own = [name for name, kept in zip(vocabulary.parts, lesson.parts.allowed, strict=True) if kept]
    assert own == [name for name in vocabulary.parts if name.startswith(dataset.replace("_", " "))]


def test_a_part_carries_its_object_s_name_and_its_own(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    sample = make_sample("paco", index=1)
    lesson = route(sample, vocabulary)
    regions = sample.regions
    offset, part_offset = vocabulary.object_offset["paco"], vocabulary.part_offset["paco"]
    assert (regions.parent >= 0).any()
    for region, parent in enumerate(regions.parent):
        owner = parent if parent >= 0 else region
        assert lesson.objects.names[region] == regions.object_category[owner] + offset
        part = regions.part_category[region]
        assert lesson.parts.names[region] == (part + part_offset if parent >= 0 else NOT_ANNOTATED)


def test_a_part_keeps_an_object_name_of_its_own(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    sample = make_sample("partimagenet", index=1)
    objects = sample.regions.object_category.copy()
    objects[1] = 1 - objects[0]
    sample = replace(sample, regions=replace(sample.regions, object_category=objects))
    assert route(sample, vocabulary).objects.names[1] == objects[1] + vocabulary.object_offset["partimagenet"]


def test_a_region_without_a_name_teaches_no_head(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    sample = make_sample("pascal_part", index=1)
    none = np.full(len(sample.regions), NOT_ANNOTATED, np.int32)
    lesson = route(
        replace(sample, regions=replace(sample.regions, object_category=none, part_category=none)), vocabulary
    )
    assert not lesson.objects.teaches.any()
    # What has a parent is a part whose name is unknown; the others are objects, and negatives for the part head.
    assert (lesson.parts.teaches == (sample.regions.parent < 0)).all()


def test_padding_teaches_nothing(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    lesson = route(make_sample("", index=0), vocabulary)
    assert not lesson.generic
    assert not lesson.objects.allowed.any()
    assert not lesson.parts.allowed.any()


def test_a_federated_sample_speaks_of_checked_names_and_of_its_own(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample("paco", index=1)
    sample = replace(
        sample,
        checked_objects=np.array([0, 2], np.int32),
        checked_parts=np.array([5], np.int32),
        not_exhaustive_objects=np.array([2], np.int32),
    )
    lesson = route(sample, vocabulary)
    offset = vocabulary.object_offset["paco"]
    present = set(lesson.objects.names.tolist())
    assert set(np.flatnonzero(lesson.objects.allowed)) == {offset, offset + 2} | present
    assert set(np.flatnonzero(lesson.objects.exhaustive)) == ({offset} | present) - {offset + 2}
    present_parts = set(lesson.parts.names[lesson.parts.names >= 0].tolist())
    part_offset = vocabulary.part_offset["paco"]
    assert set(np.flatnonzero(lesson.parts.allowed)) == {part_offset + 5} | present_parts
    assert np.array_equal(lesson.parts.exhaustive, lesson.parts.allowed)


def test_a_federated_sample_for_which_nothing_was_checked_has_no_negatives(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    nothing = np.zeros(0, np.int32)
    sample = replace(make_sample("paco", index=1, num_masks=0), checked_objects=nothing, checked_parts=nothing)
    lesson = route(sample, vocabulary)
    assert not lesson.objects.allowed.any()
    assert not lesson.parts.allowed.any()


JAR, BOTTLE, CUP = range(3)
LID, HANDLE = range(2)
_PAIRS = ((JAR, LID), (BOTTLE, LID), (CUP, HANDLE))
KITCHEN = JointVocabulary.of({"paco": Vocabulary(("jar", "bottle", "cup"), ("lid", "handle"), object_parts=_PAIRS)})


@pytest.mark.parametrize(
    ("there", "checked", "not_exhaustive", "lids_are_known"),
    [
        # No jar's lid was found, and nobody looked for bottles: a bottle's lid may be there.
        ([], [JAR], [], False),
        # Neither jars nor bottles are there, and so no lid.
        ([], [JAR, BOTTLE], [], True),
        # A bottle with its lid; no jar.
        ([(BOTTLE, LID)], [JAR, BOTTLE], [], True),
        # A bottle of which nobody drew a lid.
        ([(BOTTLE, None)], [JAR, BOTTLE], [], False),
        # Of the bottles not all are drawn, and so not their lids.
        ([(BOTTLE, LID)], [JAR, BOTTLE], [BOTTLE], False),
        # A lid is drawn, of a jar; whether there are bottles is not known.
        ([(JAR, LID)], [], [], False),
    ],
)
def test_a_part_s_bare_name_is_a_negative_only_where_none_of_its_objects_can_have_an_unmarked_one(
    there: list[tuple[int, int | None]],
    checked: list[int],
    not_exhaustive: list[int],
    lids_are_known: bool,
    make_sample: MakeSample,
) -> None:
    rows = [(kind, NOT_ANNOTATED, -1) for kind, _ in there]
    rows += [(NOT_ANNOTATED, part, number) for number, (_, part) in enumerate(there) if part is not None]
    objects, parts, parents = np.array(rows, np.int32).reshape(-1, 3).T
    sample = make_sample("paco", index=1, num_masks=len(rows))
    sample = replace(
        sample,
        regions=replace(sample.regions, object_category=objects, part_category=parts, parent=parents),
        checked_objects=np.array(checked, np.int32),
        checked_parts=np.array([LID], np.int32),
        not_exhaustive_objects=np.array(not_exhaustive, np.int32),
    )
    lesson = route(sample, KITCHEN).parts
    assert lesson.exhaustive.tolist() == [lids_are_known, False]
    assert lesson.allowed.tolist() == [True, False]  # A region that was drawn is known to be no lid.


def test_an_unknown_dataset_is_named(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    with pytest.raises(ValueError, match="lvis: no row"):
        route(replace(make_sample("paco", index=1), dataset="lvis"), vocabulary)


def test_a_name_that_is_withheld_is_nobody_s_and_no_negative(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample("paco", index=1)
    before = route(sample, vocabulary)
    region = int(np.flatnonzero(before.parts.names >= 0)[0])
    one, part = int(before.objects.names[region]), int(before.parts.names[region])
    after = route(sample, replace(vocabulary, withheld_objects=(one,), withheld_parts=(part,)))
    is_one, is_part = before.objects.names == one, before.parts.names == part
    assert not after.objects.teaches[is_one].any()
    assert not after.parts.teaches[is_part].any()
    assert (after.objects.names[is_one] == NOT_ANNOTATED).all()
    np.testing.assert_array_equal(after.objects.names[~is_one], before.objects.names[~is_one])
    np.testing.assert_array_equal(after.parts.teaches[~is_part], before.parts.teaches[~is_part])
    for head, name in (("objects", one), ("parts", part)):
        now, then = getattr(after, head), getattr(before, head)
        assert not now.allowed[name]
        assert not now.exhaustive[name]
        assert now.allowed.sum() == then.allowed.sum() - 1
    np.testing.assert_array_equal(after.teaches_mask, before.teaches_mask)


def test_of_a_pair_that_is_withheld_its_regions_alone_learn_neither_name(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample("paco", index=1)
    before = route(sample, vocabulary)
    region = int(np.flatnonzero(before.parts.names >= 0)[0])
    pair = int(before.objects.names[region]), int(before.parts.names[region])
    after = route(sample, replace(vocabulary, withheld_pairs=(pair,)))
    is_pair = (before.objects.names == pair[0]) & (before.parts.names == pair[1])
    assert not after.objects.teaches[is_pair].any()
    assert not after.parts.teaches[is_pair].any()
    np.testing.assert_array_equal(after.objects.teaches[~is_pair], before.objects.teaches[~is_pair])
    np.testing.assert_array_equal(after.objects.allowed, before.objects.allowed)
    np.testing.assert_array_equal(after.parts.allowed, before.parts.allowed)
