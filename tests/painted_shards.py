"""Prepared splits of painted images, small enough to train on in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region
from tests.prepared_split import write_split

VOCABULARIES = {
    "sa1b": Vocabulary(()),
    "coco_panoptic": Vocabulary(("box", "sky-other-merged"), (), (True, False)),
    "objects365": Vocabulary(("crate",), (), (True,)),
    "pascal_part": Vocabulary(("car",), ("wheel", "door"), (True,), ((0, 0), (0, 1))),
}
KINDS = {"sa1b": Kind.CLASS_AGNOSTIC, "coco_panoptic": Kind.PANOPTIC, "objects365": Kind.INSTANCE}
HEIGHT, WIDTH = 48, 64


def write_painted_shards(root: Path, num_images: int = 6, vocabularies: dict[str, Vocabulary] = VOCABULARIES) -> Path:
    """`<root>/<dataset>/train` for each dataset, two shards each; the second image of each has no regions."""
    for dataset, vocabulary in vocabularies.items():
        records = [painted_record(dataset, number) for number in range(num_images)]
        write_split(root / dataset / "train", [records[: num_images // 2], records[num_images // 2 :]], vocabulary)
    return root


def painted_record(dataset: str, number: int) -> Record:
    """Coloured boxes in boxes; of a dataset with parts every second one is a part of the one before."""
    rng = np.random.default_rng([number, len(dataset)])
    image = rng.integers(60, 90, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    regions = []
    for j in range(0 if number == 1 else 4):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        top, left = rng.integers(0, 20), rng.integers(0, 30)
        mask[top : top + 8 + 5 * (4 - j), left : left + 10 + 5 * (4 - j)] = True
        image[mask] = rng.integers(0, 255, 3)
        regions.append(_region(dataset, j, mask))
    return Record(dataset, "train", f"{number:06d}", encode_jpeg(image), HEIGHT, WIDTH, HEIGHT, WIDTH, tuple(regions))


def _region(dataset: str, j: int, mask: np.ndarray) -> Region:
    encoded = rle.encode(mask)
    box = rle.box_xyxy(encoded, HEIGHT, WIDTH)
    area = float(mask.sum())
    if dataset == "pascal_part":
        if j % 2:
            return Region(str(j), encoded, box, area, Kind.PART, part_category=j // 2, parent=j - 1)
        return Region(str(j), encoded, box, area, Kind.INSTANCE, object_category=0)
    num_names = len(VOCABULARIES[dataset].objects)
    category = j % num_names if num_names else None
    return Region(str(j), None if dataset == "objects365" else encoded, box, area, KINDS[dataset], category)
