"""The form of `AttentionForm` for GPUs: one Triton kernel forwards, one backwards.

The plain form writes every sample to memory before it weighs them; here samples never leave the registers.  Both
kernels look at a sum over all samples of a row, a row being one head of one query, and hold a block of rows x samples x
channels.  Sums are in float32 (float64 for float64 values), whatever the type of the values.

The gradient of the values is added up by atomic operations, in no fixed order: it differs between runs by the rounding
of float32 sums, and `torch.use_deterministic_algorithms` refuses it (as it does that of `F.grid_sample`).  All other
results repeat bit for bit.

This module imports Triton, which comes with torch for CUDA; `attention_form` imports it where it can be used.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from semsam.ops.map_shapes import Shapes

MAX_MAPS = 4
BLOCK = 1024  # Rows x samples x channels that four warps hold: 8 numbers a thread, of each of a few tensors.
CORNERS = tl.constexpr(4)
# Triton compiles a kernel anew for sizes that are 1 or multiples of 16; with these it would for every size of image.
SIZES = ["rows", "queries", "tokens", "h0", "w0", "h1", "w1", "h2", "w2", "h3", "w3"]
DETERMINISM = "the gradient of deformable attention's values on a GPU has no deterministic form"


def triton_attention(
    values: Float[Tensor, "b s h d"],
    shapes: Shapes,
    locations: Float[Tensor, "b q h l p 2"],
    weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q hd"]:
    """The fast form of `AttentionForm` on a GPU, of at most four maps; to torch.compile it is one operator."""
    if len(shapes) > MAX_MAPS:
        raise ValueError(f"shapes: {len(shapes)} maps, but the kernel knows of {MAX_MAPS} at most")
    if sum(height * width for height, width in shapes) != values.shape[1]:
        raise ValueError(f"shapes: {list(shapes)} do not make up {values.shape[1]} tokens")
    exact = torch.promote_types(values.dtype, torch.float32)
    sizes = [side for shape in shapes for side in shape]
    attended: Tensor = _attend(values, locations.to(exact), weights.to(exact), sizes)
    return attended


@triton.jit
def _map_of(level, h0, w0, h1, w1, h2, w2, h3, w3):
    """Height, width and first token of each sample's map."""
    height = tl.where(level == 0, h0, tl.where(level == 1, h1, tl.where(level == 2, h2, h3)))
    width = tl.where(level == 0, w0, tl.where(level == 1, w1, tl.where(level == 2, w2, w3)))
    start1 = h0 * w0
    start2 = start1 + h1 * w1
    start3 = start2 + h2 * w2
    start = tl.where(level == 0, 0, tl.where(level == 1, start1, tl.where(level == 2, start2, start3)))
    return height, width, start


@triton.jit
def _pixel(location, size):
    """The pixel before a place along one axis, and how far behind its centre the place is.

    Far outside is moved to where both neighbours are outside as well: large numbers have no integers.
    """
    pixel = tl.minimum(tl.maximum(location * size - 0.5, -2.0), size.to(location.dtype))
    low = tl.floor(pixel)
    return low.to(tl.int32), pixel - low


@triton.jit
def _corner(corner: tl.constexpr, left, top, right, down, height, width, start):
    """Token, share across, share downwards and whether it exists, of one of the four pixels around each place."""
    column = left + corner % 2
    line = top + corner // 2
    across = right if corner % 2 == 1 else 1 - right
    downwards = down if corner // 2 == 1 else 1 - down
    exists = (column >= 0) & (column < width) & (line >= 0) & (line < height)
    return start + line * width + column, across, downwards, exists


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    values, locations, weights, attended,
    rows, queries, tokens, h0, w0, h1, w1, h2, w2, h3, w3,
    heads: tl.constexpr, depth: tl.constexpr, points: tl.constexpr, samples: tl.constexpr,
    block_rows: tl.constexpr, block_samples: tl.constexpr, block_depth: tl.constexpr,
):  # fmt: skip
    # Rows are in 64 bits, and so is what is counted in them; within one image 32 bits are enough.
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    sample, channel = tl.arange(0, block_samples)[None, :], tl.arange(0, block_depth)[None, :]
    # What has no channels stays in two axes: along a third one Triton would load it once for every channel.
    place = row[:, None] * samples + sample
    known = (row < rows)[:, None] & (sample < samples)
    weight = tl.load(weights + place, known, other=0)
    height, width, start = _map_of(sample // points, h0, w0, h1, w1, h2, w2, h3, w3)
    left, right = _pixel(tl.load(locations + 2 * place, known, other=0), width)
    top, down = _pixel(tl.load(locations + 2 * place + 1, known, other=0), height)
    of_head = (row // (heads * queries) * (heads * depth) * tokens + row % heads * depth)[:, None] + channel
    total = tl.zeros((block_rows, block_samples, block_depth), weight.dtype)
    for corner in tl.static_range(CORNERS):
        token, across, downwards, exists = _corner(corner, left, top, right, down, height, width, start)
        offset = of_head[:, None, :] + (token * (heads * depth))[:, :, None]
        mask = (known & exists)[:, :, None] & (channel < depth)[:, None, :]
        found = tl.load(values + offset, mask, other=0).to(weight.dtype)
        total += found * (weight * across * downwards)[:, :, None]
    mask = (row < rows)[:, None] & (channel < depth)
    tl.store(attended + (row[:, None] * depth + channel), tl.sum(total, axis=1), mask)


@triton.jit(do_not_specialize=SIZES)
def _backward_kernel(
    values, locations, weights, of_attended, of_values, of_locations, of_weights,
    rows, queries, tokens, h0, w0, h1, w1, h2, w2, h3, w3,
    heads: tl.constexpr, depth: tl.constexpr, points: tl.constexpr, samples: tl.constexpr,
    block_rows: tl.constexpr, block_samples: tl.constexpr, block_depth: tl.constexpr,
):  # fmt: skip
    # Rows are in 64 bits, and so is what is counted in them; within one image 32 bits are enough.
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    sample, channel = tl.arange(0, block_samples)[None, :], tl.arange(0, block_depth)[None, :]
    # What has no channels stays in two axes: along a third one Triton would load it once for every channel.
    place = row[:, None] * samples + sample
    known = (row < rows)[:, None] & (sample < samples)
    weight = tl.load(weights + place, known, other=0)
    height, width, start = _map_of(sample // points, h0, w0, h1, w1, h2, w2, h3, w3)
    left, right = _pixel(tl.load(locations + 2 * place, known, other=0), width)
    top, down = _pixel(tl.load(locations + 2 * place + 1, known, other=0), height)
    of_head = (row // (heads * queries) * (heads * depth) * tokens + row % heads * depth)[:, None] + channel
    mask = (row < rows)[:, None] & (channel < depth)
    upstream = tl.load(of_attended + (row[:, None] * depth + channel), mask, other=0)
    upstream = upstream.to(weight.dtype)[:, None, :]
    of_weight = tl.zeros((block_rows, block_samples), weight.dtype)
    of_right = tl.zeros((block_rows, block_samples), weight.dtype)
    of_down = tl.zeros((block_rows, block_samples), weight.dtype)
    for corner in tl.static_range(CORNERS):
        token, across, downwards, exists = _corner(corner, left, top, right, down, height, width, start)
        offset = of_head[:, None, :] + (token * (heads * depth))[:, :, None]
        mask = (known & exists)[:, :, None] & (channel < depth)[:, None, :]
        share = (weight * across * downwards)[:, :, None]
        tl.atomic_add(of_values + offset, upstream * share, mask, sem="relaxed")
        found = tl.load(values + offset, mask, other=0).to(weight.dtype)
        agreement = tl.sum(found * upstream, axis=2)
        of_weight += agreement * across * downwards
        of_right += agreement * downwards * (1 if corner % 2 == 1 else -1)
        of_down += agreement * across * (1 if corner // 2 == 1 else -1)
    tl.store(of_weights + place, of_weight, known)
    tl.store(of_locations + 2 * place, of_right * weight * width, known)
    tl.store(of_locations + 2 * place + 1, of_down * weight * height, known)


def _launch(
    kernel: Any, values: Tensor, locations: Tensor, weights: Tensor, others: list[Tensor], sizes: list[int]
) -> None:
    """Run a kernel on all rows; `others` follow its first three tensors."""
    _, queries, heads, maps, points = weights.shape
    tokens, depth = values.shape[1], values.shape[3]
    rows, samples = weights.shape[:3].numel(), maps * points
    if rows == 0:
        return
    block_samples, block_depth = triton.next_power_of_2(samples), triton.next_power_of_2(depth)
    block_rows = max(BLOCK // (block_samples * block_depth), 1)
    tensors = [tensor.contiguous() for tensor in (values, locations, weights)]
    with torch.cuda.device_of(values):  # Triton launches on the current device.
        kernel[(math.ceil(rows / block_rows),)](
            *tensors, *others, rows, queries, tokens, *sizes, *[0] * (2 * MAX_MAPS - len(sizes)),
            heads, depth, points, samples, block_rows, block_samples, block_depth,
        )  # fmt: skip


@torch.library.custom_op(
    "semsam::deformable_attention",
    mutates_args=(),
    schema="(Tensor values, Tensor locations, Tensor weights, SymInt[] sizes) -> Tensor",
)
def _attend(values: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    attended = _attended_like(values, locations, weights, sizes)
    _launch(_forward_kernel, values, locations, weights, [attended], sizes)
    return attended


@_attend.register_fake
def _attended_like(values: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    batch, queries, heads = weights.shape[:3]
    return values.new_empty(batch, queries, heads * values.shape[3])


@torch.library.custom_op(
    "semsam::deformable_attention_backward",
    mutates_args=(),
    schema="(Tensor of_attended, Tensor values, Tensor locations, Tensor weights, SymInt[] sizes) "
    "-> (Tensor, Tensor, Tensor)",
)
def _gradients(
    of_attended: Tensor, values: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.are_deterministic_algorithms_enabled():
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(DETERMINISM)
        warnings.warn(DETERMINISM, stacklevel=2)
    of_values = values.new_zeros(values.shape, dtype=weights.dtype)
    of_locations, of_weights = locations.new_empty(locations.shape), weights.new_empty(weights.shape)
    others = [of_attended.contiguous(), of_values, of_locations, of_weights]
    _launch(_backward_kernel, values, locations, weights, others, sizes)
    return of_values.to(values.dtype), of_locations, of_weights


@_gradients.register_fake
def _gradients_like(
    of_attended: Tensor, values: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    of_values, of_locations, of_weights = (tensor.new_empty(tensor.shape) for tensor in (values, locations, weights))
    return of_values, of_locations, of_weights


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, list[int]], output: Tensor) -> None:
    *tensors, ctx.sizes = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, of_attended: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_gradients(of_attended, *ctx.saved_tensors, ctx.sizes), None


_attend.register_autograd(_backward, setup_context=_keep)
