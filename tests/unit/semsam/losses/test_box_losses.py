from __future__ import annotations

import torch

from semsam.losses.box_losses import box_costs, box_losses


def test_a_perfect_box_costs_nothing() -> None:
    boxes = torch.rand(5, 4) + 0.1
    l1, giou = box_losses(boxes, boxes)
    assert not l1.any()
    torch.testing.assert_close(
        giou, torch.zeros(5), rtol=0, atol=2e-4
    )  # The epsilon in the union shows in small boxes.


def test_costs_are_the_losses_of_every_pair() -> None:
    predicted, targets = torch.rand(2, 5, 4), torch.rand(2, 3, 4)
    l1, negative_giou = box_costs(predicted, targets)
    for q in range(5):
        for m in range(3):
            expected_l1, expected_giou = box_losses(predicted[:, q], targets[:, m])
            torch.testing.assert_close(l1[:, q, m], expected_l1)
            torch.testing.assert_close(negative_giou[:, q, m], expected_giou - 1)
