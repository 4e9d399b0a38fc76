"""Soft masks measured along their edges against the same masks enlarged and counted pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semsam.data import rle
from semsam.data.atoms import AtomMap
from semsam.encoded_image import EncodedImage
from semsam.evaluation import overlaps
from semsam.evaluation.overlaps import Overlaps, as_bits
from semsam.model.pixel_decoder import ImageFeatures
from semsam.predictor import mask_boxes_xyxy

# Sizes of the image, of the network's input and of that input padded.
SIZES = {
    "enlarged": ((150, 231), (80, 123), (96, 128)),
    "the same": ((64, 96), (64, 96), (64, 96)),
    "shrunk": ((40, 61), (80, 122), (96, 128)),
    "thin": ((90, 2), (133, 3), (160, 32)),
    "tiny": ((5, 7), (32, 45), (32, 64)),
    "one pixel": ((1, 1), (32, 32), (32, 32)),
}


def encoded(size: tuple[int, int], input_size: tuple[int, int], padded: tuple[int, int]) -> EncodedImage:
    features = torch.zeros(1, 1, padded[0] // 4, padded[1] // 4)
    return EncodedImage(ImageFeatures(features, (), padded), size, input_size)


def soft_masks(image: EncodedImage, count: int, seed: int = 0) -> torch.Tensor:
    """Logits as large as the mask features: noise, blobs, and masks that are everything, nothing or a single peak."""
    rng = torch.Generator().manual_seed(seed)
    height, width = image.features.mask_features.shape[2:]
    noise = torch.randn(count, height, width, generator=rng)
    blobs = torch.randn(count, -(-height // 5), -(-width // 5), generator=rng)[:, None] - 0.5
    blobs = torch.nn.functional.interpolate(blobs, (height, width), mode="bilinear")[:, 0]
    peak = torch.full((1, height, width), -1.0)
    peak[0, height // 2, width // 3] = 3
    return torch.cat([noise, blobs, torch.ones(1, height, width), torch.zeros(1, height, width), peak])


def enlarged(image: EncodedImage, logits: torch.Tensor) -> np.ndarray:
    """The masks at the image's own size, as `EncodedImage` makes them."""
    height, width = image.features.mask_features.shape[2:]
    features = ImageFeatures(torch.eye(height * width).reshape(1, -1, height, width), (), image.features.padded_size)
    whole = EncodedImage(features, image.size, image.input_size)
    return (whole.at_own_size(whole.mask_logits(logits.flatten(1))) > 0).numpy()


def regions(size: tuple[int, int], seed: int = 1) -> np.ndarray:
    rng, (ys, xs) = np.random.default_rng(seed), np.mgrid[: size[0], : size[1]]
    discs = [np.hypot(ys - y, xs - x) < radius for y, x, radius in rng.uniform(0, max(size), (5, 3)) * (1, 1, 0.6)]
    return np.stack([*discs, np.zeros(size, bool), np.ones(size, bool)])


def measured(image: EncodedImage, truth: np.ndarray) -> Overlaps:
    rows, columns = image.enlarging()
    atoms = AtomMap.from_rles([rle.encode(mask) for mask in truth], *image.size)
    return Overlaps(atoms, rows.numpy(), columns.numpy())


def dense_ious(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([[(m & t).sum() / max((m | t).sum(), 1) for t in truth] for m in masks])


@pytest.mark.parametrize("size", SIZES)
def test_edges_alone_tell_what_all_pixels_tell(size: str) -> None:
    image = encoded(*SIZES[size])
    logits, truth = soft_masks(image, 4), regions(image.size)
    masks, found = enlarged(image, logits), measured(image, truth)
    of_edges = found.measure(logits.numpy(), as_bits(logits.numpy() > 0))
    np.testing.assert_array_equal(of_edges.counts.sum(axis=1), masks.sum(axis=(1, 2)))
    np.testing.assert_allclose(found.ious(of_edges.counts), dense_ious(masks, truth), atol=1e-12)
    np.testing.assert_array_equal(of_edges.boxes_xyxy(), mask_boxes_xyxy(masks))


def test_few_pixels_at_a_time_tell_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(*SIZES["enlarged"])
    logits, truth = soft_masks(image, 2).numpy(), regions(image.size)
    at_once = measured(image, truth).measure(logits, as_bits(logits > 0))
    monkeypatch.setattr(overlaps, "PIXELS_AT_ONCE", 1000)
    one_by_one = measured(image, truth).measure(logits, as_bits(logits > 0))
    np.testing.assert_array_equal(at_once.counts, one_by_one.counts)
    np.testing.assert_array_equal(at_once.ends, one_by_one.ends)


def test_an_image_without_regions_and_no_masks_are_legal() -> None:
    image = encoded(*SIZES["the same"])
    found = measured(image, np.zeros((0, *image.size), bool))
    some = soft_masks(image, 1).numpy()
    assert found.measure(some, as_bits(some > 0)).counts.shape == (5, 1)
    none = found.measure(np.zeros((0, 16, 24), np.float32), as_bits(np.zeros((0, 16, 24), bool)))
    assert (none.counts.shape, none.boxes_xyxy().shape) == ((0, 1), (0, 4))


@pytest.mark.parametrize("size", SIZES)
def test_enlarging_is_rows_times_map_times_columns(size: str) -> None:
    image = encoded(*SIZES[size])
    height, width = image.features.mask_features.shape[2:]
    some = torch.randn(height * width, generator=torch.Generator().manual_seed(0))
    basis = ImageFeatures(torch.eye(height * width).reshape(1, -1, height, width), (), image.features.padded_size)
    whole = EncodedImage(basis, image.size, image.input_size)
    rows, columns = image.enlarging()
    expected = whole.at_own_size(whole.mask_logits(some[None]))[0]
    torch.testing.assert_close(rows @ some.reshape(height, width) @ columns.T, expected, atol=1e-5, rtol=1e-5)
    assert int((rows != 0).sum(dim=1).max()) <= 3
