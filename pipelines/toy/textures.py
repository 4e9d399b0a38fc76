"""The textures that lie over the paints of the toy world: 256 x 256 pixels with values around [-1, 1]."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32

SIZE = 256


@cache
def textures() -> tuple[dict[str, int], Float32[np.ndarray, "t 256 256"]]:
    """All textures in one array, not to be written into, and where in it each name is."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    turn = 2 * np.pi
    patterns = {
        "plain": np.zeros_like(x),
        "lines": np.sin(turn * x / 6),
        "bars": np.sin(turn * y / 7),
        "slants": np.sin(turn * (x + y) / 10),
        "checks": np.sign(np.sin(turn * x / 14)) * np.sign(np.sin(turn * y / 14)),
        "dots": np.where(np.cos(turn * x / 9) + np.cos(turn * y / 9) > 1, 1.0, -0.3),
        "waves": np.sin(turn * (y + 2 * np.sin(turn * x / 32)) / 8),
        "bricks": np.where((y % 10 < 2) | ((x + 10 * (y // 10 % 2)) % 20 < 2), -1.0, 0.2),
        "planks": np.where((y % 14 < 2) | ((x + 23 * (y // 14 % 3)) % 64 < 2), -1.0, 0.15),
        "speckles": _noise(1.2),
        "clouds": _noise(12),
    }
    return {name: i for i, name in enumerate(patterns)}, np.stack(list(patterns.values())).astype(np.float32)


def _noise(grain: float) -> Float32[np.ndarray, "256 256"]:
    """Random blots some `grain` pixels wide."""
    noise = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    blots = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(blots / (2 * blots.std()), -1, 1)
