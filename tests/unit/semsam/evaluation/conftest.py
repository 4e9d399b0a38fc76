"""Real photos with answers that are near to the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.sources import SOURCES
from pipelines.sources.categories import load_categories
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind
from semsam.evaluation.items import ImageItem
from semsam.storage import existing_folder
from tests.synthetic_items import perturbed


@pytest.fixture(scope="session")
def photo_names() -> Vocabulary:
    """The names of `photo_items`."""
    return load_categories("coco_panoptic").vocabulary


@pytest.fixture(scope="session")
def photo_items(samples_dir: Path) -> list[ImageItem]:
    """60 photos of COCO.  The copy has no instances, so its segments of things stand for them."""
    source, files = SOURCES["coco_panoptic"], existing_folder(str(samples_dir / "coco128"))
    items = []
    for entry in source.index(files, "val").entries:
        record = source.read(files, "val", entry).record
        things = [region._replace(kind=Kind.INSTANCE) for region in record.regions if region.is_thing]
        sizes = record.height, record.width, record.original_height, record.original_width
        item = ImageItem(record.sample_id, *sizes, (*record.regions, *things))
        items.append(perturbed(item, seed=len(items)))
    return items
