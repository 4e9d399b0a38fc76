from __future__ import annotations

import numpy as np
import pytest
import torch

from semsam.ops.boxes import (
    cxcywh_to_xyxy,
    generalized_iou,
    non_maximum_suppression,
    pairwise_generalized_iou,
    xyxy_to_cxcywh,
)


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


def plain_suppression(boxes: np.ndarray, scores: np.ndarray, max_iou: float, classes: np.ndarray) -> list[int]:
    """Every box against every box kept so far, one pair at a time."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        for j in kept:
            sides = [min(boxes[i][a + 2], boxes[j][a + 2]) - max(boxes[i][a], boxes[j][a]) for a in (0, 1)]
            shared = max(sides[0], 0) * max(sides[1], 0)
            areas = [(boxes[n][2] - boxes[n][0]) * (boxes[n][3] - boxes[n][1]) for n in (i, j)]
            if classes[i] == classes[j] and shared > max_iou * (sum(areas) - shared):
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("max_iou", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_suppression_keeps_what_the_plain_way_keeps(num_classes: int, max_iou: float) -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 20, (120, 2))
    boxes = np.concatenate([low, low + rng.integers(0, 20, (120, 2))], axis=1).astype(float)  # Some have no area.
    scores = rng.integers(0, 10, 120) / 10  # Many ties.
    classes = rng.integers(0, num_classes, 120)
    expected = plain_suppression(boxes, scores, max_iou, classes)
    assert non_maximum_suppression(boxes, scores, max_iou, classes).tolist() == expected
    if num_classes == 1:
        assert non_maximum_suppression(boxes, scores, max_iou).tolist() == expected
    assert 0 < len(expected) <= 120


def test_suppression_of_known_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 6.9], [20, 20, 30, 30]])
    scores = np.array([0.5, 0.4, 0.6, 0.1])
    assert non_maximum_suppression(boxes, scores, 0.7).tolist() == [2, 0, 3]  # 0.69, but 6.9 / 7 is more.
    assert non_maximum_suppression(boxes[:2], scores[:2], 0.7).tolist() == [0, 1]  # Exactly 0.7 is not more than it.
    assert non_maximum_suppression(boxes[:0], scores[:0], 0.7).tolist() == []
