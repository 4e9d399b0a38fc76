from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.ops.point_sampling import (
    LabelMaps,
    all_region_values,
    most_uncertain,
    region_values,
    sample_features,
    sample_maps,
    sample_maps_backward,
)

HEIGHT, WIDTH, NUM_LABELS, NUM_REGIONS, NUM_IMAGES = 9, 14, 12, 5, 3


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def labels(generator: torch.Generator) -> Tensor:
    return torch.randint(0, NUM_LABELS, (NUM_IMAGES, HEIGHT, WIDTH), generator=generator, dtype=torch.int32)


@pytest.fixture
def tables(generator: torch.Generator) -> Tensor:
    tables = (torch.rand((NUM_IMAGES, NUM_LABELS, NUM_REGIONS), generator=generator) < 0.5).float()
    tables[:, 0] = 0
    return tables


def points_everywhere(m: int, generator: torch.Generator) -> Tensor:
    """Random points, some outside, and the awkward ones: corners, edges, pixel centres, far away."""
    special = torch.tensor(
        [[-1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0], [1 / WIDTH - 1, 1 / HEIGHT - 1], [9.0, -9.0]]
    )
    return torch.cat([torch.rand((m, 50, 2), generator=generator) * 2.6 - 1.3, special.expand(m, -1, -1)], dim=1)


def test_region_values_equal_grid_sample_of_dense_masks(
    labels: Tensor, tables: Tensor, generator: torch.Generator
) -> None:
    image, region = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([1, 4, 0, 2, 2, 3])
    points = points_everywhere(6, generator)
    found = region_values(LabelMaps.of(labels), image, tables[image, :, region], points)
    dense = torch.stack([tables[i, :, r][labels[i].long()] for i, r in zip(image, region, strict=True)])
    expected = F.grid_sample(dense[:, None], points[:, None], align_corners=False)[:, 0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert ((found > 0.01) & (found < 0.99)).any()


def test_all_region_values_equal_grid_sample_of_dense_masks(
    labels: Tensor, tables: Tensor, generator: torch.Generator
) -> None:
    points = points_everywhere(NUM_IMAGES, generator)
    found = all_region_values(LabelMaps.of(labels), tables, points)
    for image in range(NUM_IMAGES):
        dense = tables[image].T[:, labels[image].long()]
        expected = F.grid_sample(dense[None], points[image][None, None], align_corners=False)[0, :, 0].T
        torch.testing.assert_close(found[image], expected, rtol=0, atol=2e-6)


def test_the_labels_of_an_image_come_back(labels: Tensor) -> None:
    maps = LabelMaps.of(labels)
    for image in range(NUM_IMAGES):
        assert torch.equal(maps.image(image), labels[image].long())
    assert LabelMaps.of(torch.full((1, 1, 1), 70_000, dtype=torch.int32)).image(0).tolist() == [[70_000]]


def test_a_map_of_one_pixel_and_labels_beyond_sixteen_bits() -> None:
    labels = torch.full((1, 1, 1), 70_000, dtype=torch.int32)
    columns = torch.zeros(1, 70_001)
    columns[0, 70_000] = 1
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, -1.0], [2.0, 2.0]]])
    found = region_values(LabelMaps.of(labels), torch.tensor([0]), columns, points)
    assert found.tolist() == [[1.0, 0.5, 0.25, 0.0]]


def test_gradient_without_the_maps_is_grid_sample_s_own(generator: torch.Generator) -> None:
    maps = torch.randn((4, HEIGHT, WIDTH), generator=generator, requires_grad=True)
    points = points_everywhere(4, generator)
    gradient = torch.randn((4, points.shape[1]), generator=generator)
    (expected,) = torch.autograd.grad(sample_maps(maps, points), [maps], gradient)
    torch.testing.assert_close(sample_maps_backward(gradient, points, (HEIGHT, WIDTH)), expected)


def test_features_and_maps_are_sampled_alike(generator: torch.Generator) -> None:
    features, points = torch.randn((2, 3, 5, 6), generator=generator), points_everywhere(2, generator)
    found = sample_features(features, points)
    for channel in range(3):
        torch.testing.assert_close(found[:, channel], sample_maps(features[:, channel], points))


@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_most_uncertain_are_the_nearest_to_zero(count: int, generator: torch.Generator) -> None:
    logits = torch.randn((3, 20), generator=generator)
    found = most_uncertain(logits, count)
    assert found.shape == (3, count)
    chosen = logits.abs().gather(1, found).sort(1).values
    assert torch.equal(chosen, logits.abs().sort(1).values[:, :count])
