"""Deformable attention: the fast form equals the plain one in value and gradient, wherever the points lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semsam.ops.deformable_attention import (
    QUERIES_AT_ONCE,
    AttentionForm,
    DeformableAttention,
    gathered_attention,
    sampled_attention,
)

SHAPES = ((5, 7), (3, 4), (2, 2), (1, 1))
HEADS, POINTS, DEPTH = 2, 3, 4


def inputs(batch: int, queries: int, spread: float, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Values, locations (beyond the maps for a `spread` above one half) and weights, all with gradients."""
    random = torch.Generator().manual_seed(batch * 100 + queries)
    tokens = sum(height * width for height, width in SHAPES)
    values = torch.randn(batch, tokens, HEADS, DEPTH, generator=random, dtype=dtype)
    places = torch.rand(batch, queries, HEADS, len(SHAPES), POINTS, 2, generator=random, dtype=dtype)
    weights = torch.rand(batch, queries, HEADS, len(SHAPES), POINTS, generator=random, dtype=dtype)
    return [x.requires_grad_() for x in (values, (places - 0.5) * 2 * spread + 0.5, weights)]


def attended_and_gradients(form: AttentionForm, tensors: list[Tensor]) -> list[Tensor]:
    attended = form(tensors[0], SHAPES, tensors[1], tensors[2])
    upstream = torch.linspace(-1, 1, attended.numel(), dtype=attended.dtype).sin().view(attended.shape)
    return [attended, *torch.autograd.grad((attended * upstream).sum(), tensors)]


@pytest.mark.parametrize("spread", [0.4, 0.6, 3.0], ids=["inside", "over the edges", "mostly outside"])
@pytest.mark.parametrize(("batch", "queries"), [(1, 1), (1, 5), (3, 4)])
def test_the_fast_form_equals_the_plain_one(batch: int, queries: int, spread: float) -> None:
    tensors = inputs(batch, queries, spread)
    plain = attended_and_gradients(sampled_attention, tensors)
    fast = attended_and_gradients(gathered_attention, tensors)
    for expected, found in zip(plain, fast, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_many_queries_in_pieces_equal_the_plain_form(batch: int) -> None:
    with torch.no_grad():
        values, locations, weights = inputs(batch, QUERIES_AT_ONCE + 7, 0.6)
        expected = sampled_attention(values, SHAPES, locations, weights)
        found = gathered_attention(values, SHAPES, locations, weights)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", [gathered_attention, sampled_attention])
def test_places_outside_of_all_maps_give_zero(form: AttentionForm) -> None:
    values, locations, weights = inputs(2, 3, 0.5)
    assert form(values, SHAPES, locations + 1e6, weights).abs().max() == 0
    assert form(values, SHAPES, locations - 1e6, weights).abs().max() == 0


@pytest.mark.parametrize("form", [gathered_attention, sampled_attention])
def test_a_place_at_a_pixel_centre_gives_that_pixel(form: AttentionForm) -> None:
    values, _, _ = inputs(1, 1, 0.5)
    locations = torch.full((1, 1, HEADS, len(SHAPES), POINTS, 2), -9.0)
    locations[..., 0, 0, :] = torch.tensor([(6 + 0.5) / 7, (2 + 0.5) / 5])  # Column 6, row 2 of the first map.
    attended = form(values, SHAPES, locations, torch.ones(1, 1, HEADS, len(SHAPES), POINTS))
    torch.testing.assert_close(attended[0, 0], values[0, 2 * 7 + 6].flatten())


@pytest.mark.parametrize("form", [gathered_attention, sampled_attention])
def test_no_queries_give_an_empty_answer(form: AttentionForm) -> None:
    assert form(*inputs(2, 0, 0.5)[:1], SHAPES, *inputs(2, 0, 0.5)[1:]).shape == (2, 0, HEADS * DEPTH)


def test_the_fast_forms_gradients_are_those_of_its_values() -> None:
    tensors = inputs(1, 2, 0.6, torch.float64)

    def attend(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return gathered_attention(values, SHAPES, locations, weights)

    assert torch.autograd.gradcheck(attend, tensors, eps=1e-7, atol=1e-5)


def test_the_fast_form_works_without_a_gradient_for_the_values() -> None:
    values, locations, weights = inputs(1, 2, 0.4)
    gathered_attention(values.detach(), SHAPES, locations, weights).sum().backward()
    assert locations.grad is not None
    assert values.grad is None


@pytest.mark.parametrize("reference_size", [2, 4], ids=["points", "boxes"])
def test_the_module_is_the_same_with_either_form(reference_size: int) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(HEADS * DEPTH, HEADS, len(SHAPES), POINTS)
    torch.nn.init.normal_(attention.offsets.weight)
    tokens = torch.randn(2, sum(height * width for height, width in SHAPES), HEADS * DEPTH)
    queries, references = torch.randn(2, 6, HEADS * DEPTH), torch.rand(2, 6, reference_size)
    fast = attention(queries, references, tokens, SHAPES)
    attention.form = sampled_attention
    torch.testing.assert_close(fast, attention(queries, references, tokens, SHAPES), rtol=1e-4, atol=1e-5)


def test_half_precision_stays_close_to_full() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(32, 4, len(SHAPES), POINTS)
    tokens = torch.randn(2, sum(height * width for height, width in SHAPES), 32)
    queries, references = torch.randn(2, 6, 32), torch.rand(2, 6, 4)
    full = attention(queries, references, tokens, SHAPES)
    half = attention.bfloat16()(queries.bfloat16(), references, tokens.bfloat16(), SHAPES)
    assert half.dtype == torch.bfloat16
    assert (half.float() - full).abs().max() < 0.03 * full.abs().max()
