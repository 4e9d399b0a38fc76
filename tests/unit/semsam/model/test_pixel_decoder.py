"""Sine embeddings by their formula, and the shapes and fixed points of the decoder."""

from __future__ import annotations

import math

import pytest
import torch

from semsam.model.pixel_decoder import PixelDecoder
from semsam.model.positions import box_embedding, inverse_sigmoid, pixel_centres, pixel_embedding, sine_embedding


def test_sine_embedding_is_the_published_formula() -> None:
    found = sine_embedding(torch.tensor([0.3]), 8)[0]
    for channel in range(8):
        angle = 0.3 * 2 * math.pi / 10_000 ** (2 * (channel // 2) / 8)
        assert found[channel].item() == pytest.approx(math.cos(angle) if channel % 2 else math.sin(angle), abs=1e-6)


def test_pixel_embedding_says_y_before_x_and_counts_from_one() -> None:
    found = pixel_embedding(2, 3, 16, torch.device("cpu")).view(2, 3, 16)
    torch.testing.assert_close(found[1, 2, :8], sine_embedding(torch.tensor(2 / (2 + 1e-6)), 8))
    torch.testing.assert_close(found[0, 1, 8:], sine_embedding(torch.tensor(2 / (3 + 1e-6)), 8))


def test_box_embedding_says_y_x_width_height() -> None:
    box = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = box_embedding(box, 8).view(4, 8)
    torch.testing.assert_close(found, sine_embedding(box[[1, 0, 2, 3]], 8))


def test_pixel_centres_are_half_a_pixel_from_the_edges() -> None:
    centres = pixel_centres([(2, 4), (1, 1)], torch.device("cpu"))
    torch.testing.assert_close(centres[[0, 1, 4, 8]], torch.tensor([(1, 2), (3, 2), (1, 6), (4, 4)]) / 8.0)


def test_inverse_sigmoid_undoes_sigmoid_and_is_finite_at_the_edges() -> None:
    values = torch.tensor([0.001, 0.5, 0.9])
    torch.testing.assert_close(inverse_sigmoid(values).sigmoid(), values)
    assert inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0])).isfinite().all()


@pytest.mark.parametrize("height", [32, 96])
def test_levels_keep_their_sizes(height: int) -> None:
    decoder = PixelDecoder((8, 16, 32, 64), 32, 48, 4, 2, 1)
    pyramid = [torch.randn(2, dim, height // s, 64 // s) for dim, s in ((8, 4), (16, 8), (32, 16), (64, 32))]
    features = decoder(pyramid, (height, 64))
    assert features.mask_features.shape == (2, 32, height // 4, 16)
    expected = [(2, 32, height // 8, 8), (2, 32, height // 16, 4), (2, 32, height // 32, 2)]
    assert [tuple(level.shape) for level in features.levels] == [*expected, (2, 32, math.ceil(height / 64), 1)]
