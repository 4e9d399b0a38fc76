"""ADE20K as ADEChallengeData2016:

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png           class of each pixel, 1..150; 0 = ignore
    annotations_instance/{training,validation}/*.png  red: one of the 100 things; green: the instance's number

Made into a panoptic map as usual: instances lie over the stuff classes, and pixels of a thing class without an instance
are void.  Where an image has no instance PNG its things cannot be told apart: each thing class becomes one crowd
segment, which nobody trains on and panoptic quality ignores, and the image is counted as "no instance PNG".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import orjson
from jaxtyping import Int64, UInt8

from pipelines.files import Files
from pipelines.sources.categories import load_categories
from pipelines.sources.regions import Regions, masks_of
from pipelines.sources.source import BadSample, Entry, Index, Read, Rejected
from pipelines.sources.stored_image import check_size, read_image
from semsam.data.images import read_image_any
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind

_FOLDERS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Ade20k:
    """Panoptic segments, and the thing segments once more as instances, on which AP is measured."""

    dataset: str = "ade20k"
    version: int = 1
    train_long_side: int = 0
    allow_absent: tuple[str, ...] = ()

    def vocabulary(self) -> Vocabulary:
        return load_categories(self.dataset).vocabulary

    def index(self, files: Files, split: str) -> Index:
        folder = _FOLDERS[split]
        images = files.glob(f"images/{folder}/*.jpg")
        if not images:
            raise ValueError(f"{files.root}: found no images/{folder}/*.jpg")
        class_maps = set(files.glob(f"annotations/{folder}/*.png"))
        instance_maps = set(files.glob(f"annotations_instance/{folder}/*.png"))
        index = Index([])
        for image in images:
            name = image.rpartition("/")[2].removesuffix(".jpg")
            class_map = f"annotations/{folder}/{name}.png"
            if class_map not in class_maps:
                index.rejected.append(Rejected("missing class PNG", name, f"{files.root}/{class_map}"))
                continue
            instance_map = f"annotations_instance/{folder}/{name}.png"
            has_instances = instance_map in instance_maps
            paths = {"classes": class_map, "instances": instance_map if has_instances else None}
            index.entries.append(Entry(name, image, orjson.dumps(paths)))
        return index

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        paths = orjson.loads(entry.annotations)
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id))
        classes = _pixels(files, paths["classes"], regions)[..., 0]
        if paths["instances"] is None:
            regions.drop("no instance PNG", f"{files.root}: things of {paths['classes']} are kept as crowds")
            instances = np.zeros(classes.shape, np.int64)
        else:
            channels = _pixels(files, paths["instances"], regions).astype(np.int64)
            instances = channels[..., 0] * 256 + channels[..., 1]
        _add_classes(regions, classes, instances, things_are_told_apart=paths["instances"] is not None)
        _add_instances(regions, instances)
        return regions.read(self.dataset, split)


SOURCE = Ade20k()


def _add_classes(
    regions: Regions,
    classes: UInt8[np.ndarray, "h w"],
    instances: Int64[np.ndarray, "h w"],
    things_are_told_apart: bool,
) -> None:
    """Add a segment per stuff class, where no instance lies over it; and thing classes without instances as crowds."""
    by_value = load_categories(Ade20k.dataset).objects_by("id")
    for value, mask in masks_of(np.where(instances > 0, 0, classes)):
        category = by_value.get(value)
        if category is None:
            regions.drop("unknown category", f"class {value}: {mask.sum()} pixels")
        elif category.thing and things_are_told_apart:
            regions.drop("thing pixels without an instance", f"class {value}: {mask.sum()} pixels")
        else:
            regions.add_mask(mask, str(value), Kind.PANOPTIC, category, is_crowd=category.thing)


def _add_instances(regions: Regions, instances: Int64[np.ndarray, "h w"]) -> None:
    """Add a panoptic segment for every instance, and after them all the same masks once more as instances."""
    by_red = load_categories(Ade20k.dataset).objects_by("instance_id")
    segments = []
    for value, mask in masks_of(instances):
        red, green = divmod(value, 256)
        if red in by_red:
            segments.append(regions.add_mask(mask, f"{red}/{green}", Kind.PANOPTIC, by_red[red]))
        else:
            regions.drop("unknown category", f"instance class {red}: {mask.sum()} pixels")
    regions.regions += [regions.regions[i]._replace(kind=Kind.INSTANCE) for i in segments if i is not None]


def _pixels(files: Files, path: str, regions: Regions) -> UInt8[np.ndarray, "h w 3"]:
    try:
        pixels = read_image_any(files.read_bytes(path))
    except (ValueError, FileNotFoundError) as error:
        raise BadSample("broken annotation PNG", regions.sample_id, f"{files.root}/{path}: {error}") from None
    check_size(regions.image, pixels.shape[:2], regions.sample_id)
    return pixels
