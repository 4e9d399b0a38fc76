"""Names and their places in the joint vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from semsam.data.manifest import Vocabulary
from semsam.data.vocabularies import TEMPLATES, JointVocabulary, Withheld, clean_name

PACO = Vocabulary(objects=("trash_can", "car_(automobile)"), parts=("inner_side", "wheel"))
COCO = Vocabulary(objects=("person", "door-stuff", "table-merged"))


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("door-stuff", "door"),
        ("wall-other-merged", "wall"),
        ("water-other", "water"),
        ("tree-merged", "tree"),
        ("floor-wood", "floor-wood"),
        ("trash_can", "trash can"),
        ("car_(automobile)", "car (automobile)"),
        ("Cigar/Cigarette ", "cigar/cigarette"),
        ("Formula 1 ", "formula 1"),
        ("other", "other"),
    ],
)
def test_names_are_cleaned(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
    assert clean_name(cleaned) == cleaned


def test_datasets_follow_one_another_in_the_fixed_order() -> None:
    joint = JointVocabulary.of({"paco": PACO, "coco_panoptic": COCO, "sa1b": Vocabulary(())})
    assert joint.objects == ("person", "door", "table", "trash can", "car (automobile)")
    assert joint.parts == ("inner side", "wheel")
    assert joint.object_offset == {"sa1b": 0, "coco_panoptic": 0, "paco": 3}
    assert joint.part_offset == {"sa1b": 0, "coco_panoptic": 0, "paco": 0}


def test_categories_find_their_names_and_unannotated_ones_stay() -> None:
    joint = JointVocabulary.of({"paco": PACO, "coco_panoptic": COCO})
    for dataset, vocabulary in (("paco", PACO), ("coco_panoptic", COCO)):
        for category, name in enumerate(vocabulary.objects):
            assert joint.objects[joint.object_index(dataset, category)] == clean_name(name)
    indices = joint.part_index("paco", np.array([1, -1, 0], np.int32))
    assert indices.tolist() == [1, -1, 0]
    assert indices.dtype == np.int32
    assert joint.object_index("paco", -1) == -1
    assert joint.object_index("paco", np.zeros(0, np.int32)).shape == (0,)


@pytest.mark.parametrize("category", [2, -2, np.array([0, 5])])
def test_a_category_outside_the_vocabulary_is_refused(category: int | np.ndarray) -> None:
    with pytest.raises(ValueError, match="paco object category"):
        JointVocabulary.of({"paco": PACO}).object_index("paco", category)


def test_the_digest_knows_names_and_datasets_but_not_the_order_of_arguments() -> None:
    digest = JointVocabulary.of({"paco": PACO, "coco_panoptic": COCO}).digest()
    assert digest == JointVocabulary.of({"coco_panoptic": COCO, "paco": PACO}).digest()
    assert digest != JointVocabulary.of({"coco_panoptic": COCO}).digest()
    assert digest != JointVocabulary.of({"ade20k": PACO, "coco_panoptic": COCO}).digest()


def test_a_dataset_that_came_later_stands_behind_the_seven() -> None:
    joint = JointVocabulary.of({"acorns": COCO, "paco": PACO})
    assert joint.object_offset == {"paco": 0, "acorns": len(PACO.objects)}


def test_no_datasets_give_no_names() -> None:
    joint = JointVocabulary.of({})
    assert joint.objects == joint.parts == ()


def test_templates_are_distinct_and_take_one_name() -> None:
    assert len(set(TEMPLATES)) == len(TEMPLATES) == 80
    assert all(template.count("{}") == 1 and "dog" in template.format("dog") for template in TEMPLATES)


def test_no_two_names_of_coco_become_one(samples_dir: Path) -> None:
    names = [
        row["name"] for row in json.loads((samples_dir / "categories/coco_panoptic.json").read_text())["categories"]
    ]
    assert len({clean_name(name) for name in names}) == len(names) == 133


def test_names_are_withheld_by_the_dataset_they_are_of() -> None:
    both = {"paco": PACO, "coco_panoptic": COCO}
    name, part = PACO.objects[0], PACO.parts[0]
    joint = JointVocabulary.of(both, {"paco": Withheld((name,), (part,), ((name, part),))})
    places = joint.object_offset["paco"], joint.part_offset["paco"]
    assert (joint.withheld_objects, joint.withheld_parts) == ((places[0],), (places[1],))
    assert joint.withheld_pairs == (places,)
    assert joint.objects == JointVocabulary.of(both).objects
    assert joint.digest() != JointVocabulary.of(both).digest()
    assert JointVocabulary.of(both, {"paco": Withheld()}).digest() == JointVocabulary.of(both).digest()


@pytest.mark.parametrize(
    ("withheld", "message"),
    [
        ({"ade20k": Withheld()}, r"^data.withheld.ade20k: not among the datasets \['paco'\]"),
        ({"paco": Withheld(("dgo",))}, "^data.withheld.paco.objects: 'dgo' is not a name of it"),
        ({"paco": Withheld((), ("dgo",))}, "^data.withheld.paco.parts: 'dgo' is not a name of it"),
        ({"paco": Withheld((), (), (("dgo", "x"),))}, "^data.withheld.paco.pairs: 'dgo' is not a name of it"),
    ],
)
def test_what_cannot_be_withheld_is_named(withheld: dict[str, Withheld], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointVocabulary.of({"paco": PACO}, withheld)
