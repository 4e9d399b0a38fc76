"""The Triton kernels equal the plain form in value and gradient, on a GPU or, with TRITON_INTERPRET=1, in Triton's
interpreter on a CPU (which is how the unit tests run this file)."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from semsam.ops import deformable_attention_triton  # noqa: E402
from semsam.ops.deformable_attention import (  # noqa: E402
    AttentionForm,
    DeformableAttention,
    Shapes,
    attention_form,
    map_sizes,
    sampled_attention,
)
from semsam.ops.deformable_attention_triton import triton_attention  # noqa: E402

pytestmark = pytest.mark.gpu
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")
DEVICE = "cpu" if INTERPRETED else "cuda"
if INTERPRETED:  # A program takes the interpreter as long, however much it holds; some cases still take several.
    deformable_attention_triton.BLOCK *= 4
SHAPES = ((5, 7), (3, 4), (2, 2), (1, 1))


def inputs(
    shapes: Shapes = SHAPES,
    batch: int = 2,
    queries: int = 3,
    heads: int = 2,
    depth: int = 16,
    points: int = 4,
    spread: float = 0.6,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Values, locations (beyond the maps for a `spread` above one half) and weights, all with gradients."""
    random = torch.Generator().manual_seed(batch * 1000 + queries * 100 + depth)
    exact = torch.promote_types(dtype, torch.float32)
    values = torch.randn(batch, sum(h * w for h, w in shapes), heads, depth, generator=random)
    places = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=random, dtype=exact)
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=random, dtype=exact)
    tensors = (values.to(dtype), (places - 0.5) * 2 * spread + 0.5, weights)
    return [tensor.to(DEVICE).requires_grad_() for tensor in tensors]


def attended_and_gradients(form: AttentionForm, tensors: list[Tensor], shapes: Shapes) -> list[Tensor]:
    attended = form(tensors[0], shapes, tensors[1], tensors[2])
    upstream = torch.arange(attended.numel(), device=DEVICE).sin().view(attended.shape).to(attended.dtype)
    return [attended, *torch.autograd.grad(attended, tensors, upstream)]


def assert_equal_to_the_plain_form(tensors: list[Tensor], shapes: Shapes) -> None:
    plain = attended_and_gradients(sampled_attention, tensors, shapes)
    found = attended_and_gradients(triton_attention, tensors, shapes)
    for expected, ours in zip(plain, found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("spread", [0.4, 0.6, 3.0], ids=["inside", "over the edges", "mostly outside"])
@pytest.mark.parametrize(("batch", "queries"), [(1, 1), (3, 5)])
def test_the_kernel_equals_the_plain_form(batch: int, queries: int, spread: float) -> None:
    assert_equal_to_the_plain_form(inputs(batch=batch, queries=queries, spread=spread), SHAPES)


@pytest.mark.parametrize("depth", [1, 16, 20, 32, 33, 48, 64])
def test_heads_may_have_any_number_of_channels(depth: int) -> None:
    assert_equal_to_the_plain_form(inputs(depth=depth), SHAPES)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("points", [1, 3, 5])
def test_any_number_of_heads_and_points(heads: int, points: int) -> None:
    assert_equal_to_the_plain_form(inputs(heads=heads, points=points), SHAPES)


@pytest.mark.parametrize(
    "shapes", [((1, 1),) * 4, ((1, 9), (9, 1), (1, 1), (2, 3)), ((6, 5),), ((1, 1),), SHAPES[:3]], ids=str
)
def test_maps_may_be_single_pixels_and_fewer_than_four(shapes: Shapes) -> None:
    assert_equal_to_the_plain_form(inputs(shapes), shapes)


def test_places_on_borders_and_pixel_centres() -> None:
    shapes = ((8, 4), (4, 4), (2, 1), (1, 1))  # Powers of two: each form finds these places without rounding.
    values, locations, weights = inputs(shapes, queries=16)
    places = torch.randint(-4, 21, locations.shape, generator=torch.Generator().manual_seed(0)) / 16
    assert_equal_to_the_plain_form([values, places.to(DEVICE).requires_grad_(), weights], shapes)


@pytest.mark.parametrize("distance", [1e6, -1e6, 1e30, -1e30])
def test_places_outside_of_all_maps_give_zeros_and_no_gradient(distance: float) -> None:
    values, locations, weights = inputs()
    tensors = [values, (locations + distance).detach().requires_grad_(), weights]
    for found in attended_and_gradients(triton_attention, tensors, SHAPES):
        assert found.count_nonzero() == 0
        assert found.isfinite().all()


@pytest.mark.parametrize(("batch", "queries"), [(2, 0), (0, 3)])
def test_no_queries_and_no_images_give_empty_answers(batch: int, queries: int) -> None:
    tensors = inputs(batch=batch, queries=queries)
    found = attended_and_gradients(triton_attention, tensors, SHAPES)
    assert found[0].shape == (batch, queries, 2 * 16)
    for gradient, tensor in zip(found[1:], tensors, strict=True):
        assert gradient.shape == tensor.shape
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_exact_result_rounded_once(dtype: torch.dtype) -> None:
    tensors = inputs(dtype=dtype, queries=5, depth=32)
    exact = attended_and_gradients(
        sampled_attention, [tensor.detach().double().requires_grad_() for tensor in tensors], SHAPES
    )
    found = attended_and_gradients(triton_attention, tensors, SHAPES)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32]
    # The upstream gradient was rounded as well, so gradients may be off by one more rounding, of every channel.
    step = torch.finfo(dtype).eps
    for ours, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=step, atol=step * expected.abs().max().item())


def test_gradients_are_those_of_the_values() -> None:
    shapes = ((2, 3), (1, 1))
    tensors = inputs(shapes, depth=3, points=1, dtype=torch.float64)

    def attend(values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return triton_attention(values, shapes, locations, weights)

    # The gradient of the values has no fixed order of sums on a GPU.
    assert torch.autograd.gradcheck(attend, tensors, eps=1e-7, atol=1e-5, nondet_tol=1e-10, fast_mode=True)


def test_tensors_may_lie_in_memory_in_any_order() -> None:
    tensors = [tensor.detach() for tensor in inputs()]
    expected = triton_attention(tensors[0], SHAPES, *tensors[1:])
    scattered = [tensor.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for tensor in tensors]
    found = triton_attention(scattered[0], SHAPES, *scattered[1:])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found.sum().backward()  # The upstream gradient is one number, expanded.
    plain = torch.autograd.grad(sampled_attention(scattered[0], SHAPES, *scattered[1:]).sum(), scattered)
    for tensor, gradient in zip(scattered, plain, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=2e-5)


def test_under_autocast_the_module_is_the_same_with_either_form() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(32, 2, len(SHAPES), 4, form=triton_attention).to(DEVICE)
    torch.nn.init.normal_(attention.offsets.weight)
    tokens = torch.randn(2, sum(h * w for h, w in SHAPES), 32, device=DEVICE)
    queries, references = torch.randn(2, 6, 32, device=DEVICE), torch.rand(2, 6, 4, device=DEVICE)
    answers, gradients = [], []
    for form in (triton_attention, sampled_attention):
        attention.form = form
        with torch.autocast(DEVICE, torch.bfloat16):
            answers.append(attention(queries, references, tokens, SHAPES))
        gradients.append(torch.autograd.grad(answers[-1].float().square().sum(), list(attention.parameters())))
    assert answers[0].dtype == torch.bfloat16
    for ours, plain in zip([answers[0], *gradients[0]], [answers[1], *gradients[1]], strict=True):
        assert (ours - plain).abs().max() <= 0.01 * plain.abs().max()


def test_the_operator_keeps_torchs_rules() -> None:
    values, locations, weights = inputs()
    sizes = [side for shape in SHAPES for side in shape]
    scattered = locations.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (values, scattered, weights, sizes)
    torch.library.opcheck(torch.ops.semsam.deformable_attention.default, arguments, test_utils=checks)
    arguments = (torch.randn(2, 3, 2 * 16, device=DEVICE), *(x.detach() for x in arguments[:3]), sizes)
    torch.library.opcheck(torch.ops.semsam.deformable_attention_backward.default, arguments, test_utils=checks)


def test_torch_compile_takes_the_kernel_whole() -> None:
    compiled = torch.compile(
        lambda values, locations, weights: triton_attention(values, SHAPES, locations, weights) * 2,
        fullgraph=True,
        backend="aot_eager" if INTERPRETED else "inductor",
    )
    tensors = inputs()
    expected = attended_and_gradients(triton_attention, tensors, SHAPES)
    found = attended_and_gradients(lambda values, _, *others: compiled(values, *others) / 2, tensors, SHAPES)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_forward_repeats_bit_for_bit_and_a_deterministic_backward_is_refused() -> None:
    tensors = inputs(queries=10)
    first, second = (triton_attention(tensors[0], SHAPES, *tensors[1:]) for _ in range(2))
    assert torch.equal(first, second)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="no deterministic form"):
            first.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_shapes_that_do_not_fit_are_refused() -> None:
    values, locations, weights = inputs()
    with pytest.raises(ValueError, match="do not make up 52 tokens"):
        triton_attention(values, ((5, 7), (3, 4), (2, 2), (1, 2)), locations, weights)
    with pytest.raises(ValueError, match="4 at most"):
        triton_attention(values, (*SHAPES, (1, 1)), locations, weights)


@on_a_gpu
def test_a_gpu_takes_the_kernel() -> None:
    assert attention_form(torch.device("cuda")) is triton_attention


@on_a_gpu
def test_the_kernel_equals_the_plain_form_at_the_models_size() -> None:
    shapes = ((80, 120), (40, 60), (20, 30), (10, 15))
    values, locations, weights = inputs(shapes, queries=12_750, heads=8, depth=32, spread=0.52)
    # At pixel centres the gradient of a place jumps, and rounding decides on the side: these places weigh nothing.
    pixels = locations.detach() * map_sizes(shapes, locations) - 0.5
    clear = (pixels - pixels.round()).abs().amin(-1) > 1e-3
    tensors = [values, locations, (weights.detach() * clear).requires_grad_()]
    plain = attended_and_gradients(sampled_attention, tensors, shapes)
    found = attended_and_gradients(triton_attention, tensors, shapes)
    for expected, ours in zip(plain, found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@on_a_gpu
def test_more_than_two_to_the_31_numbers() -> None:
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GB of GPU memory")
    shapes = ((128, 128), (64, 64), (32, 32), (16, 16))
    values = torch.zeros(400, 21_760, 8, 32, dtype=torch.bfloat16, device=DEVICE)
    assert values.numel() > 2**31
    one, locations, weights = inputs(shapes, batch=1, heads=8, depth=32, dtype=torch.bfloat16)
    values[-1] = one[0].detach()
    many = [
        values.requires_grad_(),
        *(x.detach().expand(400, *x.shape[1:]).clone().requires_grad_() for x in (locations, weights)),
    ]
    attended = triton_attention(many[0], shapes, *many[1:])
    expected = attended_and_gradients(triton_attention, [one, locations, weights], shapes)
    upstream = torch.zeros_like(attended)
    upstream[-1] = torch.arange(expected[0].numel(), device=DEVICE).sin().view(expected[0].shape[1:])
    found = [attended, *torch.autograd.grad(attended, many, upstream)]
    for ours, alone in zip(found, expected, strict=True):
        torch.testing.assert_close(ours[-1:], alone)
