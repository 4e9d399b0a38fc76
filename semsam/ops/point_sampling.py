"""Values at points: of predicted maps, and of ground truth kept as label maps.

Points are (x, y) in the coordinates of `grid_sample`: -1 and 1 are a map's outer edges, so that one set of points reads
maps of any resolution.  Everything is bilinear with zeros outside, as `grid_sample(align_corners=False)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor


def sample_maps(maps: Float[Tensor, "m h w"], points: Float[Tensor, "m p 2"]) -> Float[Tensor, "m p"]:
    """The value of each map at its own points."""
    return F.grid_sample(maps[:, None], points[:, None], align_corners=False)[:, 0, 0]


def sample_maps_backward(
    gradient: Float[Tensor, "m p"], points: Float[Tensor, "m p 2"], shape: tuple[int, int]
) -> Float[Tensor, "m h w"]:
    """The gradient of `sample_maps` with respect to its maps, which need not be kept for it."""
    maps = gradient.new_empty((len(gradient), 1, *shape))  # Read for the gradient of the points, which is not asked.
    bilinear, zeros = 0, 0
    found: Tensor = torch.ops.aten.grid_sampler_2d_backward(
        gradient[:, None, None], maps, points[:, None], bilinear, zeros, False, [True, False]
    )[0]
    return found[:, 0]


def sample_features(features: Float[Tensor, "b c h w"], points: Float[Tensor, "b p 2"]) -> Float[Tensor, "b c p"]:
    """All channels of an image at the points of that image."""
    return F.grid_sample(features, points[:, None], align_corners=False)[:, :, 0]


def most_uncertain(logits: Float[Tensor, "m c"], count: int) -> Int64[Tensor, "m count"]:
    """Positions of the `count` logits nearest to zero of each row, in no particular order."""
    distance = logits.abs()
    if distance.device.type == "cpu" and 0 < count < distance.shape[1]:
        # torch's topk takes more than twice as long on a CPU.
        return torch.from_numpy(np.argpartition(distance.numpy(), count - 1, axis=1)[:, :count].copy())
    return distance.topk(count, dim=1, largest=False, sorted=False).indices


@dataclass(frozen=True)
class LabelMaps:
    """Label maps made ready for bilinear look-ups: two neighbours per entry, and a border of label 0 (no mask).

    The entry at (y + 1, x + 1) holds the label of pixel (y, x) in its lower half and that of (y, x + 1) in its upper.
    A point thus costs two random reads, one per row, whatever number of masks it is compared with.
    """

    entries: Int64[Tensor, "b entries"]
    height: int
    width: int

    @staticmethod
    def of(labels: Int32[Tensor, "b h w"]) -> LabelMaps:
        """The maps of labels as `AtomMap` has them."""
        bordered = F.pad(labels.long(), (1, 1, 1, 1))
        entries = bordered[:, :, :-1] | (bordered[:, :, 1:] << 32)
        return LabelMaps(entries.flatten(1), *labels.shape[1:])

    def image(self, number: int) -> Int64[Tensor, "h w"]:
        """The labels of one image's pixels."""
        entries = self.entries[number].view(self.height + 2, self.width + 1)
        return entries[1:-1, 1:] & 0xFFFFFFFF

    def corners(
        self, image: Int64[Tensor, " m"], points: Float[Tensor, "m p 2"]
    ) -> list[tuple[Int64[Tensor, "m p"], Float[Tensor, "m p"]]]:
        """The four pixels around each point: their labels and their weights.

        Positions are computed in float32, exact for maps below 2**24 pixels.
        """
        # Clamped to the border, where whatever has a weight is label 0: what lies beyond is zero as well.
        x = _to_pixels(points[..., 0], self.width).clamp_(-1, self.width)
        y = _to_pixels(points[..., 1], self.height).clamp_(-1, self.height)
        column, row = x.floor().clamp_(max=self.width - 1), y.floor().clamp_(max=self.height - 1)
        right, down = x.sub_(column), y.sub_(row)
        row_length = self.width + 1
        position = row.mul_(row_length).add_(column).add_(row_length + 1).long()
        position.add_(image[:, None] * self.entries.shape[1])
        flat = self.entries.flatten()
        found = []
        for offset, weight in ((0, 1 - down), (row_length, down)):
            pair = flat[offset:].index_select(0, position.flatten()).view(position.shape)
            of_right = weight * right
            found += [(pair & 0xFFFFFFFF, weight - of_right), (pair >> 32, of_right)]
        return found


def region_values(
    labels: LabelMaps, image: Int64[Tensor, " m"], columns: Float[Tensor, "m a"], points: Float[Tensor, "m p 2"]
) -> Float[Tensor, "m p"]:
    """Each region's mask at that region's own points; `columns[j]` is 1 for the labels that region `j` covers.

    Equals `sample_maps` of the dense masks.
    """
    total = torch.zeros(points.shape[:2], device=points.device)
    for label, weight in labels.corners(image, points):
        total.addcmul_(columns.gather(1, label), weight)
    return total


def all_region_values(
    labels: LabelMaps, tables: Float[Tensor, "b a m"], points: Float[Tensor, "b p 2"]
) -> Float[Tensor, "b p m"]:
    """Every region's mask at points that all of an image share; `tables[i, label, j]` is 1 where j covers it."""
    b, num_labels, num_regions = tables.shape
    image = torch.arange(b, device=points.device)
    total = torch.zeros((points[..., 0].numel(), num_regions), device=points.device)
    for label, weight in labels.corners(image, points):
        rows = (label + image[:, None] * num_labels).flatten()
        total.addcmul_(tables.flatten(0, 1).index_select(0, rows), weight.flatten()[:, None])
    return total.view(b, -1, num_regions)


def _to_pixels(coordinate: Float[Tensor, "m p"], size: int) -> Float[Tensor, "m p"]:
    """Pixel coordinates, 0 being the centre of the first pixel."""
    return (coordinate + 1).mul_(size / 2).sub_(0.5)
