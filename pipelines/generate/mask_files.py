"""Files of masks: one row per image with run lengths, boxes, scores and names, and a sidecar that vouches for them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
from pydantic import TypeAdapter, ValidationError

from pipelines.files import Files
from pipelines.model_pool import ModelReference
from pipelines.sources.source import Rejected
from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings, ImageMasks
from semsam.data.images import read_photo
from semsam.predictor import ImageSize, PromptStyle
from semsam.storage import Folder

FORMAT_VERSION = 1
MASK = pa.struct(
    [
        pa.field("rle", pa.string(), nullable=False),  # COCO's compressed `counts` in the image's height and width.
        pa.field("box_xyxy", pa.list_(pa.float32(), 4), nullable=False),  # Pixel edges, tight.
        pa.field("area", pa.int64(), nullable=False),
        pa.field("iou_prediction", pa.float32(), nullable=False),
        pa.field("stability", pa.float32(), nullable=False),
        pa.field("point_xy", pa.list_(pa.float32(), 2), nullable=False),  # The click that the mask answers.
        pa.field("level", pa.int32(), nullable=False),
        # The likeliest names and their scores; null where no names were given.
        pa.field("object_name", pa.string()),
        pa.field("object_score", pa.float32()),
        pa.field("part_name", pa.string()),
        pa.field("part_score", pa.float32()),
    ]
)
# Height, width and all masks are those of the photo turned as its EXIF says.
IMAGE_MASKS = pa.schema(
    [
        pa.field("image", pa.string(), nullable=False),  # Path below the folder of photos.
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("masks", pa.list_(MASK), nullable=False),  # The best predicted IoU first.
    ],
    metadata={"semsam_masks_version": str(FORMAT_VERSION)},
)


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the files, beside the photos.  Picklable: it travels to every worker."""

    model: ModelReference
    model_digest: str
    image_size: ImageSize
    prompt_style: PromptStyle
    masks: AutomaticMaskSettings
    objects: tuple[str, ...]
    parts: tuple[str, ...]
    file_format: Literal["arrow", "parquet"]
    images_per_file: int

    def fingerprint(self, root: str, images: Sequence[str]) -> str:
        """SHA-256 of all that the masks of some photos follow from, the photos' own bytes excepted."""
        parts = {**dataclasses.asdict(self), "model": "", "root": root, "images": images, "version": FORMAT_VERSION}
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class MaskFile:
    """The sidecar of a file of masks."""

    path: str
    num_images: int
    num_masks: int
    num_bytes: int
    sha256: str
    rejected: tuple[Rejected, ...]
    made_from: str

    def to_json(self) -> bytes:
        """Indented JSON; `from_json` reads it back."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2)

    @staticmethod
    def from_json(data: bytes) -> MaskFile | None:
        """None for what is no sidecar of this version: its file is made anew."""
        try:
            return TypeAdapter(MaskFile).validate_json(data)
        except ValidationError:
            return None


def file_name(position: int, file_format: str) -> str:
    """The name of the file at a position."""
    return f"masks-{position:05d}.{file_format}"


def sidecar_name(position: int) -> str:
    """The name of the sidecar of the file at a position."""
    return f"masks-{position:05d}.json"


def find_finished(folder: Folder, position: int, made_from: str) -> MaskFile | None:
    """The sidecar of a file that is there as it should be, for photos and options of that fingerprint."""
    data = folder.read_if_there(sidecar_name(position))
    found = None if data is None else MaskFile.from_json(data)
    if found is None or found.made_from != made_from or folder.size(found.path) != found.num_bytes:
        return None
    return found


def write_masks(
    generator: AutomaticMasks, options: Options, files: Files, images: Sequence[str], output: str, position: int
) -> MaskFile:
    """Find the masks of some photos, publish the file and then its sidecar, which is returned.

    What is no image is rejected; any other exception is a fault of the code or the storage.
    """
    rejected: list[Rejected] = []
    kept: list[str] = []
    found = generator.of_images(_photos(files, images, kept, rejected))
    rows = [to_row(kept[place], masks) for place, masks in enumerate(found)]
    table = pa.Table.from_pylist(rows, schema=IMAGE_MASKS)
    folder, name = Folder(output), file_name(position, options.file_format)
    with folder.publishing(name) as draft:
        _write_table(table, draft, options.file_format)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = draft.stat().st_size
    num_masks = sum(len(row["masks"]) for row in rows)
    made_from = options.fingerprint(files.root, images)
    sidecar = MaskFile(name, len(rows), num_masks, size, digest, tuple(rejected), made_from)
    with folder.publishing(sidecar_name(position)) as draft:
        draft.write_bytes(sidecar.to_json())
    return sidecar


def read_masks(folder: Folder, name: str) -> pa.Table:
    """The rows of a file of masks, in memory."""
    data = folder.read_if_there(name)
    if data is None:
        raise ValueError(f"{name}: no such file")
    if name.endswith(".parquet"):
        return pyarrow.parquet.read_table(pa.BufferReader(data), schema=IMAGE_MASKS)
    return pyarrow.ipc.open_file(pa.BufferReader(data)).read_all()


def to_row(image: str, found: ImageMasks) -> dict[str, Any]:
    """The row of `IMAGE_MASKS` for the masks of an image."""
    objects = zip(found.object_names, found.object_scores.tolist(), strict=True)
    parts = zip(found.part_names, found.part_scores.tolist(), strict=True)
    columns = {
        "rle": [counts.decode() for counts in found.rles],
        "box_xyxy": found.boxes_xyxy.tolist(),
        "area": found.areas.tolist(),
        "iou_prediction": found.iou_predictions.tolist(),
        "stability": found.stability_scores.tolist(),
        "point_xy": found.points_xy.tolist(),
        "level": found.levels.tolist(),
        "object_name": found.object_names,
        "object_score": [None if name is None else score for name, score in objects],
        "part_name": found.part_names,
        "part_score": [None if name is None else score for name, score in parts],
    }
    masks = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {"image": image, "height": found.height, "width": found.width, "masks": masks}


def _photos(files: Files, images: Sequence[str], kept: list[str], rejected: list[Rejected]) -> Iterator[Any]:
    """The photos that can be read, their paths added to `kept`, and the others to `rejected`."""
    for image in images:
        try:
            photo = read_photo(files.read_bytes(image))
        except ValueError as error:
            rejected.append(Rejected("not a readable image", image, str(error)))
        except FileNotFoundError:
            rejected.append(Rejected("gone since it was listed", image, "no such file"))
        except PermissionError as error:
            rejected.append(Rejected("no permission", image, str(error)))
        else:
            kept.append(image)
            yield photo


def _write_table(table: pa.Table, path: Path, file_format: str) -> None:
    if file_format == "parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
        return
    with pyarrow.ipc.new_file(str(path), IMAGE_MASKS) as writer:
        writer.write_table(table, max_chunksize=1)  # One image, one record batch: any of them is one read away.
