"""The readers of the seven datasets' own release layouts."""

from __future__ import annotations

from pipelines.sources import ade20k, coco_panoptic, objects365, paco, partimagenet, pascal_part, sa1b
from pipelines.sources.source import Source

_ALL: tuple[Source, ...] = (
    sa1b.SOURCE,
    coco_panoptic.SOURCE,
    objects365.SOURCE,
    ade20k.SOURCE,
    pascal_part.SOURCE,
    paco.SOURCE,
    partimagenet.SOURCE,
)
SOURCES: dict[str, Source] = {source.dataset: source for source in _ALL}
