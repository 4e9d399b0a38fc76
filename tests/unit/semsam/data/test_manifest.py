"""`manifest.json` reads back as it was written, and a broken one is refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from semsam.data.manifest import Example, IndexFile, Manifest, Shard, Vocabulary
from semsam.data.sealed import seal, unseal


@pytest.fixture
def manifest() -> Manifest:
    vocabulary = Vocabulary(("car", "sky"), ("wheel",), (True, False), ((0, 0),))
    return Manifest(
        dataset="paco",
        split="train",
        source_root="/native",
        shards=(
            Shard("shard-00000.arrow", 2, 100, "ab", "01", 0, 3),
            Shard("shard-00001.arrow", 1, 60, "cd", "23", 3, 1),
        ),
        num_samples=3,
        num_regions=7,
        dropped_samples={"broken JPEG": 1},
        dropped_regions={},
        examples={"broken JPEG": (Example("000000000002", "premature end"),)},
        vocabulary=vocabulary,
        vocabulary_digest=vocabulary.digest(),
        code_version="0.1.0",
        options={"max_long_side": 1024, "nested": {"a": None}},
        row_categories=IndexFile("row_categories.arrow", 10, "ef"),
        absent=("instances",),
    )


def test_reads_back_what_was_written(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json(), "manifest.json") == manifest


def test_an_empty_split_reads_back(manifest: Manifest) -> None:
    empty = dataclasses.replace(manifest, shards=(), num_samples=0, examples={})
    assert Manifest.from_json(empty.to_json(), "manifest.json") == empty


def test_the_digest_depends_on_the_shards_and_on_nothing_else(manifest: Manifest) -> None:
    moved = dataclasses.replace(manifest, source_root="s3://elsewhere", code_version="0.2.0")
    assert moved.digest() == manifest.digest()
    shards = (dataclasses.replace(manifest.shards[0], sha256="ef"), manifest.shards[1])
    assert dataclasses.replace(manifest, shards=shards).digest() != manifest.digest()


def test_a_vocabulary_digest_depends_on_the_order_of_names() -> None:
    assert Vocabulary(("car", "sky")).digest() != Vocabulary(("sky", "car")).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 0}, "schema version 0, expected 2: .* run jobs.prepare again"),
        ({"num_samples": "many"}, "num_samples"),
        ({"shards": [{"path": "shard-00000.arrow"}]}, r"shards\.0\.rows"),
        ({"vocabulary": {"objects": ["a"], "object_parts": [[1, 2, 3]]}}, r"vocabulary\.object_parts\.0"),
        ({"examples": []}, "examples"),
    ],
)
def test_a_broken_manifest_is_refused_with_its_path_and_field(
    manifest: Manifest, change: dict[str, Any], message: str
) -> None:
    values = unseal(manifest.to_json(), "manifest.json") | change
    with pytest.raises(ValueError, match=f"^ade20k/manifest.json: .*{message}"):
        Manifest.from_json(seal(values), "ade20k/manifest.json")


def test_a_manifest_with_another_digit_is_refused(manifest: Manifest) -> None:
    data = manifest.to_json()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        if changed.split() != data.split():  # Else it is the space between values that changed.
            with pytest.raises(ValueError, match=r"^ade20k/manifest.json: "):
                Manifest.from_json(changed, "ade20k/manifest.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b"3", b"\xff"])
def test_what_is_no_manifest_is_refused_with_its_path(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^ade20k/manifest.json: not a manifest"):
        Manifest.from_json(data, "ade20k/manifest.json")
