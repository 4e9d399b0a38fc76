"""Deformable attention over several feature maps (arXiv 2010.04159): one interface, one form per kind of device.

`sampled_attention` is the plain form, right on every device; `gathered_attention` is the fast one for CPUs,
`triton_attention` (a module of its own, imported where Triton works) that for GPUs.  A form for another device is one
more function of the same signature and a line in `attention_form`.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from scipy.sparse import csc_array
from torch import Tensor, nn

from semsam.ops.map_shapes import Shapes

QUERIES_AT_ONCE = 512  # Of `gathered_attention` without gradients.
# For comparisons, and for a machine where a fast form fails: then every device takes the plain form.
ALWAYS_PLAIN = os.environ.get("SEMSAM_PLAIN_ATTENTION", "0") not in ("", "0")
OLDEST_GPU = 80  # Compute capability times ten.
FRAME = 2  # Zeros around each map in the table of `gathered_attention`: two neighbours of a place far outside.


class AttentionForm(Protocol):
    """Weighted bilinear samples of each head's values; outside of a map there are zeros (as in `F.grid_sample`)."""

    def __call__(
        self,
        values: Float[Tensor, "b s h d"],
        shapes: Shapes,
        locations: Float[Tensor, "b q h l p 2"],
        weights: Float[Tensor, "b q h l p"],
    ) -> Float[Tensor, "b q hd"]:
        """`locations` are (x, y) in fractions of their map: 0 and 1 are its outer pixel edges."""
        ...


def attention_form(device: torch.device) -> AttentionForm:
    """The fastest form for tensors on `device`; the plain one if the environment says SEMSAM_PLAIN_ATTENTION=1."""
    if ALWAYS_PLAIN:
        return sampled_attention
    if device.type == "cpu":
        return gathered_attention
    # What torch.compile makes for a GPU needs Triton as well.
    if device.type == "cuda" and (torch.compiler.is_compiling() or triton_works()):
        from semsam.ops.deformable_attention_triton import triton_attention

        return triton_attention
    return sampled_attention


@functools.cache
def triton_works() -> bool:
    """Whether this process can run Triton's kernels; a warning says why not, once."""
    # Triton brings the compiler of its kernels, but builds the few lines of C that start them when it first meets a
    # GPU: without a C compiler on the machine it cannot, and that must not stop anyone.
    try:
        from triton.runtime import driver

        target = driver.active.get_current_target()
        if target.backend == "cuda" and target.arch < OLDEST_GPU:
            raise RuntimeError(
                f"this GPU's compute capability is {target.arch / 10}, Triton's lowest {OLDEST_GPU / 10}"
            )
    except Exception as problem:
        warnings.warn(f"deformable attention takes its plain form: Triton does not work, {problem!r}", stacklevel=3)
        return False
    return True


class DeformableAttention(nn.Module):
    """Each query attends to `num_points` places on each map, which it chooses itself relative to its reference.

    `form` replaces the device's own form (to compare them).
    """

    def __init__(
        self, dim: int, num_heads: int, num_maps: int, num_points: int, form: AttentionForm | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.num_maps, self.num_points = num_heads, num_maps, num_points
        self.form = form
        self.offsets = nn.Linear(dim, num_heads * num_maps * num_points * 2)
        self.weights = nn.Linear(dim, num_heads * num_maps * num_points)
        self.values = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as the paper does: every head looks in a direction of its own, one step further with every point."""
        nn.init.zeros_(self.offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)[:, None]
        offsets = (directions[:, None, None] * steps).expand(-1, self.num_maps, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.weights.weight)
        nn.init.zeros_(self.weights.bias)
        for linear in (self.values, self.output):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q r"],
        tokens: Float[Tensor, "b s c"],
        shapes: Shapes,
    ) -> Float[Tensor, "b q c"]:
        """What the queries see.  References are points (r = 2: offsets are in pixels of each map) or boxes in cxcywh
        (r = 4: offsets are in halves of the box, over the number of points)."""
        head_shape = (self.num_heads, self.num_maps, self.num_points)
        values = self.values(tokens).unflatten(-1, (self.num_heads, -1))
        # In float32 also under autocast: bfloat16 cannot tell neighbouring pixels of a large map apart.
        offsets = self.offsets(queries).float().unflatten(-1, (*head_shape, 2))
        weights = self.weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1, dtype=torch.float32)
        references = references[:, :, None, None, None]
        if references.shape[-1] == 2:
            locations = references + offsets / map_sizes(shapes, offsets)
        else:
            locations = references[..., :2] + offsets * references[..., 2:] * (0.5 / self.num_points)
        if values.dtype == torch.float64:  # Only in tests: float32 would hide from a gradient check what it measures.
            locations, weights = locations.double(), weights.double()
        form = self.form or attention_form(values.device)
        return self.output(form(values, shapes, locations, weights.unflatten(-1, head_shape[1:])))


def sampled_attention(
    values: Float[Tensor, "b s h d"],
    shapes: Shapes,
    locations: Float[Tensor, "b q h l p 2"],
    weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q hd"]:
    """The plain form of `AttentionForm`: one `F.grid_sample` per map."""
    batch, _, heads, depth = values.shape
    grids = (2 * locations - 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 1)
    samples = []
    for index, tokens in enumerate(values.split([height * width for height, width in shapes], dim=1)):
        maps = tokens.permute(0, 2, 3, 1).reshape(batch * heads, depth, *shapes[index])
        samples.append(F.grid_sample(maps.to(grids.dtype), grids[:, index], align_corners=False))
    by_head = weights.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(2)[:, None]
    attended = (torch.cat(samples, dim=-1) * by_head).sum(-1)
    return attended.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2).to(values.dtype)


def gathered_attention(
    values: Float[Tensor, "b s h d"],
    shapes: Shapes,
    locations: Float[Tensor, "b q h l p 2"],
    weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q hd"]:
    """The fast form of `AttentionForm` on a CPU: each query and head is one bag of weighted rows of a table.

    The table holds the values of all maps, each in a frame of zeros.  A place outside a map is moved into the frame, so
    no corner of any sample needs a test of its own, forwards or backwards.
    """
    framed = _framed(values.to(weights.dtype), shapes)
    pieces = [(locations, weights)]
    if not torch.is_grad_enabled():
        # What is made for one piece stays in the cache, and in little memory.
        at_once = max(QUERIES_AT_ONCE // len(values), 1)
        pieces = list(zip(locations.split(at_once, dim=1), weights.split(at_once, dim=1), strict=True))
    bags = [_bags(framed, shapes, *piece) for piece in pieces]
    return (bags[0] if len(bags) == 1 else torch.cat(bags, dim=1)).to(values.dtype)


def _bags(
    framed: Float[Tensor, "b f h d"],
    shapes: Shapes,
    locations: Float[Tensor, "b q h l p 2"],
    weights: Float[Tensor, "b q h l p"],
) -> Float[Tensor, "b q hd"]:
    batch, framed_length, heads, depth = framed.shape
    corners: Callable[..., tuple[Tensor, Tensor]] = _Corners.apply
    rows, shares = corners(locations, weights, shapes, framed_length)
    table, per_bag = framed.view(-1, depth), 4 * weights.shape[3] * weights.shape[4]
    rows, shares = rows.view(-1, per_bag), shares.view(-1, per_bag)
    bags = F.embedding_bag(rows, table.detach(), mode="sum", per_sample_weights=shares)
    if table.requires_grad:
        scatter: Callable[..., Tensor] = _ScatterGradient.apply
        bags = scatter(bags, table, rows, shares.detach())
    return bags.view(batch, -1, heads * depth)


def _framed(values: Float[Tensor, "b s h d"], shapes: Shapes) -> Float[Tensor, "b f h d"]:
    """The maps one after another, each with two rows of zeros above and below and two zeros before every row.

    The zeros before a row are also those after the row before; the last map gets some more at its end.
    """
    batch, _, heads, depth = values.shape
    maps = values.split([height * width for height, width in shapes], dim=1)
    framed = [
        F.pad(tokens.reshape(batch, *shape, heads * depth), (0, 0, FRAME, 0, FRAME, FRAME)).flatten(1, 2)
        for tokens, shape in zip(maps, shapes, strict=True)
    ]
    after = values.new_zeros(batch, FRAME, heads * depth)
    return torch.cat([*framed, after], dim=1).unflatten(-1, (heads, depth))


class _Corners(torch.autograd.Function):
    """Rows of the framed table around each place, and their bilinear shares of its weight.

    The four corners come before maps and points, and constants are spread over maps and points beforehand: so every
    operation runs through memory in long strides.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        locations: Float[Tensor, "b q h l p 2"],
        weights: Float[Tensor, "b q h l p"],
        shapes: Shapes,
        framed_length: int,
    ) -> tuple[Int32[Tensor, "b q h 4 l p"], Float[Tensor, "b q h 4 l p"]]:
        sizes = map_sizes(shapes, locations)
        # Pixel centres are whole numbers; at -2 and at the size both neighbours lie in the frame.
        pixels = (locations * sizes).sub_(0.5).clamp_(min=-FRAME).minimum(sizes)
        low = pixels.floor()
        right, down = pixels.sub_(low).unbind(-1)
        lower = weights * down
        upper = weights - lower
        upper_right, lower_right = upper * right, lower * right
        shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=3)
        rows = _rows(low, shapes, framed_length)
        ctx.save_for_backward(weights, right, down, sizes)
        ctx.mark_non_differentiable(rows)
        return rows, shares

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, _: None, of_shares: Float[Tensor, "b q h 4 l p"]) -> tuple[Tensor, Tensor, None, None]:
        weights, right, down, sizes = ctx.saved_tensors
        upper_left, upper_right, lower_left, lower_right = of_shares.unbind(3)
        upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
        upper = torch.addcmul(upper_left, upper_slope, right)
        of_down = torch.addcmul(lower_left, lower_slope, right).sub_(upper)
        of_right = torch.addcmul(upper_slope, lower_slope.sub_(upper_slope), down)
        of_weights = torch.addcmul(upper, of_down, down)
        of_locations = torch.stack([of_right.mul_(weights), of_down.mul_(weights)], dim=-1).mul_(sizes)
        return of_locations, of_weights, None, None


def _rows(low: Float[Tensor, "b q h l p 2"], shapes: Shapes, framed_length: int) -> Int32[Tensor, "b q h 4 l p"]:
    """Rows of the framed table at pixels (x, y) and at their right, lower and lower right neighbours."""
    batch, _, heads, maps, points, _ = low.shape
    strides = np.array([width + FRAME for _, width in shapes])[:, None].repeat(points, 1)
    lengths = np.array([(height + 2 * FRAME) * (width + FRAME) for height, width in shapes])
    first = (lengths.cumsum() - lengths)[:, None] + FRAME * strides + FRAME
    first = first * heads + np.arange(heads)[:, None, None]
    steps = np.stack([np.zeros((maps, points), int), np.ones((maps, points), int), strides, strides + 1]) * heads
    image = np.arange(batch).reshape(-1, 1, 1, 1, 1) * (framed_length * heads)

    def constant(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.int32))

    column, row = low.int().unbind(-1)
    own = (row * constant(strides * heads)).add_(column, alpha=heads).add_(constant(first))
    return (own.add_(constant(image)) if batch > 1 else own)[:, :, :, None] + constant(steps)


def map_sizes(shapes: Shapes, locations: Float[Tensor, "b q h l p 2"]) -> Float[Tensor, "l p 2"]:
    """Width and height of every map, for each of its points, in the type and on the device of `locations`."""
    # Filled in on the device: a copy from the host would wait for all that a GPU has still to do.
    sides = [locations.new_full((), side) for height, width in shapes for side in (width, height)]
    return torch.stack(sides).view(-1, 1, 2).expand(-1, locations.shape[4], -1).contiguous()


class _ScatterGradient(torch.autograd.Function):
    """The bags as they are, with a gradient for the table.

    `embedding_bag` has one, but sorts all rows for it; the transpose of a sparse matrix adds them up as they come, in a
    third of the time.
    """

    @staticmethod
    def forward(ctx: Any, bags: Tensor, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows, weights)
        ctx.table_rows = len(table)
        return bags.view_as(bags)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_bags: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, weights = ctx.saved_tensors
        bounds = np.arange(0, rows.numel() + 1, rows.shape[1], dtype=np.int32)
        entries = (weights.numpy().ravel(), rows.numpy().ravel(), bounds)
        scattered = csc_array(entries, shape=(ctx.table_rows, len(rows))) @ of_bags.contiguous().numpy()
        return of_bags, torch.from_numpy(scattered), None, None
