"""Keyed random numbers: uniform, and of nobody's neighbours."""

from __future__ import annotations

import torch

from semsam.ops.keyed_random import keyed_uniform

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """One output of the published generator, in Python's own integers."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


def test_numbers_are_those_of_splitmix64() -> None:
    keys = [0, 1, 2**62, 1234567]
    found = keyed_uniform(torch.tensor(keys), 3)
    for column, key in enumerate(keys):
        for step in range(3):
            expected = splitmix64((key + (step + 1) * 0x9E3779B97F4A7C15) & MASK) >> 40
            assert found[step, column].item() == expected / 2**24


def test_a_key_gives_the_same_numbers_in_any_batch() -> None:
    keys = torch.arange(10) * 7919
    torch.testing.assert_close(keyed_uniform(keys, 4)[:, 3:5], keyed_uniform(keys[3:5], 4), rtol=0, atol=0)


def test_numbers_are_uniform() -> None:
    numbers = keyed_uniform(torch.arange(20_000), 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    histogram = torch.histc(numbers, 10, 0, 1) / numbers.numel()
    assert (histogram - 0.1).abs().max() < 0.01
    assert torch.corrcoef(numbers)[0, 1].abs() < 0.02
