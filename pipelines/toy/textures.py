"""The textures that lie over the paints of the toy world: 256 x 256 pixels with values around [-1, 1]."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from jaxtyping import Float32

SIZE = 256

Texture = Float32[np.ndarray, "256 256"]


@cache
def textures() -> dict[str, Texture]:
    """Every texture by the name that `shapes.Paint` knows it by; do not write into them."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    wave = 2 * np.pi
    row = y // 10
    bricks = np.where((y % 10 < 2) | ((x + 10 * (row % 2)) % 20 < 2), -1.0, 0.2)
    planks = np.where((y % 14 < 2) | ((x + 23 * (y // 14 % 3)) % 64 < 2), -1.0, 0.15)
    patterns = {
        "plain": np.zeros_like(x),
        "lines": np.sin(wave * x / 6),
        "bars": np.sin(wave * y / 7),
        "slants": np.sin(wave * (x + y) / 10),
        "checks": np.sign(np.sin(wave * x / 14)) * np.sign(np.sin(wave * y / 14)),
        "dots": np.where(np.cos(wave * x / 9) + np.cos(wave * y / 9) > 1, 1.0, -0.3),
        "waves": np.sin(wave * (y + 2 * np.sin(wave * x / 32)) / 8),
        "bricks": bricks,
        "planks": planks,
        "speckles": _noise(1.2),
        "clouds": _noise(12),
    }
    return {name: pattern.astype(np.float32) for name, pattern in patterns.items()}


def _noise(grain: float) -> Float32[np.ndarray, "256 256"]:
    """Random blots some `grain` pixels wide."""
    noise = np.random.default_rng(0).normal(size=(SIZE, SIZE)).astype(np.float32)
    blots = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(blots / (2 * blots.std()), -1, 1)
