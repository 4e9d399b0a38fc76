"""Where masks are compared: random points that depend on the sample and the layer, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from semsam.data.randomness import random_key

# Layers of the branches in the random keys: a branch never sees another's points.
GENERIC_LAYERS = 1_000
PROPOSAL_LAYERS = 2_000
DENOISING_LAYERS = 3_000


class Draw(Protocol):
    """A stream of uniform points, the same however many pairs draw at once."""

    def __call__(self, pairs: int, points: int) -> Float[Tensor, "pairs points 2"]:
        """The next points, uniform between -1 and 1 (the coordinates of `semsam.ops.point_sampling`)."""
        ...


class PointSource(Protocol):
    """Gives the points of every image; tests hand in recorded ones."""

    def matcher(self, sample: int, count: int) -> Float[Tensor, "count 2"]:
        """The points at which all predictions and all masks of one image are compared for matching."""
        ...

    def losses(self, sample: int, layer: int) -> Draw:
        """The stream of points for the matched pairs of one image and layer."""
        ...


class KeyedPoints:
    """Points keyed by (seed, global sample index, purpose, layer), drawn where they are used.

    The numbers differ between kinds of device (copying gigabytes of them from the host would cost more than the loss),
    but not between workers, batch compositions or restarts.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def matcher(self, sample: int, count: int) -> Float[Tensor, "count 2"]:
        return _stream(random_key(self.seed, sample, "matcher_points"), self.device)(1, count)[0]

    def losses(self, sample: int, layer: int) -> Draw:
        return _stream(random_key(self.seed, sample, "loss_points", layer), self.device)


def chained(draws: Sequence[Draw], pairs: Sequence[int]) -> Draw:
    """One stream for several groups of pairs, `pairs[i]` of which draw from `draws[i]`; to be drawn from in one go."""
    if len(draws) == 1:
        return draws[0]
    return lambda _, points: torch.cat([draw(count, points) for draw, count in zip(draws, pairs, strict=True)])


def _stream(key: int, device: torch.device) -> Draw:
    if device.type == "cpu":
        return _LatticeStream(key)
    generator = torch.Generator(device).manual_seed(key)
    return lambda pairs, points: torch.rand((pairs, points, 2), generator=generator, device=device).mul_(2).sub_(1)


class _LatticeStream:
    """Points whose coordinates have 16 random bits each, a 64th of a pixel at 1024x1024: two points per raw number.

    Drawing floats takes three times as long, and drawing is what a CPU spends most of its time on in these losses.
    """

    def __init__(self, key: int) -> None:
        self.numbers = np.random.SFC64(key)

    def __call__(self, pairs: int, points: int) -> Float[Tensor, "pairs points 2"]:
        raw = self.numbers.random_raw(pairs * -(-points // 2)).view(np.int16).reshape(pairs, -1)
        coordinates = torch.from_numpy(raw)[:, : 2 * points].float()
        return coordinates.add_(0.5).mul_(2.0**-15).view(pairs, points, 2)
