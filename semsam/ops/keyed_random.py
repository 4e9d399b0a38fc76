"""Random numbers on the device that depend on a key and nothing else."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern as torch's int64 has it."""
    return value - (1 << 64) if value >> 63 else value


# splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
_STEP = _signed(0x9E3779B97F4A7C15)
_MIX = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def keyed_uniform(keys: Int64[Tensor, " b"], count: int) -> Float[Tensor, "{count} b"]:
    """`count` uniform numbers in [0, 1) for every key: whoever else is in the batch, on any kind of device."""
    steps = torch.arange(1, count + 1, device=keys.device)[:, None]
    state = keys + steps * _STEP
    for shift, factor in _MIX:
        state = (state ^ _shifted_right(state, shift)) * factor
    state = state ^ _shifted_right(state, 31)
    return _shifted_right(state, 40).float() * 2.0**-24


def _shifted_right(values: Int64[Tensor, "*n"], shift: int) -> Int64[Tensor, "*n"]:
    """Zeros come in from the left, as if the numbers had no sign."""
    return (values >> shift) & ((1 << (64 - shift)) - 1)
