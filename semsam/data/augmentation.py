"""Large-scale jitter: flip, resize, crop and pad, once for the image and once, as index tables, for the labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float, Int64, UInt8

from semsam.config import Positive, PositiveFloat, Share, settings
from semsam.data.images import Bytes, decode_jpeg_eighths, jpeg_size

PADDING_GREY = 128
_EIGHTHS = (1, 2, 3, 4, 6, 8)

# Samples are made side by side by the reader's threads; OpenCV's own pool would only fight with them for the cores.
cv2.setNumThreads(1)


@settings
class AugmentationSettings:
    """Scales are relative to the size at which the whole image just fits into the crop."""

    crop_size: Positive = 1024
    scale_min: PositiveFloat = 0.1
    scale_max: PositiveFloat = 2.0
    # Smallest and largest scale of single datasets.  SA-1B's masks go down to a few pixels: its images keep their size.
    scales: dict[str, tuple[PositiveFloat, PositiveFloat]] = field(default_factory=lambda: {"sa1b": (0.99, 1.01)})
    flip_probability: Share = 0.5

    def __post_init__(self) -> None:
        for low, high in ((self.scale_min, self.scale_max), *self.scales.values()):
            if low > high:
                raise ValueError(f"scales must hold minimum <= maximum, not {low} and {high}")

    def scale_range(self, dataset: str) -> tuple[float, float]:
        """The smallest and the largest scale for samples of this dataset."""
        return self.scales.get(dataset, (self.scale_min, self.scale_max))


@dataclass(frozen=True)
class Geometry:
    """A view of an image: a window of it, resized, mirrored or not, and padded at the bottom and right to a square.

    The image is first reduced to `eighths` / 8 of its size, as the JPEG decoder can; `top`, `left`, `window_height` and
    `window_width` are whole pixels of that.  Because the window is whole, image and labels need no rounding to agree:
    edge i of the `visible_height` rows is edge top + i * window_height / visible_height of the reduced image.
    """

    height: int  # Of the source.
    width: int
    eighths: int
    top: int
    left: int
    window_height: int
    window_width: int
    visible_height: int  # Of the window after resizing; the rest of the crop is padding.
    visible_width: int
    flip: bool
    crop_size: int

    def rows(self) -> Int64[np.ndarray, " y"]:
        """The source row under the centre of each of the crop's rows, -1 for padding."""
        return self._padded(_source(self.top, self.window_height, self.visible_height, self.eighths))

    def cols(self) -> Int64[np.ndarray, " x"]:
        """The source column under the centre of each of the crop's columns, -1 for padding."""
        cols = _source(self.left, self.window_width, self.visible_width, self.eighths)
        return self._padded(cols[::-1] if self.flip else cols)

    def boxes_xyxy(self, boxes: Float[np.ndarray, "m 4"]) -> Float[np.ndarray, "m 4"]:
        """Source boxes in the crop's pixels, cut at what the crop shows; one that is outside has no width or height."""
        reduced = boxes.astype(np.float64) * (self.eighths / 8)
        x = (reduced[:, 0::2] - self.left) * (self.visible_width / self.window_width)
        y = (reduced[:, 1::2] - self.top) * (self.visible_height / self.window_height)
        if self.flip:
            x = self.visible_width - x[:, ::-1]
        x, y = x.clip(0, self.visible_width), y.clip(0, self.visible_height)
        return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)

    def view_jpeg(self, data: Bytes, out: UInt8[np.ndarray, "3 s s"] | None = None) -> UInt8[np.ndarray, "3 s s"]:
        """The crop of a JPEG, which is decoded no larger than this view needs; written to `out` if it is given.

        Raises `ValueError` for a broken JPEG and for one of another size.
        """
        height, width = jpeg_size(data)
        if (height, width) != (self.height, self.width):
            raise ValueError(f"the JPEG has {height} x {width} pixels, its record says {self.height} x {self.width}")
        return self.view(decode_jpeg_eighths(data, self.eighths), out)

    def view(
        self, reduced: UInt8[np.ndarray, "h w 3"], out: UInt8[np.ndarray, "3 s s"] | None = None
    ) -> UInt8[np.ndarray, "3 s s"]:
        """The crop of the reduced image; written to `out` if it is given."""
        rows, cols = slice(self.top, self.top + self.window_height), slice(self.left, self.left + self.window_width)
        step = self.window_width / self.visible_width
        # Beyond this, bilinear look-ups skip pixels and show patterns that are not there.
        interpolation = cv2.INTER_AREA if step > 1.5 else cv2.INTER_LINEAR
        visible = cv2.resize(
            reduced[rows, cols], (self.visible_width, self.visible_height), interpolation=interpolation
        )
        crop = np.empty((3, self.crop_size, self.crop_size), np.uint8) if out is None else out
        crop[:, self.visible_height :] = PADDING_GREY
        crop[:, : self.visible_height, self.visible_width :] = PADDING_GREY
        planes = list(crop[:, : self.visible_height, : self.visible_width])
        cv2.split(visible, planes)
        if self.flip:
            for plane in planes:
                cv2.flip(plane, 1, plane)
        return crop

    def _padded(self, indices: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " s"]:
        padded = np.full(self.crop_size, -1, np.int64)
        padded[: len(indices)] = indices
        return padded


def random_geometry(
    height: int, width: int, scale_range: tuple[float, float], settings: AugmentationSettings, rng: np.random.Generator
) -> Geometry:
    """A random view of an image of this size; what does not fit into the crop is cut at a random place."""
    drawn_scale, drawn_flip, drawn_top, drawn_left = rng.random(4)
    low, high = scale_range
    scale = (low + (high - low) * float(drawn_scale)) * settings.crop_size / max(height, width)
    eighths = _eighths(height, width, scale)
    top, window_height, visible_height = _window(height, scale, eighths, settings.crop_size, float(drawn_top))
    left, window_width, visible_width = _window(width, scale, eighths, settings.crop_size, float(drawn_left))
    flip = bool(drawn_flip < settings.flip_probability)
    return Geometry(
        height, width, eighths, top, left, window_height, window_width, visible_height, visible_width, flip,
        settings.crop_size,
    )  # fmt: skip


def _eighths(height: int, width: int, scale: float) -> int:
    """The smallest reduction that leaves at least the pixels that are needed.

    Five and seven are left out: the decoder takes longer over them than over the whole image.
    """
    if min(height, width) < 16:  # A few pixels have one size at several reductions, and cost nothing.
        return 8
    return next((n for n in _EIGHTHS if n / 8 >= scale), 8)


def _window(size: int, scale: float, eighths: int, crop_size: int, drawn: float) -> tuple[int, int, int]:
    """Start and length of the window along one axis of the reduced image, and its length in the crop.

    The last pixel of a reduced image that covers less than a whole pixel's share of the source is never in the window.
    """
    reduced = size * eighths // 8
    new_size = max(1, int(size * scale + 0.5))
    if new_size <= crop_size:
        return 0, reduced, new_size
    window = min(reduced, max(1, int(crop_size / scale * eighths / 8 + 0.5)))
    return int(drawn * (reduced - window + 1)), window, crop_size


def _source(start: int, window: int, visible: int, eighths: int) -> Int64[np.ndarray, " n"]:
    """The source pixels under the centres of a resized window's pixels."""
    # Pixel i has its centre at start + (i + 1/2) * window / visible of the reduced image: 8 / eighths of that here.
    centres = start * 2 * visible + (2 * np.arange(visible) + 1) * window
    return centres * 8 // (2 * visible * eighths)
