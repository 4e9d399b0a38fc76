"""Every field of every native json, one after the other, with values that it should not have.

Whatever is there, a source refuses the file by its name, counts what it cannot use, or reads what is meant; it never
ends in another exception and never loses anything without a word.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pipelines.prepare.shard_writer import ShardOptions, SplitTask, make_record
from semsam.storage import existing_folder
from tests.unit.pipelines.sources.memory import MemoryFiles, Outcome, enrich, load_folder, outcome_of

REMOVED, DOUBLED = object(), object()
VALUES: dict[str, Any] = {
    "null": None,
    "text": "word",
    "empty text": "",
    "number in text": "12",
    "empty list": [],
    "list of one": [1],
    "list in lists": [[[]]],
    "object": {},
    "negative": -1,
    "zero": 0,
    "one": 1,
    "fraction": 1.5,
    "huge float": 1e30,
    "huge int": 2**70,
    "NaN": math.nan,
    "true": True,
    "missing": REMOVED,
    "doubled": DOUBLED,
}
# What may change a record without a count, beside another value of the field's own type and range; and the rule.
RULES = {
    ("area", "missing"): "it is that of the mask or box",
    ("area", "null"): "as if it were missing",
    ("bbox", "missing"): "it is that of the mask",
    ("bbox", "null"): "as if it were missing",
    ("iscrowd", "missing"): "no crowd: PACO and SA-1B have no such field",
    ("neg_category_ids", "missing"): "no name was looked for in vain",
    ("not_exhaustive_category_ids", "missing"): "all names are marked everywhere",
    ("element", "missing"): "nothing says how many rows, polygons or names there should be",
}
# Of one dataset alone.
OWN_RULES = {
    "coco_instances": {
        ("segmentation", "missing"): "its box teaches",
        ("segmentation", "null"): "as if it were missing",
        ("segmentation", "empty list"): "as if it were missing: many tools write it so",
    }
}
FLAGS = ("iscrowd",)


@dataclass(frozen=True)
class Change:
    """A json in which one value is another."""

    place: str  # "annotations[0].bbox[2]", empty for the whole document.
    value: str  # A key of `VALUES`.
    before: Any
    document: Any

    @property
    def field(self) -> str:
        """The last name of the place; "element" for a whole element of a list."""
        return "element" if self.place.endswith("]") else self.place.rpartition(".")[2]


def changes(document: Any) -> Iterator[Change]:
    """Every place of a document with every value."""
    yield from (Change("", name, document, value) for name, value in VALUES.items() if value not in (REMOVED, DOUBLED))
    for keys in places(document):
        place = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, keys)))
        for name, value in VALUES.items():
            if value is DOUBLED and not isinstance(keys[-1], int):
                continue
            changed = copy.deepcopy(document)
            parent = changed
            for key in keys[:-1]:
                parent = parent[key]
            before = parent[keys[-1]]
            if value is REMOVED:
                del parent[keys[-1]]
            elif value is DOUBLED:
                parent.insert(keys[-1], before)
            else:
                parent[keys[-1]] = copy.deepcopy(value)
            yield Change(place, name, before, changed)


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to everything below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (key,)
        yield from ((key, *rest) for rest in places(inner))


def is_another_value(change: Change) -> bool:
    """Whether the new value is of the field's own type and range, so that it means something else and nothing wrong."""
    before, after = change.before, VALUES[change.value]
    if change.field in FLAGS:
        return after in (0, 1)
    if isinstance(before, list):
        return bool(after == [])
    if isinstance(before, str):
        return isinstance(after, str) and bool(after)
    number = float(after) if after == "12" else after
    if not isinstance(before, int | float) or not isinstance(number, int | float) or isinstance(number, bool):
        return False
    return abs(number) < 1e9 and (isinstance(before, float) or number == int(number))


def fault_of(change: Change, before: Outcome, after: Outcome, file: str, dataset: str) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    if after.refused:
        return "" if file in after.refused else f"the file is not named: {after.refused}"
    new = [one for one in after.counted if one not in before.counted]
    if any("memory/" not in one.detail and one.reason != "image size differs from annotation" for one in new):
        return f"a count names no file: {new}"
    is_told = after.reads == before.reads or len(after.counted) > len(before.counted) or after.absent != before.absent
    is_meant = is_another_value(change) or (change.field, change.value) in RULES | OWN_RULES.get(dataset, {})
    return "" if is_told or is_meant else "the records changed and nothing was counted"


SWEEPS = [
    ("sa1b", "val/sa_3.json"),
    ("coco_panoptic", "annotations/panoptic_val2017.json"),
    ("coco_panoptic", "annotations/instances_val2017.json"),
    ("objects365", "zhiyuan_objv2_val.json"),
    ("paco", "annotations/paco_lvis_v1_val.json"),
    ("partimagenet", "val.json"),
    ("coco_instances", "annotations/instances_val.json"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "file"), SWEEPS)
def test_every_odd_value_is_read_as_meant_or_counted_or_refused(write_native: Any, dataset: str, file: str) -> None:
    native = write_native(dataset)
    contents = load_folder(native.root)
    document = enrich(dataset, file, json.loads(contents[file]))

    def outcome(document: Any) -> Outcome:
        files = MemoryFiles(contents | {file: json.dumps(document).encode()})
        return outcome_of(native.source, files, "val")

    before = outcome(document)
    assert before.counted == ()
    faults = []
    for change in changes(document):
        try:
            fault = fault_of(change, before, outcome(change.document), file, dataset)
        except Exception as error:  # What must never happen, listed with all else that went wrong.
            fault = f"a bare {error!r}"
        if fault:
            faults.append(f"{change.place}, {change.value}: {fault}")
    assert faults == []


def test_the_table_of_rules_is_short() -> None:
    assert len(RULES) <= 15


@pytest.mark.parametrize("error", [KeyError, TypeError, AttributeError, OverflowError])
def test_a_bug_in_a_source_ends_the_job(native: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    entry = native.index().entries[0]
    task = SplitTask(native.source, existing_folder(str(native.root)), "val", "", ShardOptions(9, 0, 92), "1")

    def stumble(*arguments: Any, **more: Any) -> Any:
        raise error("planted")

    for method in ("add_rle", "add_box"):
        monkeypatch.setattr(f"pipelines.sources.regions.Regions.{method}", stumble)
    with pytest.raises(RuntimeError, match=rf"{entry.image} \(.*\): {error.__name__}: .*planted"):
        make_record(task, native.source.vocabulary(), entry)
