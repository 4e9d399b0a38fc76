"""A small model, an image batch and prompts that the tests of the model share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semsam.model.semantic_sam import SemanticSam


@pytest.fixture
def model() -> SemanticSam:
    """The debug model with weights that say something: initial boxes and offsets would hide what is not connected."""
    model = SemanticSam.untrained("debug")
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def boxes() -> Tensor:
    """Five prompts for each of three images."""
    return torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.2


@pytest.fixture
def is_box() -> Tensor:
    return torch.tensor([False, True, False, False, True]).expand(3, -1)
