"""Whatever happens to a stored file is noticed, by that file's name, or changes nothing that is read.

A seeded sweep over every kind of file that the project stores: each is cut short, has bits flipped, changes places with
another of its kind, is replaced by something foreign, or by what an older version or run has written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from semsam.data.sealed import SEAL
from semsam.data.shards import open_split
from tests.painted_shards import VOCABULARIES, write_painted_shards

CASES = 8  # Of each damage to each file.


@dataclass(frozen=True)
class Stored:
    """One file of something stored, and how it is read."""

    kind: str
    name: str  # Below the folder.
    sibling: str  # Another file of its kind.
    older: Callable[[bytes], bytes]
    read: Callable[[Path], Any]


def rows_of(folder: Path) -> list[Any]:
    split = open_split(str(folder), "pascal_part", "train")
    return [split.record(i) for i in range(len(split))]


def names_of(folder: Path) -> list[Any]:
    rows: list[Any] = open_split(str(folder), "pascal_part", "train").row_categories().to_pylist()
    return rows


def older_json(data: bytes) -> bytes:
    """As an earlier version wrote it: without a digest of its own, and of an earlier schema."""
    values = orjson.loads(data)
    values.pop(SEAL, None)
    return orjson.dumps({**values, "schema_version": 1}, option=orjson.OPT_INDENT_2)


def other_bytes(data: bytes) -> bytes:
    """As an earlier run with other settings may have left it: of the same size."""
    return data[: len(data) // 2] + bytes(b ^ 0x55 for b in data[len(data) // 2 :])


def splits() -> list[Stored]:
    split, other = "pascal_part/train", "coco_panoptic/train"
    return [
        Stored("shard", f"{split}/shard-00000.arrow", f"{split}/shard-00001.arrow", other_bytes, rows_of),
        Stored("rows of a shard", f"{split}/shard-00000.rows", f"{split}/shard-00001.rows", other_bytes, rows_of),
        Stored("manifest", f"{split}/manifest.json", f"{other}/manifest.json", older_json, rows_of),
        Stored("row names", f"{split}/row_categories.arrow", f"{other}/row_categories.arrow", other_bytes, names_of),
    ]


@pytest.fixture(scope="module")
def stored_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painted_shards(tmp_path_factory.mktemp("splits"), 6, VOCABULARIES)


def damages(stored: Stored, folder: Path, rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each damage by its name."""
    path, sibling = folder / stored.name, folder / stored.sibling
    data = path.read_bytes()

    def swap() -> None:
        other = sibling.read_bytes()
        sibling.write_bytes(data)
        path.write_bytes(other)

    for _ in range(CASES):
        cut, place, bit = int(rng.integers(len(data))), int(rng.integers(len(data))), 1 << int(rng.integers(8))
        flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        yield f"cut at {cut}", lambda cut=cut: path.write_bytes(data[:cut])
        yield f"bit {bit} of byte {place} flipped", lambda flipped=flipped: path.write_bytes(flipped)
        foreign = [b"", b"{}", b"\0" * len(data), b"PK\x03\x04 a zip", rng.bytes(len(data)), b"null", data * 2]
        chosen = foreign[int(rng.integers(len(foreign)))]
        yield f"foreign: {chosen[:9]!r}...", lambda chosen=chosen: path.write_bytes(chosen)
    yield "changed places", swap
    yield "older", lambda: path.write_bytes(stored.older(data))
    yield "gone", path.unlink


def sweep(stored: Stored, folder: Path) -> tuple[int, list[str]]:
    """How many damages were tried, and what was wrong with the answers."""
    expected, faults, tried = stored.read(folder), [], 0
    names = [stored.name, stored.sibling]
    for name, damage in damages(stored, folder, np.random.default_rng(len(stored.name))):
        tried += 1
        kept = {one: (folder / one).read_bytes() for one in names}
        try:
            damage()
            faults += [f"{stored.kind}, {name}: {fault}" for fault in answer_faults(stored, folder, expected)]
        finally:
            for one, data in kept.items():
                (folder / one).write_bytes(data)
    return tried, faults


def answer_faults(stored: Stored, folder: Path, expected: Any) -> Iterator[str]:
    """What is wrong with how a damaged file is met: nothing, if it is named or makes no difference."""
    try:
        found = stored.read(folder)
    except (ValueError, OSError) as error:
        blamed = [name for name in (stored.name, stored.sibling) if str(folder / name) in str(error)]
        if not blamed:
            yield f"nameless or wrong blame: {error}"
    except Exception as error:
        yield f"crash: {error!r}"
    else:
        if found != expected:
            yield "silent"


@pytest.mark.parametrize("stored", splits(), ids=lambda stored: stored.kind)
def test_no_damage_to_a_split_is_silent_nameless_or_blamed_on_another(stored: Stored, stored_splits: Path) -> None:
    tried, faults = sweep(stored, stored_splits)
    assert tried == 3 * CASES + 3
    assert faults == []
