"""Files of weights that are written from the tensors' own memory are those that the safetensors library writes."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor

from semsam.model.weight_files import Fingerprint, safetensors_buffers

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
MANY = {f"{dtype}": torch.arange(5).to(dtype) for dtype in (*TYPES, torch.int8, torch.uint8, torch.bool)}


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"one": torch.tensor(3.0)},
        {"none": torch.zeros(0, 4), "odd": torch.ones(3, dtype=torch.bool)},
        {"é ü\n\"'": torch.randn(2, 3), "b": torch.randn(7)},
        {"b": torch.randn(2), "a": torch.randn(3), "c:0": torch.randn(1)},
        {"turned": torch.arange(6.0).view(2, 3).T, "trained": torch.nn.Parameter(torch.ones(2))},
        MANY,
    ],
)
@pytest.mark.parametrize("metadata", [None, {"crc32": '{"a": 1}'}])
def test_the_bytes_are_the_librarys(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    buffers = safetensors_buffers(tensors, metadata)
    assert b"".join(buffers) == expected
    assert Fingerprint.of(buffers) == Fingerprint.of(expected)


def test_nothing_is_copied() -> None:
    tensor = torch.zeros(4)
    *_, buffer = safetensors_buffers({"a": tensor})
    tensor.fill_(1)
    assert bytes(buffer) == torch.ones(4).numpy().tobytes()
