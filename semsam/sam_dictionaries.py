"""SAM's forms of things: its automatic masks as dictionaries, and its frame, a square of a fixed side.

In SAM (arXiv 2304.02643) an image is enlarged or shrunk until its long side is that of the square, which the rest of
the image then fills at the top left.  Prompts of `predict_torch` are in the pixels of a square of 1024, low-resolution
logits in those of one of 256.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from semsam.automatic_masks import ImageMasks
from semsam.data import rle
from semsam.encoded_image import EncodedImage

SQUARE, LOW_SQUARE = 1024, 256
PADDING_LOGIT = -20.0  # Of low-resolution logits outside of the image: no mask is there.

OutputMode = Literal["binary_mask", "uncompressed_rle", "coco_rle"]


class ResizeLongestSide:
    """From an image's pixels to those of the square, under the names that SAM's users call."""

    def __init__(self, target_length: int = SQUARE) -> None:
        self.target_length = target_length

    def apply_image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
        """The image with its long side as long as the square's."""
        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

    def apply_coords(
        self, coords: Float[np.ndarray, "*n 2"], original_size: tuple[int, ...]
    ) -> Float[np.ndarray, "*n 2"]:
        """Places in the square for (x, y) in an image of that height and width."""
        return np.asarray(coords, np.float64) * self._scale_xy(original_size)

    def apply_boxes(self, boxes: Float[np.ndarray, "*n 4"], original_size: tuple[int, ...]) -> Float[np.ndarray, "n 4"]:
        """Boxes in the square for (x1, y1, x2, y2)."""
        return self.apply_coords(np.asarray(boxes).reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def apply_coords_torch(
        self, coords: Float[Tensor, "*n 2"], original_size: tuple[int, ...]
    ) -> Float[Tensor, "*n 2"]:
        """As `apply_coords`."""
        return coords.to(torch.float) * torch.tensor(self._scale_xy(original_size)).to(coords.device, torch.float)

    def apply_boxes_torch(self, boxes: Float[Tensor, "*n 4"], original_size: tuple[int, ...]) -> Float[Tensor, "n 4"]:
        """As `apply_boxes`."""
        return self.apply_coords_torch(boxes.reshape(-1, 2, 2), original_size).reshape(-1, 4)

    def back(self, coords: Float[np.ndarray, "*n 2"], original_size: tuple[int, ...]) -> Float[np.ndarray, "*n 2"]:
        """Places in the image for those in the square."""
        return coords / self._scale_xy(original_size)

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> tuple[int, int]:
        """Height and width of the image in the square, at least one pixel each."""
        scale = long_side_length / max(oldh, oldw)
        return max(int(oldh * scale + 0.5), 1), max(int(oldw * scale + 0.5), 1)

    def _scale_xy(self, original_size: tuple[int, ...]) -> Float[np.ndarray, " 2"]:
        height, width = original_size[:2]
        new_height, new_width = self.get_preprocess_shape(height, width, self.target_length)
        return np.array([new_width / width, new_height / height])


def low_resolution(image: EncodedImage, embeddings: Float[Tensor, "m c"]) -> Float[Tensor, "m 256 256"]:
    """Masks before the sigmoid in the small square."""
    height, width = low_size(image)
    logits = image.mask_logits(embeddings)
    small = F.interpolate(logits[:, None], (height, width), mode="bilinear", antialias=True)[:, 0]
    return F.pad(small, (0, LOW_SQUARE - width, 0, LOW_SQUARE - height), value=PADDING_LOGIT)


def low_size(image: EncodedImage) -> tuple[int, int]:
    """Height and width of the image in the small square."""
    return ResizeLongestSide.get_preprocess_shape(*image.size, LOW_SQUARE)


def dictionaries(found: ImageMasks, output_mode: OutputMode) -> list[dict[str, Any]]:
    """A dictionary for each mask, the best predicted IoU first.

    `segmentation` is the mask itself (`binary_mask`: h x w, bool) or its run lengths as COCO has them
    (`uncompressed_rle`: a list of numbers, `coco_rle`: a string), `bbox` the tight (x, y, width, height) in pixel
    edges, as COCO's: SAM's own are a pixel less wide and high.  `crop_box` is always the whole image.  With a
    vocabulary there are `object_name`, `object_score`, `part_name` and `part_score`, too.
    """
    return [_dictionary(found, place, output_mode) for place in range(len(found))]


def _dictionary(found: ImageMasks, place: int, output_mode: OutputMode) -> dict[str, Any]:
    x1, y1, x2, y2 = found.boxes_xyxy[place].tolist()
    names: dict[str, Any] = {}
    if found.object_names[place] is not None:
        names |= {"object_name": found.object_names[place], "object_score": float(found.object_scores[place])}
    if found.part_names[place] is not None:
        names |= {"part_name": found.part_names[place], "part_score": float(found.part_scores[place])}
    return {
        "segmentation": _segmentation(found, place, output_mode),
        "area": int(found.areas[place]),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "predicted_iou": float(found.iou_predictions[place]),
        "point_coords": [found.points_xy[place].tolist()],
        "stability_score": float(found.stability_scores[place]),
        "crop_box": [0, 0, found.width, found.height],
        **names,
    }


def _segmentation(found: ImageMasks, place: int, output_mode: OutputMode) -> np.ndarray | dict[str, Any]:
    counts = found.rles[place]
    if output_mode == "binary_mask":
        return rle.decode(counts, found.height, found.width)
    shown = counts.decode() if output_mode == "coco_rle" else rle.decode_counts(counts).tolist()
    return {"size": [found.height, found.width], "counts": shown}
