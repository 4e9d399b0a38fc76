from __future__ import annotations

import pytest
import torch

from semsam.ops.boxes import cxcywh_to_xyxy, generalized_iou, pairwise_generalized_iou, xyxy_to_cxcywh


def test_formats_invert_each_other() -> None:
    boxes = torch.rand(7, 3, 4)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)
    assert cxcywh_to_xyxy(torch.tensor([4.0, 3.0, 2.0, 4.0])).tolist() == [3.0, 1.0, 5.0, 5.0]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # The hull is the union.
        ((0, 0, 1, 1), (1, 1, 2, 2), -0.5),  # Touching at a corner: hull 4, union 2.
        ((0, 0, 1, 1), (3, 0, 4, 1), -0.5),
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),  # One inside the other.
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # Two points: neither 1 nor NaN.
    ],
)
def test_generalized_iou_of_known_pairs(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    first, second = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert generalized_iou(first, second).item() == pytest.approx(expected, abs=2e-6)
    assert generalized_iou(second, first).item() == pytest.approx(expected, abs=2e-6)


def test_pairwise_is_elementwise_of_every_pair() -> None:
    a, b = cxcywh_to_xyxy(torch.rand(2, 5, 4)), cxcywh_to_xyxy(torch.rand(2, 3, 4))
    every = pairwise_generalized_iou(a, b)
    assert every.shape == (2, 5, 3)
    for i in range(5):
        torch.testing.assert_close(every[:, i], generalized_iou(a[:, i : i + 1], b))
    assert pairwise_generalized_iou(a[:, :0], b).shape == (2, 0, 3)


def test_gradient_of_a_degenerate_box_is_finite() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, -0.1, 0.2]], requires_grad=True)
    generalized_iou(cxcywh_to_xyxy(boxes), torch.tensor([0.2, 0.2, 0.4, 0.4])).sum().backward()
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()
