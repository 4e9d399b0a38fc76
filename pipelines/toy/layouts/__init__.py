"""The writers of the seven native layouts, each the counterpart of the source of its name."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.toy.layouts import ade20k, coco_panoptic, objects365, paco, partimagenet, pascal_part, sa1b
from pipelines.toy.native_split import NativeSplit

# In an order that stays: it decides what is drawn.
LAYOUTS: dict[str, Callable[[NativeSplit], None]] = {
    "sa1b": sa1b.write,
    "coco_panoptic": coco_panoptic.write,
    "objects365": objects365.write,
    "ade20k": ade20k.write,
    "pascal_part": pascal_part.write,
    "paco": paco.write,
    "partimagenet": partimagenet.write,
}
