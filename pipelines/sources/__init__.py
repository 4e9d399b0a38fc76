"""The readers of the seven datasets' own release layouts."""

from __future__ import annotations

from pipelines.sources.ade20k import Ade20k
from pipelines.sources.coco_panoptic import CocoPanoptic
from pipelines.sources.objects365 import Objects365
from pipelines.sources.paco import Paco
from pipelines.sources.partimagenet import PartImageNet
from pipelines.sources.pascal_part import PascalPart
from pipelines.sources.sa1b import Sa1b
from pipelines.sources.source import Source

SOURCES: dict[str, Source] = {
    "sa1b": Sa1b(),
    "coco_panoptic": CocoPanoptic(),
    "objects365": Objects365(),
    "ade20k": Ade20k(),
    "pascal_part": PascalPart(),
    "paco": Paco(),
    "partimagenet": PartImageNet(),
}
