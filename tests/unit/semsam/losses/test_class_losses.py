from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semsam.losses.class_losses import ClassBlock, class_costs, focal_losses


def obvious(logits: Tensor, block: ClassBlock) -> Tensor:
    """Layer by layer, query by query, name by name."""
    total = []
    for layer, queries in zip(logits, block.queries, strict=True):
        found = torch.zeros(())
        for row, query in enumerate(queries):
            for column, name in enumerate(range(block.names.start, block.names.stop)):
                if block.counted[row, column]:
                    p = layer[block.image, query, name].sigmoid()
                    is_positive = block.positive[row] == name
                    found = found + (-0.25 * (1 - p) ** 2 * p.log() if is_positive else -0.75 * p**2 * (1 - p).log())
        total.append(found)
    return torch.stack(total)


@pytest.fixture
def logits() -> Tensor:
    return (torch.randn((2, 3, 5, 8), generator=torch.Generator().manual_seed(0)) * 2).requires_grad_()


@pytest.fixture
def blocks() -> list[ClassBlock]:
    generator = torch.Generator().manual_seed(1)
    return [
        ClassBlock(
            0,
            torch.tensor([[0, 3], [4, 2]]),
            slice(2, 6),
            torch.tensor([4, -1]),
            torch.rand((2, 4), generator=generator) < 0.6,
        ),
        ClassBlock(
            2, torch.arange(5).expand(2, -1), slice(0, 8), torch.tensor([7, 0, -1, -1, 3]), torch.ones(5, 8) > 0
        ),
        ClassBlock(1, torch.arange(5).expand(2, -1), slice(3, 3), torch.full((5,), -1), torch.ones(5, 0) > 0),
    ]


def test_focal_loss_and_gradient_equal_the_formula(logits: Tensor, blocks: list[ClassBlock]) -> None:
    found, expected = focal_losses(logits, blocks), sum(obvious(logits, block) for block in blocks)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([0.3, 2.0])
    for mine, other in zip(
        torch.autograd.grad(found, [logits], weights), torch.autograd.grad(expected, [logits], weights), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_no_blocks_give_zero_with_a_gradient_of_zeros(logits: Tensor) -> None:
    loss = focal_losses(logits, [])
    (gradient,) = torch.autograd.grad(loss.sum(), [logits])
    assert loss.tolist() == [0, 0]
    assert not gradient.any()


def test_a_certain_right_answer_costs_nothing_and_a_certain_wrong_one_is_finite() -> None:
    block = ClassBlock(0, torch.zeros(1, 1, dtype=torch.int64), slice(0, 2), torch.tensor([0]), torch.ones(1, 2) > 0)
    right = torch.tensor([100.0, -100.0]).view(1, 1, 1, 2)
    assert focal_losses(right, [block]).item() == 0
    assert focal_losses(-right, [block]).item() == pytest.approx(100.0)


def test_cost_is_lowest_for_the_query_that_is_surest_of_the_name() -> None:
    logits = torch.tensor([[[3.0, -5.0], [-3.0, 5.0], [0.0, 0.0]]])
    cost = class_costs(logits, torch.tensor([[0, 1, -1]]))
    assert cost[0, :, 0].argsort().tolist() == [0, 2, 1]
    assert cost[0, :, 1].argsort().tolist() == [1, 2, 0]
    assert not cost[0, :, 2].any()
    assert class_costs(logits[..., :0], torch.tensor([[-1, -1]])).shape == (1, 3, 2)
