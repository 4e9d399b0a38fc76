"""ADE20K as ADEChallengeData2016:

    images/{training,validation}/*.jpg
    annotations/{training,validation}/*.png           class of each pixel, 1..150; 0 = ignore
    annotations_instance/{training,validation}/*.png  red: one of the 100 things; green: the instance's number

Made into a panoptic map as usual: instances lie over the stuff classes, and pixels of a thing class without an instance
are void.  Where an image has no instance PNG its things cannot be told apart: each thing class becomes one crowd
segment, which nobody trains on and panoptic quality ignores, and the image is counted as "no instance PNG".  A split
that lacks more than a few is refused, unless `allow_absent` says that it may lack its "instances".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import orjson
from jaxtyping import Int64, Integer

from pipelines.sources.categories import load_categories
from pipelines.sources.regions import Regions, masks_of
from pipelines.sources.source import Entry, Files, Index, Read, Rejected, Source
from pipelines.sources.stored_image import read_image, read_map
from semsam.data.images import decode_label_map, decode_rgb_map
from semsam.data.schema import Kind

_FOLDERS = {"train": "training", "val": "validation"}
_BROKEN = "broken annotation PNG"
# So many images may lack their instance PNG; a copy that lacks more was not unpacked whole.
SHARE_WITHOUT_INSTANCES = 0.1


@dataclass(frozen=True)
class Ade20k(Source):
    """Panoptic segments, and the thing segments once more as instances, on which AP is measured."""

    dataset: str = "ade20k"

    def index(self, files: Files, split: str) -> Index:
        folder = _FOLDERS[split]
        images = _by_name(files.glob(f"images/{folder}/*.jpg"))
        if not images:
            raise ValueError(f"{files.path}: found no images/{folder}/*.jpg")
        class_maps = _by_name(files.glob(f"annotations/{folder}/*.png"))
        instance_maps = _by_name(files.glob(f"annotations_instance/{folder}/*.png"))
        entries, rejected = [], []
        lacking = len(images.keys() - instance_maps.keys())
        if lacking > max(1, SHARE_WITHOUT_INSTANCES * len(images)) or not instance_maps:
            self._refuse(f"{files.path}: {lacking} of {len(images)} images have no annotations_instance/{folder}/*.png")
        for name, image in sorted(images.items()):
            if name in class_maps:
                paths = {"classes": class_maps[name], "instances": instance_maps.get(name)}
                entries.append(Entry(name, image, orjson.dumps(paths)))
            else:
                missing = f"{files.path}/annotations/{folder}/{name}.png"
                rejected.append(Rejected("missing class PNG", name, missing))
        for name, path in sorted((instance_maps | class_maps).items()):
            if name not in images:
                detail = f"{files.path}/images/{folder}/{name}.jpg, of {path}"
                rejected.append(Rejected("missing image", name, detail))
        return Index(entries, rejected, absent=() if instance_maps else ("instances",))

    def read(self, files: Files, split: str, entry: Entry) -> Read:
        paths = orjson.loads(entry.annotations)
        regions = Regions(entry.sample_id, read_image(files, [entry.image], entry.sample_id, self.max_pixels))
        regions.file = f"{files.path}/{paths['classes']}"
        image, instances_path = regions.image, paths["instances"]
        classes = read_map(files, paths["classes"], decode_label_map, image, entry.sample_id, _BROKEN)
        if instances_path is None:
            regions.drop("no instance PNG", "its things are kept as crowds")
            instances = np.zeros(classes.shape, np.int64)
        else:
            channels = read_map(files, instances_path, decode_rgb_map, image, entry.sample_id, _BROKEN).astype(np.int64)
            instances = channels[..., 0] * 256 + channels[..., 1]
        _add_classes(regions, classes, instances, things_are_told_apart=instances_path is not None)
        regions.file = f"{files.path}/{instances_path}"
        _add_instances(regions, instances)
        return regions.read(self.dataset, split)

    def _refuse(self, what: str) -> None:
        if "instances" not in self.allow_absent:
            raise ValueError(
                f"{what}, without which their things are crowds that nobody trains on; "
                "`allow_absent: [instances]` takes the split all the same"
            )


SOURCE = Ade20k()


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    return {PurePosixPath(path).stem: path for path in paths}


def _add_classes(
    regions: Regions,
    classes: Integer[np.ndarray, "h w"],
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
