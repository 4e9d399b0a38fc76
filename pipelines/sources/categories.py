"""The vocabularies in `pipelines/categories/<dataset>.json`, one format for all datasets.

`objects` and `object_parts` list what the dataset annotates, with its native ids; a `native` name stands beside `name`
where the dataset spells it another way.  A source may keep more keys there and read them from `Categories.document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson

import pipelines
from semsam.data.manifest import Vocabulary

FOLDERS = tuple(Path(place) / "categories" for place in pipelines.__path__)


@dataclass(frozen=True)
class Category:
    """What a native category says of a region, as positions in the vocabulary; `part` is None for whole objects."""

    object: int
    part: int | None = None
    thing: bool = True


@dataclass(frozen=True)
class Categories:
    """A dataset's vocabulary and the way from its native names and ids into it."""

    vocabulary: Vocabulary
    all: tuple[Category, ...]  # Objects, then object-part pairs, in the order of the file.
    position_of_name: Mapping[str, int]  # Into `all`, by lower-case native or corrected name.
    document: Mapping[str, Any]

    def positions_of_ids(self, names: Mapping[int, str]) -> dict[int, int]:
        """The position in `all` for each id of a json's own `categories`, given its name there.

        Releases number their categories differently (Objects365 v1 and v2), so the names decide; an id whose name is
        not in the vocabulary is left out.
        """
        found = {i: self.position_of_name.get(name.strip().lower()) for i, name in names.items()}
        return {i: position for i, position in found.items() if position is not None}

    def objects_by(self, key: str) -> dict[Any, Category]:
        """The object categories by a key of their rows, such as `id`; rows without it are left out."""
        rows = zip(self.document["objects"], self.all, strict=False)
        return {row[key]: category for row, category in rows if key in row}


def categories_of(vocabulary: Vocabulary) -> Categories:
    """The categories of names that no file here has: objects by their names, parts as `object:part`."""
    objects, parts, things = vocabulary.objects, vocabulary.parts, vocabulary.things
    names = [*objects, *(f"{objects[one]}:{parts[part]}" for one, part in vocabulary.object_parts)]
    return Categories(
        vocabulary=vocabulary,
        all=(
            *(Category(i, None, thing) for i, thing in enumerate(things)),
            *(Category(one, part, things[one]) for one, part in vocabulary.object_parts),
        ),
        position_of_name={name.strip().lower(): i for i, name in enumerate(names)},
        document={},
    )


def vocabulary_names() -> list[str]:
    """The datasets that have a vocabulary of their own here, sorted."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.json")})


@cache
def load_categories(dataset: str) -> Categories:
    """The categories of one dataset.  Raises `ValueError` naming the file where it is no vocabulary."""
    path = next((path for folder in FOLDERS if (path := folder / f"{dataset}.json").exists()), None)
    if path is None:
        raise ValueError(f"{dataset}.json: no such vocabulary in {', '.join(map(str, FOLDERS))}")
    document = orjson.loads(path.read_bytes())
    objects, pairs = document["objects"], document["object_parts"]
    object_position = {row["name"]: i for i, row in enumerate(objects)}
    part_position = {name: i for i, name in enumerate(document["parts"])}
    things = [bool(row["thing"]) for row in objects]
    object_parts = [(object_position[row["object"]], part_position[row["part"]]) for row in pairs]
    names = [(row["name"], row.get("native")) for row in objects]
    names += [(f"{row['object']}:{row['part']}", row.get("native")) for row in pairs]
    return Categories(
        vocabulary=Vocabulary(tuple(object_position), tuple(part_position), tuple(things), tuple(object_parts)),
        all=(
            *(Category(i, None, thing) for i, thing in enumerate(things)),
            *(Category(o, p, things[o]) for o, p in object_parts),
        ),
        position_of_name={name.strip().lower(): i for i, both in enumerate(names) for name in both if name},
        document=document,
    )
