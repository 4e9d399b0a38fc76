from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import Bool
from pycocotools import mask as coco_mask
from scipy.io import loadmat

from pipelines.prepare.validate import validate
from pipelines.sources import SOURCES
from pipelines.sources.categories import vocabulary_names
from pipelines.sources.source import REASONS_BY_DESIGN, BadSample
from pipelines.toy import ToySettings, toy_scenes, write_toy_world
from pipelines.toy.layouts import LAYOUTS
from pipelines.toy.native_split import ToySplit, polygon_area, polygons
from pipelines.toy.shapes import KINDS, STUFF
from pipelines.toy.textures import textures
from semsam.data import rle
from semsam.data.schema import SPLITS, Kind, Record
from semsam.evaluation.baselines import BaselineFit, best_radii
from semsam.evaluation.questions import innermost_pixel
from semsam.storage import existing_folder

SETTINGS = ToySettings(train_images=8, val_images=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, str], ToySplit]]:
    """A small world: its folder, and what was counted when it was written."""
    folder = tmp_path_factory.mktemp("toy")
    return folder, {(count.dataset, count.split): count for count in write_toy_world(folder, SETTINGS)}


@pytest.fixture(scope="module")
def found(world: tuple[Path, dict[tuple[str, str], ToySplit]]) -> dict[tuple[str, str], tuple[list[Record], ToySplit]]:
    """Each split as its source reads it: the records, and what is kept and dropped."""
    return {(dataset, split): read_split(world[0], dataset, split) for dataset in LAYOUTS for split in SPLITS}


def read_split(folder: Path, dataset: str, split: str) -> tuple[list[Record], ToySplit]:
    source, files, count = SOURCES[dataset], existing_folder(f"{folder}/{dataset}"), ToySplit(dataset, split)
    index = source.index(files, split)
    count.dropped_samples.update(rejected.reason for rejected in index.rejected)
    records = []
    for entry in index.entries:
        try:
            read = validate(source.read(files, split, entry), source.vocabulary())
        except BadSample as bad:
            count.dropped_samples[bad.rejected.reason] += 1
            continue
        records.append(read.record)
        count.num_samples += 1
        count.num_regions += len(read.record.regions)
        count.dropped_regions.update(rejected.reason for rejected in read.dropped)
    return records, count


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def masks_of(record: Record) -> list[Bool[np.ndarray, "h w"]]:
    return [rle.decode(region.rle, record.height, record.width) for region in record.regions if region.rle is not None]


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(
    world: tuple[Path, dict[tuple[str, str], ToySplit]], tmp_path: Path
) -> None:
    write_toy_world(tmp_path / "again", SETTINGS)
    first, again = all_bytes(world[0]), all_bytes(tmp_path / "again")
    assert first == again
    other = toy_scenes("sa1b", "train", ToySettings(seed=1, train_images=1))[0]
    assert not np.array_equal(other.labels, toy_scenes("sa1b", "train", SETTINGS)[0].labels)


def test_more_images_leave_the_first_as_they_are() -> None:
    few, more = (toy_scenes("paco", "val", ToySettings(val_images=count)) for count in (1, 3))
    assert np.array_equal(few[0].image, more[0].image)
    assert not np.array_equal(more[0].image, more[1].image)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("dataset", LAYOUTS)
def test_sources_find_what_was_written_and_drop_what_was_planted(
    world: tuple[Path, dict[tuple[str, str], ToySplit]],
    found: dict[tuple[str, str], tuple[list[Record], ToySplit]],
    dataset: str,
    split: str,
) -> None:
    planted, count = world[1][dataset, split], found[dataset, split][1]
    assert (count.num_samples, count.num_regions) == (planted.num_samples, planted.num_regions)
    assert count.dropped_samples == planted.dropped_samples
    assert count.dropped_regions == planted.dropped_regions


def test_every_fault_of_real_data_is_planted(world: tuple[Path, dict[tuple[str, str], ToySplit]]) -> None:
    met: Counter[str] = Counter()
    for count in world[1].values():
        met += count.dropped_samples + count.dropped_regions + count.oddities
    assert set(met) == {
        "broken image",
        "missing image",
        "empty mask",
        "empty box",
        "unknown category",
        "part without category",
        "thing pixels without an instance",
        "no instance PNG",
        "image without annotations",
        "image of crowds alone",
        "image with void pixels",
        "crowd segment",
        "box past the border",
        "polygon of two points or fewer",
        "part without its object",
        "part one pixel wide",
        "object without parts",
    }


def test_unusable_annotations_are_in_train_alone_and_nowhere_without_faults(
    world: tuple[Path, dict[tuple[str, str], ToySplit]], tmp_path: Path
) -> None:
    clean = write_toy_world(tmp_path / "clean", ToySettings(train_images=4, val_images=1, faults=False))
    for count in [*clean, *(count for (_, split), count in world[1].items() if split == "val")]:
        assert not count.dropped_samples
        assert set(count.dropped_regions) <= REASONS_BY_DESIGN
    assert "image without annotations" not in sum((count.oddities for count in clean), Counter())


@pytest.mark.parametrize("dataset", ["pascal_part", "paco", "partimagenet"])
def test_parts_lie_inside_their_objects(
    found: dict[tuple[str, str], tuple[list[Record], ToySplit]], dataset: str
) -> None:
    shares = []
    for record in found[dataset, "val"][0]:
        masks = masks_of(record)
        for region, mask in zip(record.regions, masks, strict=True):
            if region.kind == Kind.PART and region.parent is not None:
                assert record.regions[region.parent].object_category == region.object_category
                shares.append((mask & masks[region.parent]).sum() / mask.sum())
    assert len(shares) > 10
    assert min(shares) == 1


def test_clicks_on_unnamed_masks_meet_several_levels(
    found: dict[tuple[str, str], tuple[list[Record], ToySplit]],
) -> None:
    levels = []
    for record in found["sa1b", "val"][0]:
        masks = masks_of(record)
        levels += [sum(other[y, x] for other in masks) for x, y in map(innermost_pixel, masks)]
    assert np.mean(np.array(levels) >= 2) > 0.8
    assert np.mean(np.array(levels) >= 3) > 0.4


def test_discs_around_the_clicks_are_bad_guesses(
    found: dict[tuple[str, str], tuple[list[Record], ToySplit]],
) -> None:
    records = [record for dataset in LAYOUTS for record in found[dataset, "val"][0]]
    ious = np.array([one for record in records for one in BaselineFit.of(record).disc_ious])
    assert len(ious) > 200
    assert ious[:, best_radii(ious, 6)].max(axis=1).mean() < 0.6


@pytest.mark.parametrize("dataset", [dataset for dataset in LAYOUTS if dataset != "sa1b"])
def test_no_name_is_too_common(found: dict[tuple[str, str], tuple[list[Record], ToySplit]], dataset: str) -> None:
    regions = [region for split in SPLITS for record in found[dataset, split][0] for region in record.regions]
    for names in ([r.object_category for r in regions], [r.part_category for r in regions if r.part_category]):
        counts = Counter(names)
        assert not counts or max(counts.values()) < 0.4 * counts.total()


def test_every_texture_of_a_paint_exists() -> None:
    paints = [shape.paint for kind in KINDS.values() for shape in kind.draw(np.random.default_rng(0))]
    assert {paint.texture for paint in [*paints, *STUFF.values()]} <= set(textures()[0])


def test_polygons_of_a_ring_leave_its_hole_out() -> None:
    y, x = np.mgrid[:40, :50]
    distance = np.hypot(y - 20, x - 24)
    ring = (distance < 18) & (distance > 9)
    outlines = polygons(ring)
    drawn = rle.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, 40, 50))["counts"], 40, 50)
    assert (drawn & ring).sum() / (drawn | ring).sum() > 0.9
    assert not drawn[20, 24]


def test_the_area_of_a_polygon_is_what_it_encloses() -> None:
    assert polygon_area([2, 3, 12, 3, 12, 9]) == 30


@pytest.mark.parametrize("mask", [np.eye(5, dtype=bool), np.eye(1, 9, 4, dtype=bool), np.ones((3, 3), bool)])
def test_small_masks_have_polygons(mask: Bool[np.ndarray, "h w"]) -> None:
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygons(mask), *mask.shape))
    assert coco_mask.area(drawn) > 0


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="new or empty folder"):
        write_toy_world(tmp_path, SETTINGS)


def test_a_split_without_images_is_refused() -> None:
    with pytest.raises(ValueError, match="val_images"):
        ToySettings(val_images=0)


def test_there_is_a_layout_for_every_dataset() -> None:
    assert set(LAYOUTS) == set(vocabulary_names())


# What follows compares the toy files with real ones: the same keys, types and shapes.


@pytest.mark.samples
@pytest.mark.parametrize(
    ("toy", "real"),
    [
        ("sa1b/train/sa_1.json", "sa1b/annotation_records/sa_1.json"),
        ("coco_panoptic/annotations/panoptic_val2017.json", "coco/annotations/panoptic_val2017.json"),
        ("coco_panoptic/annotations/instances_val2017.json", "coco/annotations/instances_val2017.json"),
        ("objects365/annotations/zhiyuan_objv2_val.json", "objects365/annotations/zhiyuan_objv2_REAL_RECORD_1box.json"),
    ],
)
def test_json_is_like_the_real_one(
    world: tuple[Path, dict[tuple[str, str], ToySplit]], samples_dir: Path, toy: str, real: str
) -> None:
    ours, theirs = (json.loads(path.read_text()) for path in (world[0] / toy, samples_dir / real))
    assert set(ours) == set(theirs)
    for key in ("image", "images", "annotations", "categories", "segments_info"):
        if key in theirs:
            assert shape_of(ours[key]) >= shape_of(theirs[key])


def shape_of(value: Any, path: str = "") -> set[str]:
    """Every key of the first rows of a json with the type that its value has (numbers are one type)."""
    if isinstance(value, dict):
        return set().union(*(shape_of(item, f"{path}.{key}") for key, item in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(shape_of(item, f"{path}[]") for item in value[:200]))
    if path.endswith(".counts"):  # A list as released; copies come with strings.
        return {path}
    kind = "number" if isinstance(value, int | float) else type(value).__name__
    return {f"{path}: {kind}"}


@pytest.mark.samples
def test_a_mat_file_is_like_the_real_ones(
    world: tuple[Path, dict[tuple[str, str], ToySplit]], samples_dir: Path
) -> None:
    real: dict[str, set[Any]] = {}
    ours: dict[str, set[Any]] = {}
    for shapes, folder in ((real, samples_dir / "pascal_part"), (ours, world[0] / "pascal_part")):
        for path in sorted((folder / "Annotations_Part").glob("*.mat")):
            describe_mat(loadmat(path)["anno"], "anno", shapes)
    assert ours["anno"] == real["anno"]
    assert set(ours) == set(real)
    for field in ("anno.imname", "anno.objects.class", "anno.objects.class_ind", "anno.objects.parts.part_name"):
        assert ours[field] == real[field], field
    assert {kind for kind, _ in ours["anno.objects.mask"]} == {kind for kind, _ in real["anno.objects.mask"]}
    assert (str(["part_name", "mask"]), (0, 0)) in ours["anno.objects.parts"] & real["anno.objects.parts"]


def describe_mat(value: Any, path: str, shapes: dict[str, set[Any]]) -> None:
    """Collect the type and shape of each field of a loaded .mat file."""
    kind = str(list(value.dtype.names)) if value.dtype.names else value.dtype.kind + str(value.dtype.itemsize)
    shapes.setdefault(path, set()).add(("U" if value.dtype.kind == "U" else kind, value.shape))
    for row in value.ravel() if value.dtype.names else ():
        for name in value.dtype.names:
            describe_mat(row[name], f"{path}.{name}", shapes)
