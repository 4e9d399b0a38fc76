from __future__ import annotations

import numpy as np
import torch

from semsam.losses.points import KeyedPoints, chained

CPU = torch.device("cpu")


def test_points_depend_on_seed_sample_layer_and_purpose_alone() -> None:
    points = KeyedPoints(1, CPU)
    first = points.losses(5, 0)(3, 10)
    assert torch.equal(KeyedPoints(1, CPU).losses(5, 0)(3, 10), first)
    others = [
        KeyedPoints(2, CPU).losses(5, 0)(3, 10),
        points.losses(6, 0)(3, 10),
        points.losses(5, 1)(3, 10),
        points.matcher(5, 30).view(3, 10, 2),
    ]
    assert not any(torch.equal(other, first) for other in others)
    assert -1 < first.min() < -0.8
    assert 0.8 < first.max() < 1


def test_a_stream_does_not_depend_on_how_many_pairs_draw_at_once() -> None:
    points = KeyedPoints(1, CPU)
    whole, draw = points.losses(5, 0)(7, 10), points.losses(5, 0)
    assert torch.equal(torch.cat([draw(2, 10), draw(4, 10), draw(1, 10)]), whole)


def test_chained_streams_serve_each_group_from_its_own() -> None:
    points = KeyedPoints(1, CPU)
    draw = chained([points.losses(5, 0), points.losses(6, 0)], [2, 3])
    assert torch.equal(draw(5, 4), torch.cat([points.losses(5, 0)(2, 4), points.losses(6, 0)(3, 4)]))


def test_points_are_uniform_and_coordinates_independent() -> None:
    points = KeyedPoints(3, CPU).losses(0, 0)(20, 501)
    counts, _, _ = np.histogram2d(*points.flatten(0, 1).numpy().T, bins=4, range=[[-1, 1], [-1, 1]])
    assert counts.sum() == 20 * 501
    assert abs(counts / (20 * 501 / 16) - 1).max() < 0.15  # Four standard deviations of a cell.
