"""The masks of `jobs.generate`, to be trained on: SA-1B's own way of growing.

The root is the folder that jobs.generate wrote, and its photos are in a neighbour (`neighbours: [/data/photos]`), for
no file of a dataset may name what else is read of a machine.  Masks are class-agnostic, as SA-1B's, unless the job was
given object names; then a mask has the name that it was given with a score of `min_name_score` or more.

A review leaves out photos (`exclude`) and masks below `min_iou` (predicted) or `min_stability`.  Whoever wants to
correct single masks has jobs.generate write `coco_results`, and brings the json that a labelling tool makes of these
back as `coco_instances`.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import ClassVar

import orjson
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from pipelines.sources.categories import Category
from pipelines.sources.held_out import OwnData, of_split
from pipelines.sources.regions import Regions
from pipelines.sources.source import Entry, Files, Index, Read
from pipelines.sources.stored_image import check_size, read_image
from pipelines.sources.values import OddValue, Row, as_list, as_row, as_text, take
from semsam.config import Share
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind
from semsam.data.sealed import unseal

MANIFEST = "manifest.json"
NOT_SURE = "mask that the model is not sure of"


@dataclass(frozen=True)
class GeneratedMasks(OwnData):
    """What a model has found in photos that nobody has annotated."""

    options: ClassVar[tuple[str, ...]] = ("val_share", "min_iou", "min_stability", "min_name_score")

    dataset: str = "generated_masks"
    train_long_side: int = 1024
    min_iou: Share = 0.0
    min_stability: Share = 0.0
    min_name_score: Share = 0.5

    def found_in(self, files: Files) -> GeneratedMasks:
        """The same with the object names that the job was given."""
        manifest = _manifest(files)
        if not files.neighbours:
            raise ValueError(
                f"{files.path}: its photos lie in {manifest.photos}; neighbours=[{manifest.photos}] says so"
            )
        objects = tuple(manifest.objects)
        return replace(self, names=Vocabulary(objects, (), (True,) * len(objects)))

    def index(self, files: Files, split: str) -> Index:
        found = [
            (image, {"file": file, "sha256": sha256, "row": row})
            for file, sha256 in _manifest(files).files.items()
            for row, image in enumerate(_table(files, file, sha256)["image"].to_pylist())
        ]
        are_kept = of_split([image for image, _ in found], split, self.val_share)
        entries = [
            Entry(image, image, orjson.dumps(place))
            for (image, place), kept in zip(found, are_kept, strict=True)
            if kept
        ]
        return Index(sorted(entries, key=lambda entry: entry.sample_id))

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        place = orjson.loads(entry.annotations)
        [row] = _table(files, place["file"], place["sha256"]).slice(place["row"], 1).to_pylist()
        paths = [f"{folder}/{entry.image}" for folder in files.neighbours]
        image = read_image(files, paths, entry.sample_id, self.max_pixels, as_shown=True)
        regions = Regions(entry.sample_id, image)
        regions.file = f"{files.path}/{place['file']}"
        check_size(image, (row["height"], row["width"]), entry.sample_id)
        for i, mask in enumerate(row["masks"]):
            if mask["iou_prediction"] < self.min_iou or mask["stability"] < self.min_stability:
                regions.drop(NOT_SURE, f"mask {i}: predicted IoU {mask['iou_prediction']:.3f}")
                continue
            category = self._category(mask)
            kind = Kind.CLASS_AGNOSTIC if category is None else Kind.INSTANCE
            regions.add_rle(mask["rle"].encode(), str(i), kind, category)
        return regions.read(self.dataset, split)

    def _category(self, mask: Row) -> Category | None:
        """The mask's name; None where it has none, or none that is sure enough."""
        name = mask["object_name"]
        if name is None or mask["object_score"] < self.min_name_score:
            return None
        return Category(self.names.objects.index(name))


SOURCE = GeneratedMasks()


@dataclass(frozen=True)
class _Manifest:
    photos: str
    files: dict[str, str]  # SHA-256 by name.
    objects: list[str]


def _manifest(files: Files) -> _Manifest:
    """What is read of the manifest.  Raises `ValueError` naming it where jobs.generate has not come to its end."""
    path = f"{files.path}/{MANIFEST}"
    if not files.exists(MANIFEST):
        raise ValueError(f"{path}: no such file; jobs.generate writes it when all its masks are there")
    values = unseal(files.read(MANIFEST), path)
    try:
        options = take(values, "options", as_row)
        return _Manifest(
            photos=take(values, "photos", as_text),
            files={take(one, "name", as_text): take(one, "sha256", as_text) for one in take(values, "files", as_list)},
            objects=[as_text(one) for one in take(options, "objects", as_list)],
        )
    except OddValue as fault:
        raise ValueError(f"{path}: not a manifest of jobs.generate: {fault}") from None


def _table(files: Files, name: str, sha256: str) -> pa.Table:
    """The rows of a file of masks.  Raises `ValueError` naming one that is not what the manifest says."""
    key = files.path, name, sha256
    if key not in _LAST:
        path = f"{files.path}/{name}"
        try:
            data = files.read(name)
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file, though the manifest has it") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError(f"{path}: other bytes than the manifest says; jobs.generate with redo=true makes it anew")
        is_parquet = PurePosixPath(name).suffix == ".parquet"
        stream = io.BytesIO(data)
        table = pyarrow.parquet.read_table(stream) if is_parquet else pyarrow.ipc.open_file(stream).read_all()
        _LAST.clear()
        _LAST[key] = table.select(["image", "height", "width", "masks"])
    return _LAST[key]


_LAST: dict[tuple[str, str, str], pa.Table] = {}  # The file that was opened last, as neighbouring entries share one.
