"""A tiny native dataset in memory, and what its source makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.prepare.validate import validate
from pipelines.sources.source import BadSample, Read, Rejected, Source
from semsam.data import rle


@dataclass(frozen=True)
class MemoryFiles:
    """`Files` whose contents are bytes by path."""

    contents: Mapping[str, bytes]
    path: str = "memory"
    neighbours: tuple[str, ...] = ()

    def read(self, name: str) -> bytes:
        try:
            return self.contents[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def exists(self, name: str) -> bool:
        return name in self.contents

    def glob(self, pattern: str) -> list[str]:
        text = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        return sorted(path for path in self.contents if re.fullmatch(text, path))

    def walk(self) -> Iterator[str]:
        return iter(self.contents)


def load_folder(root: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Outcome:
    """What preparing a split gives: records by sample, everything that was counted, or why the index was refused."""

    reads: tuple[Read, ...] = ()
    counted: tuple[Rejected, ...] = ()
    absent: tuple[str, ...] = ()
    refused: str = ""


def outcome_of(source: Source, files: MemoryFiles, split: str) -> Outcome:
    """Index, read and validate, as `pipelines.prepare` does."""
    try:
        source = source.found_in(files)
        index = source.index(files, split)
    except ValueError as error:
        return Outcome(refused=str(error))
    reads: list[Read] = []
    counted = [*index.rejected, *index.rejected_regions]
    for entry in index.entries:
        try:
            read = validate(source.read(files, split, entry), source.vocabulary())
        except BadSample as bad:
            counted.append(bad.rejected)
            continue
        reads.append(Read(read.record))
        counted += read.dropped
    return Outcome(tuple(reads), tuple(counted), index.absent)


def enrich(dataset: str, name: str, document: Any) -> Any:
    """A document with every field that the real format has, all forms of masks, and no more categories than needed."""
    rows = document["annotations"]
    for row in rows:
        row |= {"bbox": [2.0, 3.0, 10.0, 6.0], "area": 59.5} if "segments_info" not in row else {}
    if dataset == "sa1b":
        for row in rows:
            row |= {
                "predicted_iou": 0.9,
                "stability_score": 0.9,
                "point_coords": [[4.0, 5.0]],
                "crop_box": [0, 0, 32, 24],
            }
    if "instances" in name or dataset == "partimagenet":
        two = [[2.5, 3.0, 12.0, 3.0, 12.0, 9.0], [20.0, 3.0, 25.0, 3.0, 25.0, 9.0]]
        rows[0]["segmentation"] = [[float(one) for one in rows[0]["segmentation"][0]]]
        rows.append(rows[0] | {"id": 200, "segmentation": two, "iscrowd": 0})
        rows.append(rows[0] | {"id": 201, "segmentation": _run_lengths(4, 4, 6, 9), "iscrowd": 1})
    if dataset == "paco":
        ids = {row["name"]: row["id"] for row in document["categories"] if ":" not in row["name"]}
        for image in document["images"]:
            image |= {"neg_category_ids": [ids["dog"]], "not_exhaustive_category_ids": [ids["mug"]]}
    if dataset != "sa1b":
        segments = [segment for row in rows for segment in row.get("segments_info", ())]
        for segment in segments:
            segment |= {"iscrowd": 1, "area": 59.5}
        used = {row.get("category_id") for row in [*rows, *segments]} | {ids["dog"] if dataset == "paco" else 0}
        document["categories"] = [
            row | {"supercategory": "thing", "isthing": 1} for row in document["categories"] if row["id"] in used
        ]
    return document


def _run_lengths(x1: int, y1: int, x2: int, y2: int) -> dict[str, Any]:
    mask = np.zeros((24, 32), bool)
    mask[y1:y2, x1:x2] = True
    return {"size": [24, 32], "counts": rle.decode_counts(rle.encode(mask)).tolist()}
