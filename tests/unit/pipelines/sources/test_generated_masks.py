"""What jobs.generate wrote becomes records to train on."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest
from PIL import ExifTags, Image

from pipelines.generate.generate import MANIFEST_NAME, Generated
from pipelines.generate.mask_files import IMAGE_MASKS, MaskOptions
from pipelines.model_pool import ModelReference
from pipelines.parts import PartFile
from pipelines.prepare.validate import validate
from pipelines.sources.generated_masks import SOURCE, GeneratedMasks
from semsam.automatic_masks import AutomaticMaskSettings
from semsam.data import rle
from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.schema import Kind
from semsam.data.sealed import seal
from semsam.predictor import ImageSize, PromptStyle
from semsam.storage import Folder, existing_folder

SIZE = (24, 32)


def mask(**more: Any) -> dict[str, Any]:
    shape = np.pad(np.ones((4, 6), bool), ((2, 18), (3, 23)))
    row = {"rle": rle.encode(shape).decode(), "box_xyxy": [3, 2, 9, 6], "area": 24, "point_xy": [4, 4], "level": 1}
    names = dict.fromkeys(("object_name", "object_score", "part_name", "part_score"))
    return row | {"iou_prediction": 0.9, "stability": 0.9} | names | more


def write(root: Path, masks: list[dict[str, Any]], file_format: str = "parquet", objects: tuple[str, ...] = ()) -> Any:
    """Masks of one photo, as jobs.generate leaves them beside its photos."""
    photos, output = root / "photos", root / "masks"
    photos.mkdir(parents=True, exist_ok=True)
    (photos / "a.jpg").write_bytes(encode_jpeg(np.full((*SIZE, 3), 99, np.uint8)))
    rows = [{"image": "a.jpg", "height": SIZE[0], "width": SIZE[1], "masks": masks}]
    table, sink = pa.Table.from_pylist(rows, schema=IMAGE_MASKS), io.BytesIO()
    if file_format == "parquet":
        pyarrow.parquet.write_table(table, sink)
    else:
        with pyarrow.ipc.new_file(sink, IMAGE_MASKS) as writer:
            writer.write_table(table)
    file = PartFile.of(f"masks-00000.{file_format}", sink.getvalue())
    options = MaskOptions(
        ModelReference(None, "debug", 0),
        "x",
        ImageSize(),
        PromptStyle(),
        AutomaticMaskSettings(),
        objects,
        (),
        "parquet",
        64,
    )
    generated = Generated(str(photos), (file,), 1, len(masks), {}, options)
    Folder(str(output)).write(MANIFEST_NAME, seal(dataclasses.asdict(generated)))
    Folder(str(output)).write(file.name, sink.getvalue())
    return existing_folder(str(output), [str(photos)])


def read(files: Any, source: GeneratedMasks = SOURCE) -> Any:
    source = source.found_in(files)
    [entry] = source.index(files, "val").entries
    return validate(source.read(files, "val", entry), source.vocabulary())


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_masks_without_names_are_class_agnostic(tmp_path: Path, file_format: str) -> None:
    done = read(write(tmp_path, [mask(), mask()], file_format))
    assert done.dropped == ()
    assert done.record.image == (tmp_path / "photos" / "a.jpg").read_bytes()
    assert [(one.kind, one.object_category, one.box_xyxy) for one in done.record.regions] == [
        (Kind.CLASS_AGNOSTIC, None, (3, 2, 9, 6))
    ] * 2


def test_a_name_that_is_sure_enough_stays(tmp_path: Path) -> None:
    masks = [mask(object_name="dog", object_score=0.8), mask(object_name="cat", object_score=0.2)]
    files = write(tmp_path, masks, objects=("cat", "dog"))
    assert [one.object_category for one in read(files).record.regions] == [1, None]
    less = SOURCE.with_options({"min_name_score": 0.1})
    assert [one.object_category for one in read(files, less).record.regions] == [1, 0]


@pytest.mark.parametrize("option", ["min_iou", "min_stability"])
def test_a_review_leaves_out_what_the_model_is_not_sure_of(tmp_path: Path, option: str) -> None:
    files = write(tmp_path, [mask(), mask(iou_prediction=0.3, stability=0.3)])
    done = read(files, SOURCE.with_options({option: 0.5}))
    assert [one.annotation_id for one in done.record.regions] == ["0"]
    assert [one.reason for one in done.dropped] == ["mask that the model is not sure of"]


def test_a_photo_is_stored_as_its_exif_turns_it(tmp_path: Path) -> None:
    files = write(tmp_path, [mask()])
    pixels = np.zeros((32, 24, 3), np.uint8)
    pixels[:, :8] = 250  # The left third, which turned to the right is the upper one.
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.jpg", exif=exif, quality=95)
    record = read(files).record
    shown = decode_jpeg(record.image)
    assert (shown[:6] > 200).all()
    assert (shown[10:] < 50).all()


def test_photos_elsewhere_are_read_only_where_the_user_says_so(tmp_path: Path) -> None:
    files = existing_folder(write(tmp_path, [mask()]).path)
    with pytest.raises(
        ValueError, match=rf"masks: its photos lie in {tmp_path}/photos; neighbours=\[{tmp_path}/photos\]"
    ):
        SOURCE.found_in(files)


def test_a_folder_that_is_not_finished_or_damaged_is_named(tmp_path: Path) -> None:
    files = write(tmp_path, [mask()])
    (tmp_path / "masks" / "masks-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        ValueError, match=r"masks-00000.parquet: other bytes than the manifest says; jobs.generate with"
    ):
        SOURCE.index(files, "val")
    (tmp_path / "masks" / "masks-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"masks-00000.parquet: no such file, though the manifest has it"):
        SOURCE.index(files, "val")
    path = tmp_path / "masks" / MANIFEST_NAME
    path.write_text(path.read_text().replace("masks-00000", "masks-00001"))
    with pytest.raises(ValueError, match=r"manifest.json: damaged, or edited by hand"):
        SOURCE.found_in(files)
    Folder(files.path).write(MANIFEST_NAME, seal({"photos": "x"}))
    with pytest.raises(ValueError, match=r"manifest.json: not a manifest of jobs.generate: options: missing"):
        SOURCE.found_in(files)
    path.unlink()
    with pytest.raises(ValueError, match=r"manifest.json: no such file; jobs.generate writes it when all its masks"):
        SOURCE.found_in(files)
