"""The vocabularies of the seven datasets."""

from __future__ import annotations

import pytest

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories, vocabulary_names
from pipelines.sources.held_out import OwnData

SIZES = {
    "sa1b": (0, 0, 0),
    "coco_panoptic": (133, 0, 0),
    "objects365": (365, 0, 0),
    "ade20k": (150, 0, 0),
    "pascal_part": (20, 30, 93),
    "paco": (75, 200, 456),
    "partimagenet": (11, 13, 40),
}


@pytest.mark.parametrize("dataset", SIZES)
def test_vocabulary_has_the_dataset_s_number_of_names(dataset: str) -> None:
    vocabulary = SOURCES[dataset].vocabulary()
    sizes = (len(vocabulary.objects), len(vocabulary.parts), len(vocabulary.object_parts))
    assert sizes == SIZES[dataset]
    assert len(vocabulary.things) == len(vocabulary.objects)
    assert len(set(vocabulary.objects)) == len(vocabulary.objects)
    assert len(set(vocabulary.parts)) == len(vocabulary.parts)
    assert len(set(vocabulary.object_parts)) == len(vocabulary.object_parts)
    assert {part for _, part in vocabulary.object_parts} == set(range(len(vocabulary.parts)))


def test_every_dataset_has_one_vocabulary_file_unless_its_names_come_with_the_data() -> None:
    named = {name for name, source in SOURCES.items() if not isinstance(source, OwnData)}
    assert set(vocabulary_names()) == named == set(SIZES)


@pytest.mark.parametrize(("dataset", "things"), [("coco_panoptic", 80), ("ade20k", 100), ("objects365", 365)])
def test_things_and_stuff(dataset: str, things: int) -> None:
    assert sum(SOURCES[dataset].vocabulary().things) == things


def test_native_names_and_corrected_ones_are_both_understood() -> None:
    categories = load_categories("objects365")
    basket = categories.vocabulary.objects.index("Basket")
    assert categories.positions_of_ids({53: "Bakset"}) == {53: basket}
    assert categories.positions_of_ids({1: "basket "}) == {1: basket}
    assert categories.positions_of_ids({1: "no such thing"}) == {}


def test_partimagenet_s_tier_is_a_tire() -> None:
    categories = load_categories("partimagenet")
    category = categories.all[categories.position_of_name["car tier"]]
    assert categories.vocabulary.objects[category.object] == "car"
    assert categories.vocabulary.parts[category.part or 0] == "tire"


def test_pascal_parts_are_found_by_their_whole_raw_name() -> None:
    raw_parts = load_categories("pascal_part").document["raw_parts"]
    parts = set(load_categories("pascal_part").vocabulary.parts)
    assert {name for names in raw_parts.values() for name in names.values() if name} == parts
    assert raw_parts["person"]["rear"] == "ear"
    assert raw_parts["bicycle"]["bwheel"] == "wheel"
    assert raw_parts["bicycle"]["chainwheel"] is None
    assert raw_parts["dog"]["rbpa"] == "paw"
