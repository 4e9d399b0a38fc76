"""Values at points: of predicted maps, and of ground truth kept as label maps.

A point is (x, y) in fractions of the map, 0 and 1 being its outer edges, so that one set of points reads maps of any
resolution.  Bilinear with zeros outside, as `grid_sample(align_corners=False)`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor


def sample_maps(maps: Float[Tensor, "m h w"], points: Float[Tensor, "m p 2"]) -> Float[Tensor, "m p"]:
    """The value of each map at its own points."""
    return F.grid_sample(maps[:, None], (points * 2 - 1)[:, None], align_corners=False)[:, 0, 0]


def sample_maps_backward(
    gradient: Float[Tensor, "m p"], points: Float[Tensor, "m p 2"], shape: tuple[int, int]
) -> Float[Tensor, "m h w"]:
    """The gradient of `sample_maps` with respect to its maps, which need not be kept for it."""
    maps = gradient.new_empty(
        (len(gradient), 1, *shape)
    )  # Read for the gradient of the points only, which is not asked.
    grid = (points * 2 - 1)[:, None]
    bilinear, zeros = 0, 0
    found: Tensor = torch.ops.aten.grid_sampler_2d_backward(
        gradient[:, None, None], maps, grid, bilinear, zeros, False, [True, False]
    )[0]
    return found[:, 0]


def sample_features(features: Float[Tensor, "b c h w"], points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b c p"]:
    """All channels of an image at the points of that image."""
    return F.grid_sample(features, (points * 2 - 1)[:, None], align_corners=False)[:, :, 0]


def most_uncertain(logits: Float[Tensor, "m c"], count: int) -> Int64[Tensor, "m count"]:
    """Positions of the `count` logits nearest to zero of each row, in no particular order."""
    distance = logits.abs()
    if distance.device.type == "cpu" and 0 < count < distance.shape[1]:
        # torch's topk takes more than twice as long on a CPU.
        return torch.from_numpy(np.argpartition(distance.numpy(), count - 1, axis=1)[:, :count].copy())
    return distance.topk(count, dim=1, largest=False, sorted=False).indices


def border(labels: Int32[Tensor, "*b h w"]) -> Int32[Tensor, "*b h+2 w+2"]:
    """The label maps with one pixel of label 0 (covered by no mask) around them, as the look-ups below take them."""
    return F.pad(labels, (1, 1, 1, 1))


def region_values(
    bordered: Int32[Tensor, "h+2 w+2"],
    columns: Float[Tensor, "m a"],
    points: Float[Tensor, "m p 2"],
    nearest: bool = False,
) -> Float[Tensor, "m p"]:
    """Each region's mask at that region's own points; `columns[j]` is 1 for the labels that region `j` covers.

    Equals `sample_maps` of the dense masks.  `nearest` reads the pixel that the point lies in, one look-up for four.
    """
    first, corners = _corners(bordered, points, nearest)
    flat = bordered.flatten()
    total = torch.zeros(points.shape[:-1], device=points.device)
    for offset, weight in corners:
        label = flat[offset:].index_select(0, first.flatten()).view(first.shape).long()
        total.addcmul_(columns.gather(1, label), weight)
    return total


def all_region_values(
    bordered: Int32[Tensor, "h+2 w+2"], table: Float[Tensor, "a m"], points: Float[Tensor, "p 2"], nearest: bool = False
) -> Float[Tensor, "p m"]:
    """Every region's mask at points that all share; `table[label, j]` is 1 where region `j` covers the label."""
    first, corners = _corners(bordered, points, nearest)
    flat = bordered.flatten()
    total = torch.zeros((len(points), table.shape[1]), device=points.device)
    for offset, weight in corners:
        label = flat[offset:].index_select(0, first)
        total.addcmul_(table.index_select(0, label), weight[:, None])
    return total


def _corners(
    bordered: Int32[Tensor, "h+2 w+2"], points: Float[Tensor, "*m p 2"], nearest: bool
) -> tuple[Int64[Tensor, "*m p"], list[tuple[int, Float[Tensor, "*m p"]]]]:
    """Where to look in the flattened map: one position per point, and offsets from there with their weights.

    One position and four offsets rather than four positions: the map is read through four shifted views.  Positions
    are computed in float32, exact for maps below 2**24 pixels.
    """
    height, width = bordered.shape[-2] - 2, bordered.shape[-1] - 2
    x, y = points[..., 0] * width, points[..., 1] * height
    if nearest:
        column, row = x.floor().clamp_(-1, width), y.floor().clamp_(-1, height)
        return row.add_(1).mul_(width + 2).add_(column).add_(1).long(), [(0, torch.ones_like(x))]
    # Clamped to the border, where every corner with a weight is label 0: what lies beyond is zero as well.
    x, y = x.sub_(0.5).clamp_(-1, width), y.sub_(0.5).clamp_(-1, height)
    column, row = x.floor().clamp_(max=width - 1), y.floor().clamp_(max=height - 1)
    right, down = x.sub_(column), y.sub_(row)
    position = row.add_(1).mul_(width + 2).add_(column).add_(1).long()
    left, up = 1 - right, 1 - down
    return position, [(0, up * left), (1, up * right), (width + 2, down * left), (width + 3, down * right)]
