"""What each source makes of a tiny dataset is the same as when its version was set."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import orjson

from semsam.data.schema import to_row
from tests.unit.pipelines.sources.memory import MemoryFiles, Outcome, enrich, load_folder, outcome_of

# 24 x 32 pixels.  Stored, so that the digests do not depend on the encoder.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1x"
    "eXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAAR"
    "CAAYACADASIAAhEBAxEB/8QAHwAAAQUBAQEBAQEAAAAAAAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEG"
    "E1FhByJxFDKBkaEII0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1dnd4eXqDhIWG"
    "h4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi4+Tl5ufo6erx8vP09fb3+Pn6/8QAHwEAAwEBAQEB"
    "AQEBAQAAAAAAAAECAwQFBgcICQoL/8QAtREAAgECBAQDBAcFBAQAAQJ3AAECAxEEBSExBhJBUQdhcRMiMoEIFEKRobHBCSMzUvAVYnLRChYk"
    "NOEl8RcYGRomJygpKjU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6goOEhYaHiImKkpOUlZaXmJmaoqOkpaanqKmqsrO0"
    "tba3uLm6wsPExcbHyMnK0tPU1dbX2Nna4uPk5ebn6Onq8vP09fb3+Pn6/9oADAMBAAIRAxEAPwDj4rX2q3Fa+1XorX2q5Fa+1SpkYfElGK19"
    "qtxWvtV6K19quRWvtWqme5QxJWitfarcVr7UUVwpnw1CpItxWvtVyK19qKK1TPcoVJH/2Q=="
)
# By dataset and version; old ones may go.
DIGESTS = {
    ("sa1b", 1): "1f256784b8d7691b",
    ("coco_panoptic", 2): "0a206e16f2b8a103",
    ("objects365", 1): "69050ce41bd7955d",
    ("ade20k", 1): "659b09417c97cf75",
    ("pascal_part", 1): "6c04ed6b34520e9d",
    ("paco", 1): "e1cb25c8deb1f2c8",
    ("partimagenet", 1): "4a86b8dd980c2e39",
    ("coco_instances", 1): "85ec01b1c1695068",
    ("label_maps", 1): "f8f627202d59bc70",
}


def with_odd_rows(document: Any) -> Any:
    """The document with rows that are written oddly or cannot be used."""
    rows = document["annotations"]
    if not rows:
        return document
    if "segments_info" in rows[0]:
        first = rows[0]["segments_info"]
        first += [first[0] | {"id": 0}, first[0] | {"id": 9, "area": "wide"}]
        first[0] |= {"id": str(first[0]["id"]), "iscrowd": "0"}
    else:
        in_text = {key: str(value) for key, value in rows[0].items() if isinstance(value, int | float)}
        rows += [rows[0] | in_text | {"id": "300", "iscrowd": "1"}, rows[0] | {"id": 301, "area": "wide"}]
        rows += [rows[0] | {"id": 302, "image_id": 9}]
    return document


def digest_of(outcome: Outcome) -> str:
    """SHA-256 of the rows of a split's shards, and of the reasons for what they lack."""
    digest = hashlib.sha256()
    for read in outcome.reads:
        digest.update(orjson.dumps(to_row(read.record).to_pylist(), default=bytes.hex))
    digest.update("".join(sorted(one.reason for one in outcome.counted)).encode())
    return digest.hexdigest()[:16]


def test_the_output_of_a_source_is_that_of_its_version(native: Any) -> None:
    contents = load_folder(native.root)
    for name, data in contents.items():
        if data[:2] == b"\xff\xd8":
            contents[name] = JPEG
        document = json.loads(data) if name.endswith(".json") else {}
        if document.get("annotations"):
            contents[name] = json.dumps(with_odd_rows(enrich(native.dataset, name, document))).encode()
    outcome = outcome_of(native.source, MemoryFiles(contents), native.split)
    assert outcome.reads
    digest, key = digest_of(outcome), (native.dataset, native.source.version)
    assert DIGESTS.get(key) == digest, (
        f"the output of {native.dataset} has changed: raise `version` in pipelines/sources/{native.dataset}.py, so "
        f"that shards are made anew, and store the new digest here: {digest!r}"
    )
