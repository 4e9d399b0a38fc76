"""Pictures to look at: an image with its click, and the six levels that the model answers, each named and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from semsam.data import rle
from semsam.predictor import Answer, Predictor

CELL = 192  # Longer side of one picture in the grid, pixels.
CAPTION = 30  # Height of the text above it.
MASK_COLOUR = np.array([30, 144, 255])
CLICK_COLOUR = (255, 40, 40)
COLOURS = (
    *((230, 25, 75), (60, 180, 75), (255, 200, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180)),
    *((70, 220, 220), (240, 50, 230), (170, 200, 40), (0, 128, 128), (170, 110, 40), (128, 128, 255)),
)


@dataclass(frozen=True)
class Row:
    """One line of the grid: the image with the click and what is true there, then one cell per level."""

    cells: tuple[UInt8[np.ndarray, "h w 3"], ...]
    captions: tuple[tuple[str, str], ...]


def click_row(
    predictor: Predictor,
    image: UInt8[np.ndarray, "h w 3"],
    click_xy: tuple[int, int],
    truth: Bool[np.ndarray, "h w"],
    title: tuple[str, str],
) -> Row:
    """What the model answers to one click, beside the true region; `predictor` has the image and the names set."""
    answer = predictor.predict(points_xy=np.array([click_xy]) + 0.5)
    cells = [_with_click(image, click_xy), _with_mask(image, truth)]
    captions = [title, ("true region", f"{int(truth.sum())} px")]
    for level in range(answer.masks.shape[1]):
        cells.append(_with_mask(image, answer.masks[0, level]))
        captions.append(_caption(answer, level, predictor.object_names, predictor.part_names))
    return Row(tuple(cells), tuple(captions))


def coloured_masks(image: UInt8[np.ndarray, "h w 3"], rles: Sequence[bytes]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with masks in colours of their own, the later over the earlier."""
    drawn = image * 0.4 + 90.0
    for number, counts in enumerate(rles):
        mask = rle.decode(counts, *image.shape[:2])
        drawn[mask] = image[mask] * 0.45 + np.array(COLOURS[number % len(COLOURS)]) * 0.55
    return drawn.astype(np.uint8)


def grid(rows: Sequence[Row]) -> UInt8[np.ndarray, "h w 3"]:
    """The rows under each other, white where one has fewer cells.  Raises `ValueError` for no rows."""
    if not rows:
        raise ValueError("a grid needs at least one row")
    lines = [np.concatenate([_cell(*pair) for pair in _pairs(row)], axis=1) for row in rows]
    width = max(line.shape[1] for line in lines)
    return np.concatenate(
        [np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    )


def encode_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The RGB image as a PNG file."""
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def _pairs(row: Row) -> list[tuple[np.ndarray, tuple[str, str]]]:
    return list(zip(row.cells, row.captions, strict=True))


def _cell(image: UInt8[np.ndarray, "h w 3"], caption: tuple[str, str]) -> UInt8[np.ndarray, "r c 3"]:
    scale = CELL / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    cell = np.full((CELL + CAPTION, CELL + 4, 3), 255, np.uint8)
    cell[CAPTION : CAPTION + size[1], 2 : 2 + size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for line, text in enumerate(caption):
        cv2.putText(cell, text[:30], (3, 12 + 13 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return cell


def _with_click(image: UInt8[np.ndarray, "h w 3"], click_xy: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    marked = image.copy()
    size = max(round(max(image.shape[:2]) / 16), 5)
    cv2.drawMarker(marked, click_xy, CLICK_COLOUR, cv2.MARKER_CROSS, size, max(size // 8, 1))
    return marked


def _with_mask(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    # What is outside the mask is dimmed, what is inside tinted: both a thin and a huge mask can be seen.
    dimmed = image * 0.35 + 90
    tinted = image * 0.55 + MASK_COLOUR * 0.45
    return np.where(mask[:, :, None], tinted, dimmed).astype(np.uint8)


def _caption(answer: Answer, level: int, objects: Sequence[str], parts: Sequence[str]) -> tuple[str, str]:
    names = [_best(objects, answer.object_scores[0, level]), _best(parts, answer.part_scores[0, level])]
    return f"{level + 1}: IoU {answer.iou_predictions[0, level]:.2f}", ", ".join(name for name in names if name)


def _best(names: Sequence[str], scores: np.ndarray) -> str:
    if not names:
        return ""
    best = int(np.argmax(scores))
    return f"{names[best]} {scores[best]:.2f}"
