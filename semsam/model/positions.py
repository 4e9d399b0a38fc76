"""Places as numbers a network can use: sine embeddings of pixels and boxes, and logits of box coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

TEMPERATURE = 10_000  # The longest wavelength, in units of the shortest.
EPSILON = 1e-5


def sine_embedding(values: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*n {dim}"]:
    """Sines and cosines, interleaved, of values in [0, 1] at `dim / 2` wavelengths from 1 upwards."""
    index = torch.arange(dim // 2, dtype=torch.float32, device=values.device)
    angles = values.float()[..., None] * (2 * math.pi) / TEMPERATURE ** (2 * index / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def pixel_embedding(height: int, width: int, dim: int, device: torch.device) -> Float[Tensor, "s c"]:
    """The embedding of every pixel of a map, row by row: half of the channels say y, half x."""
    rows = sine_embedding(torch.arange(1, height + 1, device=device) / (height + 1e-6), dim // 2)
    columns = sine_embedding(torch.arange(1, width + 1, device=device) / (width + 1e-6), dim // 2)
    return torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1).flatten(0, 1)


def box_embedding(boxes_cxcywh: Float[Tensor, "*q 4"], dim: int) -> Float[Tensor, "*q {4*dim}"]:
    """The embeddings of y, x, width and height, in this order, `dim` channels each."""
    x, y, width, height = boxes_cxcywh.unbind(-1)
    return torch.cat([sine_embedding(value, dim) for value in (y, x, width, height)], dim=-1)


def pixel_centres(shapes: Sequence[tuple[int, int]], device: torch.device) -> Float[Tensor, "s 2"]:
    """The centre (x, y) of every pixel of every map, row by row, in fractions of its map."""
    centres = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centres.append(torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1))
    return torch.cat(centres)


def inverse_sigmoid(values: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The logits of values in [0, 1], kept within +-11.5 so that an edge of the image stays finite."""
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=EPSILON) / (1 - values).clamp(min=EPSILON))
