"""A small SA-1B folder, as the dataset is released: jpg and json side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from semsam.data import rle
from semsam.data.images import encode_jpeg

WriteSa1b = Callable[..., Path]


@pytest.fixture
def write_sa1b(tmp_path: Path) -> WriteSa1b:
    """Write `count` train images and as many val images of a given size; the root comes back."""

    def write(count: int = 7, height: int = 40, width: int = 60, root: Path | None = None) -> Path:
        root = root or tmp_path / "sa1b"
        for split in ("train", "val"):
            for number in range(1, count + 1):
                write_image(root / split / f"sa_{number}", number, height, width)
        return root

    return write


def write_image(stem: Path, number: int, height: int, width: int) -> None:
    rng = np.random.default_rng(number)
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".jpg").write_bytes(encode_jpeg(rng.integers(0, 255, (height, width, 3), np.uint8)))
    rows = []
    for i in range(3):
        mask = np.zeros((height, width), bool)
        mask[i * 5 : i * 5 + number + 5, i * 7 : i * 7 + 20] = True
        counts = rle.encode(mask)
        size = [height, width]
        rows.append({"id": i, "area": int(mask.sum()), "segmentation": {"size": size, "counts": counts.decode()}})
    document = {"image": {"image_id": number, "height": height, "width": width}, "annotations": rows}
    stem.with_suffix(".json").write_bytes(orjson.dumps(document))
