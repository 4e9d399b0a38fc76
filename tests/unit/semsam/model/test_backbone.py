"""Swin: windows go there and back, shifted windows see neighbours alone, and drop-path belongs to the sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from semsam.model.backbone import (
    BackboneSettings,
    Swin,
    different_regions,
    from_windows,
    relative_positions,
    to_windows,
)

SMALL = BackboneSettings(dim=16, depths=(2, 1, 1, 2), num_heads=(1, 2, 4, 8), window=3, drop_path=0.5)


def test_windows_are_put_back_where_they_came_from() -> None:
    x = torch.randn(2, 6, 9, 5)
    windows = to_windows(x, 3)
    assert windows.shape == (2 * 2 * 3, 9, 5)
    torch.testing.assert_close(windows[1, 0], x[0, 0, 3])
    torch.testing.assert_close(from_windows(windows, 3, 6, 9), x, rtol=0, atol=0)


def test_relative_positions_name_every_displacement_once() -> None:
    index = relative_positions(3)
    assert index.shape == (9, 9)
    assert index.unique().tolist() == list(range(25))
    assert index.diagonal().unique().tolist() == [12]
    # From a pixel to the one on its right is the same everywhere.
    assert index[0, 1] == index[4, 5] == index[7, 8]


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 9), (7, 4)])
def test_rolled_windows_join_only_what_was_together(height: int, width: int) -> None:
    window, shift = 3, 1
    padded_height, padded_width = height + -height % window, width + -width % window
    y, x = torch.meshgrid(torch.arange(padded_height), torch.arange(padded_width), indexing="ij")
    places = torch.stack([y, x], dim=-1)[None].roll((-shift, -shift), (1, 2))
    windows = to_windows(places, window)
    # Within a rolled window, true neighbours are less than a window apart in the map.
    distance = (windows[:, :, None] - windows[:, None]).abs().amax(-1)
    differ = different_regions(height, width, window, torch.device("cpu"))
    if padded_height > window and padded_width > window:
        assert torch.equal(differ, distance >= window)
    else:
        assert not differ[distance == 0].any()
        assert differ.any()


def test_maps_have_the_strides_and_channels_of_a_pyramid() -> None:
    maps = Swin(SMALL)(torch.randn(2, 3, 64, 96), None)
    assert [tuple(level.shape) for level in maps] == [(2, 16, 16, 24), (2, 32, 8, 12), (2, 64, 4, 6), (2, 128, 2, 3)]


def test_an_odd_map_is_merged_with_zeros() -> None:
    maps = Swin(SMALL)(torch.randn(1, 3, 36, 44), None)
    assert [tuple(level.shape[2:]) for level in maps] == [(9, 11), (5, 6), (3, 3), (2, 2)]


def test_drop_path_is_off_without_keys() -> None:
    swin, images = Swin(SMALL).train(), torch.randn(1, 3, 32, 32)
    for first, second in zip(swin(images, None), swin(images, None), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_drop_path_depends_on_the_samples_key_and_not_on_its_neighbours() -> None:
    swin, images = Swin(SMALL), torch.randn(4, 3, 32, 32)
    keys = torch.tensor([11, 22, 33, 2**61])
    together, alone = swin(images, keys)[-1], swin(images[2:3], keys[2:3])[-1]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-5)
    other = swin(images[2:3], torch.tensor([34]))[-1]
    assert (other - alone).abs().max() > 1e-3


def test_drop_path_keeps_what_is_expected_of_a_branch() -> None:
    scales = Swin(SMALL)._drop_path_scales(torch.arange(20_000))
    assert scales.shape == (6, 2, 20_000)
    torch.testing.assert_close(scales.mean(2), torch.ones(6, 2), rtol=0, atol=0.03)
    assert (scales[0] == 1).all()
    assert (scales[-1] == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_dropped_branch_leaves_the_map_as_it_was() -> None:
    block = Swin(SMALL).stages[0].blocks[0]
    x = torch.randn(2, 6, 6, 16)
    torch.testing.assert_close(block(x, None, torch.zeros(2, 2)), x, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (2, 2, 2)}, "one entry per stage"),
        ({"num_heads": (5, 2, 4, 8)}, "stage 0 has 96 channels"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneSettings(**change)  # type: ignore[arg-type]


def test_every_linear_layer_starts_small() -> None:
    linear = [module for module in Swin(SMALL).modules() if isinstance(module, nn.Linear)]
    assert linear
    assert all(module.weight.std() < 0.03 for module in linear)
