"""Files of masks, each a part of its own: one row per image with run lengths, boxes, scores and names."""

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

from pipelines.model_pool import ModelReference
from pipelines.parts import KILLS_ITS_WORKER, Attempt, Part, PartFile, make_part
from pipelines.sources.source import Files, Rejected
from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings, ImageMasks
from semsam.data.images import MAX_PIXELS, ImageTooLarge, read_photo
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
class MaskOptions:
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
    max_pixels: int = MAX_PIXELS  # Of a photo; larger ones are rejected by their header.

    def fingerprint(self, root: str, images: Sequence[str]) -> str:
        """SHA-256 of all that the masks of some photos follow from, the photos' own bytes excepted."""
        parts = {**dataclasses.asdict(self), "model": "", "root": root, "images": images, "version": FORMAT_VERSION}
        return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


@dataclass(frozen=True)
class MaskReport:
    """What the sidecar of a file of masks says of it."""

    num_images: int
    num_masks: int
    rejected: tuple[Rejected, ...]


def part_name(position: int) -> str:
    """The name of the part at a position."""
    return f"masks-{position:05d}"


def write_masks(
    generator: AutomaticMasks,
    options: MaskOptions,
    files: Files,
    images: Sequence[str],
    output: str,
    position: int,
    redo: bool = False,
) -> tuple[Part[MaskReport], bool]:
    """A file of the masks of some photos, and whether it was found finished; otherwise it is written now.

    What is no image is rejected, and so is one that ends its worker; any exception is a fault of the code or the
    storage.
    """
    folder = Folder(output)

    def make(attempt: Attempt) -> tuple[list[PartFile], MaskReport]:
        rejected = [Rejected(KILLS_ITS_WORKER, image, image) for image in images if image in attempt.left_out]
        rows: list[dict[str, Any]] = []
        for group in _groups([image for image in images if image not in attempt.left_out], generator, attempt):
            with attempt.working_on(*group):
                kept: list[str] = []
                found = generator.of_images(_photos(files, group, options.max_pixels, kept, rejected))
                rows += [to_row(kept[place], masks) for place, masks in enumerate(found)]
        name = f"{part_name(position)}.{options.file_format}"
        with folder.publishing(name) as draft:
            _write_table(pa.Table.from_pylist(rows, schema=IMAGE_MASKS), draft, options.file_format)
            with draft.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = draft.stat().st_size
        num_masks = sum(len(row["masks"]) for row in rows)
        return [PartFile(name, size, digest)], MaskReport(len(rows), num_masks, tuple(rejected))

    made_from = options.fingerprint(files.path, images)
    return make_part(folder, part_name(position), made_from, MaskReport, make, redo=redo)


def _groups(images: Sequence[str], generator: AutomaticMasks, attempt: Attempt) -> Iterator[list[str]]:
    """The photos that are in work at once: as many as the generator encodes together, but suspects one at a time."""
    step = 1 if attempt.are_suspect(images) else generator.settings.images_at_once
    return (list(images[start : start + step]) for start in range(0, len(images), step))


def read_masks(folder: Folder, part: Part[MaskReport]) -> pa.Table:
    """The rows of a file of masks, in memory.  Raises `ValueError` where it is not the file that was written."""
    [file] = part.files
    data = folder.read(file.name)
    path = f"{folder.path}/{file.name}"
    if PartFile.of(file.name, data) != file:
        raise ValueError(f"{path}: not the file that its sidecar means; run jobs.generate again with redo=true")
    if file.name.endswith(".parquet"):
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


def _photos(
    files: Files, images: Sequence[str], max_pixels: int, kept: list[str], rejected: list[Rejected]
) -> Iterator[Any]:
    """The photos that can be read, their paths added to `kept`, and the others to `rejected`."""
    for image in images:
        try:
            data = files.read(image)
        except FileNotFoundError:
            rejected.append(Rejected("gone since it was listed", image, "no such file"))
            continue
        except PermissionError as error:
            rejected.append(Rejected("no permission", image, str(error)))
            continue
        try:
            photo = read_photo(data, max_pixels)
        except ValueError as error:
            reason = "image too large" if isinstance(error, ImageTooLarge) else "not a readable image"
            rejected.append(Rejected(reason, image, str(error)))
            continue
        kept.append(image)
        yield photo


def _write_table(table: pa.Table, path: Path, file_format: str) -> None:
    if file_format == "parquet":
        pyarrow.parquet.write_table(table, path, compression="zstd")
        return
    with pyarrow.ipc.new_file(str(path), IMAGE_MASKS) as writer:
        writer.write_table(table, max_chunksize=1)  # One image, one record batch: any of them is one read away.
