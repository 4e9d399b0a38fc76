"""Has the quickstart learnt what it should?  `python tests/quickstart_floors.py outputs/quickstart/summary.json`.

The floors lie below what its recipe reaches (in brackets), so that another machine's rounding passes and a change that
teaches less does not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

FLOORS = {
    "one_click/miou_oracle": 0.59,  # (0.616)
    "one_click/miou_max": 0.31,  # (0.341)
    "granularity/miou_all": 0.62,  # (0.647)
    "box_prompt/miou": 0.50,  # (0.565)
    "classes/object_top1": 0.72,  # (0.775)
    "classes/part_top1": 0.62,  # (0.692)
    "panoptic/pq": 0.11,  # (0.171)
    "semantic/miou": 0.18,  # (0.268)
    "masks/ap": 0.15,  # (0.247)
    "parts_of_objects/ap": 0.05,  # (0.097)
}
# What is found without being asked for must be so many times better than a blind guess.
TIMES_BLIND = {"panoptic/pq": 3, "semantic/miou": 3, "masks/ap": 3, "parts_of_objects/ap": 3}


def main(path: str) -> None:
    figures = orjson.loads(Path(path).read_bytes())
    below = []
    for name, floor in FLOORS.items():
        reached = figures[name]["after"]
        floor = max(floor, TIMES_BLIND.get(name, 0) * figures[name].get("blind", 0))
        print(f"{name:<24}{reached:.3f}  floor {floor:.2f}")
        if not reached >= floor:
            below.append(name)
    if below:
        sys.exit(f"below their floors: {', '.join(below)}")


if __name__ == "__main__":
    main(sys.argv[1])
