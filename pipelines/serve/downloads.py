"""Masks as files: a PNG, COCO's run lengths, COCO's json."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool

from pipelines.serve.faults import malformed, too_large
from pipelines.serve.messages import Download, RunLengths
from semsam.data import rle


def decoded(mask: RunLengths, max_pixels: int) -> Bool[np.ndarray, "h w"]:
    """The dense mask.  Raises `Refused` for run lengths that are none of its size, and for a size that is too large."""
    height, width = mask.size
    _check(mask, max_pixels)
    return rle.decode(mask.counts.encode(), height, width)


def to_png(download: Download, max_pixels: int) -> bytes:
    """One mask in white on black; of several each pixel has the number of its mask, from 1 on, 8 bits or 16.

    Where masks overlap the later one is seen.  Raises `Refused` as `decoded` does, and for masks of several sizes.
    """
    height, width = _size(download)
    if len(download.masks) == 1:
        values = decoded(download.masks[0].rle, max_pixels).astype(np.uint8) * 255
    else:
        _check(download.masks[0].rle, max_pixels)
        values = np.zeros((height, width), np.uint8 if len(download.masks) < 256 else np.uint16)
        for number, mask in enumerate(download.masks, 1):
            values[decoded(mask.rle, max_pixels)] = number
    _, png = cv2.imencode(".png", values)
    return bytes(png)


def to_rle(download: Download, max_pixels: int) -> list[dict[str, Any]]:
    """COCO's run lengths, checked, with names and scores where there are any."""
    _size(download)
    rows = []
    for mask in download.masks:
        _check(mask.rle, max_pixels)
        row: dict[str, Any] = {"size": list(mask.rle.size), "counts": mask.rle.counts}
        rows.append(row | {key: value for key in ("name", "score") if (value := getattr(mask, key)) is not None})
    return rows


def to_coco(download: Download, max_pixels: int) -> dict[str, Any]:
    """A COCO json of one image: its masks as annotations, the names as categories (`mask` for those without one)."""
    height, width = _size(download)
    names = list(dict.fromkeys(mask.name or "mask" for mask in download.masks))
    annotations = []
    for number, mask in enumerate(download.masks, 1):
        _check(mask.rle, max_pixels)
        counts = mask.rle.counts.encode()
        left, top, right, bottom = rle.box_xyxy(counts, height, width)
        annotation = {
            "id": number,
            "image_id": 1,
            "category_id": names.index(mask.name or "mask") + 1,
            "segmentation": {"size": [height, width], "counts": mask.rle.counts},
            "bbox": [left, top, right - left, bottom - top],
            "area": rle.area(counts),
            "iscrowd": 0,
        }
        annotations.append(annotation | ({} if mask.score is None else {"score": mask.score}))
    return {
        "images": [{"id": 1, "file_name": download.file_name, "height": height, "width": width}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": annotations,
    }


def _size(download: Download) -> tuple[int, int]:
    sizes = {mask.rle.size for mask in download.masks}
    if len(sizes) > 1:
        raise malformed(f"masks: of one image, and so of one size, not {sorted(sizes)}")
    return sizes.pop()


def _check(mask: RunLengths, max_pixels: int) -> None:
    height, width = mask.size
    if height * width > max_pixels:
        raise too_large(f"size: {height} x {width} is more than {max_pixels} pixels")
    try:
        runs = rle.decode_counts(mask.counts.encode())
        # Before any sum of them, which would overflow.
        if len(runs) > height * width + 2 or (len(runs) and runs.max() > height * width):
            raise ValueError(f"RLE runs do not fit {height} x {width} pixels")
        rle.toggles_of_many([mask.counts.encode()], height, width)
    except ValueError as error:
        raise malformed(f"counts: {error}") from None
