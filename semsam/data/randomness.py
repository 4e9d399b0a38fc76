"""Random draws that depend on what they are for, and on nothing else.

Every draw is keyed by (seed, global sample index, purpose, layer), never by worker, process or time, so a run gives the
same losses on any number of workers and after any restart.
"""

from __future__ import annotations

import hashlib

import numpy as np

PURPOSES = (
    "augmentation",
    "prompts",
    "matcher_points",
    "loss_points",
    "denoising",
    "drop_path",
    "templates",
    "plan",
    "evaluation",
)


def random_key(seed: int, sample: int, purpose: str, layer: int = 0) -> int:
    """A 63-bit key for one use of randomness; `purpose` is one of `PURPOSES`."""
    if purpose not in PURPOSES:
        raise ValueError(f"unknown purpose {purpose!r}, one of {PURPOSES}")
    text = f"{seed}/{sample}/{purpose}/{layer}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, sample: int, purpose: str, layer: int = 0) -> np.random.Generator:
    """A numpy generator for one use of randomness."""
    return np.random.Generator(np.random.Philox(key=random_key(seed, sample, purpose, layer)))
