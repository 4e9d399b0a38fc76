"""RowOrder depend on their key and on nothing else."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

from semsam.data.randomness import PURPOSES, generator, random_key


def test_the_same_key_gives_the_same_draws() -> None:
    assert generator(1, 2, "prompts").random(5).tolist() == generator(1, 2, "prompts").random(5).tolist()


def test_every_part_of_the_key_counts() -> None:
    keys = {
        random_key(seed, sample, purpose, layer)
        for seed, sample, purpose, layer in itertools.product(range(3), (-1, 0, 1, 11), PURPOSES, range(3))
    }
    assert len(keys) == 3 * 4 * len(PURPOSES) * 3


def test_numbers_are_not_run_together() -> None:
    assert random_key(1, 12, "plan") != random_key(11, 2, "plan")


def test_keys_fit_a_signed_integer_of_64_bits() -> None:
    assert all(0 <= random_key(0, sample, "loss_points") < 2**63 for sample in range(1000))


def test_keys_are_the_same_in_another_process() -> None:
    code = "from semsam.data.randomness import random_key; print(random_key(7, 123456789012, 'augmentation', 3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == random_key(7, 123456789012, "augmentation", 3)


def test_an_unknown_purpose_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown purpose 'noise'"):
        random_key(0, 0, "noise")
