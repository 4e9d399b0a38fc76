"""An image after the network has seen it: where prompts lie on it, and how its masks come back to its own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from semsam.data.prompts import CLICK_RADIUS
from semsam.model.pixel_decoder import ImageFeatures
from semsam.ops.boxes import cxcywh_to_xyxy

MAP_BYTES = 2**26  # Of the soft masks that exist at once, in float32.

# Rows of coordinates in the image's pixels: (x, y) of clicks, (x1, y1, x2, y2) of boxes.
Prompts = np.ndarray | Sequence[Sequence[float]] | None


@dataclass(frozen=True)
class EncodedImage:
    """An image's features, from which any number of prompts is answered."""

    features: ImageFeatures  # Of one image.
    size: tuple[int, int]  # Height and width of the image itself,
    input_size: tuple[int, int]  # and of the network's input, before padding.

    def masks_at_once(self) -> int:
        """How many soft masks may be made in one go."""
        sizes = (self.size, self.input_size, self.features.padded_size)
        return max(MAP_BYTES // (4 * max(height * width for height, width in sizes)), 1)

    def small_mask_logits(self, embeddings: Float[Tensor, "m c"]) -> Float[Tensor, "m y x"]:
        """Masks before the sigmoid, as large as the mask features: a fourth of the padded input."""
        return torch.einsum("mc,chw->mhw", embeddings, self.features.mask_features[0]).float()

    def mask_logits(self, embeddings: Float[Tensor, "m c"]) -> Float[Tensor, "m y x"]:
        """Masks before the sigmoid, at the size of the network's input."""
        height, width = self.input_size
        return _enlarge(self.small_mask_logits(embeddings), self.features.padded_size)[:, :height, :width]

    def enlarging(self) -> tuple[Float[Tensor, "h y"], Float[Tensor, "w x"]]:
        """Weights of the mask features' rows for each row of the image, and of their columns for each of its columns.

        Enlarging is linear and works on rows and columns apart: `rows @ small @ columns.T` of `small_mask_logits` is
        `at_own_size` of `mask_logits`, but for rounding.  A row has at most three weights that are not 0, which are
        neighbours and add up to 1.
        """
        shape = self.features.mask_features.shape[2:]
        weights = []
        for axis, count in enumerate(shape):
            lines = torch.eye(count)[:, :, None]  # Each row alone, of a map that is one pixel wide.
            enlarged = _enlarge(lines, (self.features.padded_size[axis], 1))[:, : self.input_size[axis]]
            weights.append(_enlarge(enlarged, (self.size[axis], 1))[:, :, 0].T)
        return weights[0], weights[1]

    def at_own_size(self, logits: Float[Tensor, "m y x"]) -> Float[Tensor, "m h w"]:
        """Masks of the network's input at the image's own size: the second of two steps, as the released model's."""
        return logits if self.input_size == self.size else _enlarge(logits, self.size)

    def own_boxes(self, boxes_cxcywh: Float[Tensor, "*m 4"]) -> Float[Tensor, "*m 4"]:
        """The corners of predicted boxes in the image's pixels, cut at its edge."""
        # Boxes are relative to the padded input, and the image fills only `input_size` of it.
        height, width = self.size
        scale = [p / i * s for p, i, s in zip(self.features.padded_size, self.input_size, self.size, strict=True)]
        boxes = cxcywh_to_xyxy(boxes_cxcywh)
        boxes = boxes * boxes.new_tensor([scale[1], scale[0]] * 2)
        return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))

    def bands(self, embeddings: Float[Tensor, "m c"], num_maps: int) -> Iterator[Float[Tensor, "m x h"]]:
        """The same masks at the image's own size, a band of columns at a time from left to right.

        So all masks are there for each pixel, and none of them whole: a band of `num_maps` maps takes what
        `masks_at_once` allows.  Columns come before rows, as in COCO's run lengths.
        """
        width = max(self.size[1] * self.masks_at_once() // max(num_maps, 1), 1)
        for start in range(0, self.size[1], width):
            yield self._band(embeddings, start, min(start + width, self.size[1]))

    def _band(self, embeddings: Float[Tensor, "m c"], start: int, stop: int) -> Float[Tensor, "m x h"]:
        features = self.features.mask_features[0]
        stride = self.features.padded_size[1] // features.shape[2]
        low, high, weight = _neighbours(start, stop, self.size[1], self.input_size[1])
        # With a column more on either side the enlarged band is what the enlarged whole has there.
        first, last = max(int(low[0]) // stride - 1, 0), int(high[-1]) // stride + 2
        logits = torch.einsum("mc,chw->mwh", embeddings, features[:, :, first:last]).float()
        logits = _enlarge(logits, (logits.shape[1] * stride, self.features.padded_size[0]))[..., : self.input_size[0]]
        low, high = low - first * stride, high - first * stride
        if self.input_size == self.size:
            return logits[:, int(low[0]) : int(low[-1]) + 1]
        device = logits.device
        columns = torch.lerp(logits[:, low.to(device)], logits[:, high.to(device)], weight.to(device)[:, None])
        return _enlarge(columns, (stop - start, self.size[0]))


def prompt_boxes(
    points_xy: Prompts,
    boxes_xyxy: Prompts,
    image: EncodedImage,
    click_side: float | None,
) -> tuple[Float[Tensor, "p 4"], Bool[Tensor, " p"]]:
    """The prompts as boxes (centre and size, relative to the padded input), and which of them were boxes before.

    A click becomes a box of `click_side` times the image's width and height; None: of +-`CLICK_RADIUS` pixels of the
    network's input.  Boxes are cut at the image's edge.  Raises `ValueError` naming the first prompt outside it.
    """
    points, boxes = _rows(points_xy, 2, "clicks"), _rows(boxes_xyxy, 4, "boxes")
    size_xy, input_xy = np.array(image.size[::-1], float), np.array(image.input_size[::-1], float)
    inside = ((points >= 0) & (points < size_xy)).all(axis=1)
    shown = f"outside the image of {image.size[1]} x {image.size[0]} pixels"
    if not inside.all():
        x, y = points[~inside][0]
        raise ValueError(f"click ({x:g}, {y:g}) is {shown}")
    low, high = boxes[:, :2], boxes[:, 2:]
    for fault, found in (
        ("has no area", ~(low < high).all(axis=1)),
        (f"is {shown}", ~((low < size_xy) & (high > 0)).all(axis=1)),
    ):
        if found.any():
            raise ValueError(f"box {boxes[found][0].tolist()} {fault}")
    low, high = low.clip(0, size_xy), high.clip(0, size_xy)
    # In pixels of the network's input.
    scale = input_xy / size_xy
    click_sides = 2.0 * CLICK_RADIUS if click_side is None else click_side * input_xy
    centres = np.concatenate([points, (low + high) / 2]) * scale
    sides = np.concatenate([np.broadcast_to(click_sides, points.shape), (high - low) * scale])
    padded_xy = np.array(image.features.padded_size[::-1])
    relative = np.concatenate([centres, sides], axis=1) / np.tile(padded_xy, 2)
    return torch.from_numpy(relative).float(), torch.arange(len(centres)) >= len(points)


def _rows(values: Prompts, columns: int, what: str) -> np.ndarray:
    rows = np.asarray([] if values is None else values, np.float64)
    if rows.size == 0:
        return np.zeros((0, columns))
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(f"{what} are rows of {columns} numbers, not an array of {list(rows.shape)}")
    return rows


def _neighbours(
    start: int, stop: int, size: int, source_size: int
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float[Tensor, " n"]]:
    """Between which pixels of an axis those from `start` to `stop` of the resized axis lie, and how near the second."""
    # In float32, as bilinear interpolation finds them.
    places = (torch.arange(start, stop) + 0.5) * torch.tensor(source_size / size) - 0.5
    low = places.clamp(min=0).floor()
    return low.long(), (low.long() + 1).clamp(max=source_size - 1), places.clamp(min=0) - low


def _enlarge(logits: Float[Tensor, "m h w"], size: tuple[int, int]) -> Float[Tensor, "m y x"]:
    if not len(logits):
        return logits.new_zeros(0, *size)
    # One channel each: as channels of one image they would take a CPU 1.6 times as long.
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
