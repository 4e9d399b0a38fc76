"""Run lengths of masks that lie on the model's device, whole or some columns at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from semsam.data import rle


class RunLengths:
    """The COCO strings of `num_masks` masks, of which some columns come at a time, from left to right."""

    def __init__(self, num_masks: int) -> None:
        self._num_masks = num_masks
        self._size = 0  # Of each mask, as far as it has come.
        self._last: Bool[Tensor, "m 1"] | None = None
        # Which masks change at which pixels, column by column; nothing to begin with.
        self._masks: list[Int64[np.ndarray, " r"]] = [np.zeros(0, np.int64)]
        self._places: list[Int64[np.ndarray, " r"]] = [np.zeros(0, np.int64)]

    def add(self, columns: Bool[Tensor, "m w h"]) -> None:
        """Take the next columns; only the places where a mask changes are copied to the host."""
        pixels = columns.flatten(1)
        if not pixels.numel():
            return
        last = pixels.new_zeros(len(pixels), 1) if self._last is None else self._last
        changes = torch.cat([pixels[:, :1] != last, pixels[:, 1:] != pixels[:, :-1]], dim=1)
        mask, place = torch.nonzero(changes).cpu().numpy().T
        self._masks.append(mask)
        self._places.append(place + self._size)
        self._last = pixels[:, -1:].clone()
        self._size += pixels.shape[1]

    def encoded(self) -> list[bytes]:
        """The strings of all masks."""
        mask, place = np.concatenate(self._masks), np.concatenate(self._places)
        order = np.argsort(mask, kind="stable")
        starts = np.searchsorted(mask[order], np.arange(self._num_masks + 1))
        return [_encode(place[order[start:end]], self._size) for start, end in pairwise(starts.tolist())]


def encode_masks(masks: Bool[Tensor, "m h w"]) -> list[bytes]:
    """The COCO strings of dense masks."""
    if masks.device.type == "cpu":
        return [rle.encode(mask) for mask in masks.numpy()]
    return encode_on_device(masks)


def encode_on_device(masks: Bool[Tensor, "m h w"]) -> list[bytes]:
    """As `encode_masks`; only the places where a mask changes are copied to the host."""
    runs = RunLengths(len(masks))
    runs.add(masks.transpose(1, 2))
    return runs.encoded()


def encode_labels(labels: Int[np.ndarray, "w h"], num_labels: int) -> list[bytes]:
    """The COCO strings of the masks of labels 0 to `num_labels` - 1 in a map that lies column by column."""
    pixels = labels.reshape(-1)
    edges = rle.group_edges(pixels)
    label = pixels[edges[:-1]]
    order = np.argsort(label, kind="stable")
    starts = np.searchsorted(label[order], np.arange(num_labels + 1))
    runs = np.stack([edges[:-1], edges[1:]], axis=1)[order]
    return [_encode(runs[start:end].reshape(-1), len(pixels)) for start, end in pairwise(starts.tolist())]


def mask_areas(masks: Bool[Tensor, "m h w"]) -> Int64[Tensor, " m"]:
    """How many pixels each mask covers."""
    if masks.device.type == "cpu":  # Numpy counts six times as fast as torch sums.
        return torch.tensor([np.count_nonzero(mask) for mask in masks.numpy()], dtype=torch.int64)
    return masks.sum(dim=(1, 2))


def _encode(toggles: Int64[np.ndarray, " r"], size: int) -> bytes:
    """The string of ascending toggles, the last of which may lie past the last pixel."""
    return rle.encode_counts(np.diff(toggles[toggles < size], prepend=0, append=size))
