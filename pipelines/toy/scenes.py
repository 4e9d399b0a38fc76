"""Drawn scenes: objects made of named parts, on textured ground, hiding one another.

One description of each object serves all seven datasets; what a dataset calls it is `names.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int32, UInt8

Polygon = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class PartShape:
    """One part of an object in the object's unit square (x right, y down); several polygons make several parts."""

    name: str
    polygons: tuple[Polygon, ...]
    shade: float  # Times the object's colour: parts differ in brightness,
    tint: tuple[int, int, int] = (0, 0, 0)  # and some have a colour of their own on top.


@dataclass(frozen=True)
class ObjectShape:
    """One class of objects; parts are painted in order."""

    name: str
    colour: tuple[int, int, int]
    aspect: float  # Width over height.
    parts: tuple[PartShape, ...]


def _circle(x: float, y: float, radius: float, aspect: float = 1.0) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return [(x + radius * float(np.cos(a)), y + radius * aspect * float(np.sin(a))) for a in angles]


OBJECTS = {
    shape.name: shape
    for shape in (
        ObjectShape(
            "car",
            (200, 40, 40),
            1.8,
            (
                PartShape(
                    "body",
                    ([(0, 0.5), (0.16, 0.42), (0.3, 0.05), (0.7, 0.05), (0.84, 0.42), (1, 0.5), (1, 0.82), (0, 0.82)],),
                    1.0,
                ),
                PartShape("window", ([(0.24, 0.4), (0.35, 0.12), (0.65, 0.12), (0.77, 0.4)],), 0.6, (40, 110, 140)),
                PartShape("door", ([(0.4, 0.45), (0.64, 0.45), (0.64, 0.78), (0.4, 0.78)],), 0.62),
                PartShape("wheel", (_circle(0.2, 0.8, 0.13, 1.6), _circle(0.8, 0.8, 0.13, 1.6)), 0.1, (25, 25, 25)),
            ),
        ),
        ObjectShape(
            "dog",
            (150, 95, 45),
            1.35,
            (
                PartShape("tail", ([(0, 0.05), (0.07, 0), (0.24, 0.38), (0.14, 0.48)],), 0.55),
                PartShape(
                    "leg",
                    (
                        [(0.14, 0.55), (0.27, 0.55), (0.25, 1), (0.14, 1)],
                        [(0.57, 0.55), (0.7, 0.55), (0.72, 1), (0.61, 1)],
                    ),
                    0.7,
                ),
                PartShape("torso", ([(0.12, 0.34), (0.72, 0.3), (0.74, 0.62), (0.4, 0.56), (0.12, 0.66)],), 1.0),
                PartShape(
                    "head", ([(0.64, 0.1), (0.78, 0.02), (0.86, 0.12), (1, 0.28), (0.95, 0.44), (0.68, 0.46)],), 1.3
                ),
            ),
        ),
        ObjectShape(
            "bird",
            (235, 195, 40),
            1.25,
            (
                PartShape("tail", ([(0, 0.5), (0.3, 0.5), (0.28, 0.68), (0.03, 0.82)],), 0.6),
                PartShape("torso", (_circle(0.5, 0.62, 0.3, 0.8),), 1.0),
                PartShape("head", (_circle(0.84, 0.42, 0.16, 1.2),), 1.1, (0, -70, -20)),
                PartShape(
                    "wing",
                    ([(0.3, 0.62), (0.34, 0.3), (0.6, 0), (0.52, 0.32), (0.62, 0.62), (0.46, 0.7)],),
                    0.5,
                    (0, 20, 60),
                ),
            ),
        ),
        ObjectShape(
            "bottle",
            (40, 150, 70),
            0.45,
            (
                PartShape("body", ([(0.1, 0.45), (0.34, 0.26), (0.66, 0.26), (0.9, 0.45), (0.9, 1), (0.1, 1)],), 1.0),
                PartShape("cap", ([(0.3, 0), (0.7, 0), (0.7, 0.26), (0.3, 0.26)],), 0.5, (90, 0, 90)),
            ),
        ),
        ObjectShape(
            "aeroplane",
            (190, 195, 215),
            1.6,
            (
                PartShape("tail", ([(0, 0.12), (0.1, 0.12), (0.26, 0.46), (0.06, 0.5)],), 0.6, (0, 0, 50)),
                PartShape(
                    "body",
                    ([(0.02, 0.46), (0.2, 0.4), (0.85, 0.4), (1, 0.5), (0.85, 0.6), (0.2, 0.6), (0.02, 0.54)],),
                    1.0,
                ),
                PartShape(
                    "wing",
                    (
                        [(0.42, 0.54), (0.62, 0.54), (0.46, 1), (0.3, 1)],
                        [(0.42, 0.46), (0.62, 0.46), (0.46, 0), (0.3, 0)],
                    ),
                    0.75,
                ),
            ),
        ),
        ObjectShape(
            "chair",
            (125, 60, 150),
            0.75,
            (
                PartShape(
                    "leg",
                    (
                        [(0.06, 0.6), (0.22, 0.6), (0.18, 1), (0.04, 1)],
                        [(0.78, 0.6), (0.94, 0.6), (0.96, 1), (0.82, 1)],
                    ),
                    0.6,
                ),
                PartShape("back", ([(0, 0), (0.22, 0), (0.26, 0.55), (0.04, 0.55)],), 0.85),
                PartShape("seat", ([(0.02, 0.5), (1, 0.5), (0.94, 0.68), (0.06, 0.68)],), 1.2),
            ),
        ),
        ObjectShape(
            "boat",
            (235, 130, 35),
            1.15,
            (
                PartShape("sail", ([(0.4, 0), (0.47, 0), (0.95, 0.58), (0.4, 0.58)],), 1.0, (20, 100, 190)),
                PartShape("hull", ([(0, 0.64), (1, 0.64), (0.86, 1), (0.14, 1)],), 0.9),
            ),
        ),
    )
}

# Upper and lower half of a scene, with their colours.
SKY = ("sky", (140, 185, 235))
GROUNDS = (("grass", (90, 150, 60)), ("road", (105, 105, 110)), ("sea", (35, 80, 150)))


@dataclass(frozen=True)
class Drawn:
    """One object of a scene: what of it is visible, and of its parts."""

    name: str
    mask: Bool[np.ndarray, "h w"]
    parts: tuple[tuple[str, Bool[np.ndarray, "h w"]], ...]


@dataclass(frozen=True)
class Scene:
    """A picture with everything that is true of it.  Masks hold visible pixels; each has at least `MIN_PIXELS`."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    objects: tuple[Drawn, ...]
    stuff: tuple[tuple[str, Bool[np.ndarray, "h w"]], ...]


MIN_PIXELS = 20  # A part or object of which less is visible is not annotated, as annotators would not.
MIN_VISIBLE = 0.3  # Nor is an object of which less than this share is visible.


def draw_scene(rng: np.random.Generator, names: Sequence[str], num_objects: int) -> Scene:
    """A scene of `num_objects` objects, each of a class drawn from `names`; sides of 112 to 160 pixels."""
    height, width = (int(side) for side in rng.integers(112, 161, 2))
    image, ground = _background(rng, height, width)
    owner = np.full((height, width), -1, np.int32)  # Which object a pixel shows,
    part_of = np.full((height, width), -1, np.int32)  # and which of all painted parts.
    painted: list[tuple[int, str]] = []
    full_areas = []
    shapes = [OBJECTS[str(rng.choice(list(names)))] for _ in range(num_objects)]
    for number, shape in enumerate(shapes):
        full_areas.append(_paint(rng, shape, number, image, owner, part_of, painted))
    noise = rng.normal(0, 7, (height, width, 1)) + rng.normal(0, 4, (height, width, 3))
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    objects = []
    for number, shape in enumerate(shapes):
        mask = owner == number
        if mask.sum() < max(MIN_PIXELS, MIN_VISIBLE * full_areas[number]):
            continue
        masks = [(name, part_of == i) for i, (of, name) in enumerate(painted) if of == number]
        objects.append(Drawn(shape.name, mask, tuple((n, m) for n, m in masks if m.sum() >= MIN_PIXELS)))
    covered = np.zeros((height, width), bool)
    for drawn in objects:
        covered |= drawn.mask
    stuff = [(name, mask & ~covered & (owner < 0)) for name, mask in ground]
    return Scene(image, tuple(objects), tuple((n, m) for n, m in stuff if m.sum() >= MIN_PIXELS))


def _background(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, list[tuple[str, Bool[np.ndarray, "h w"]]]]:
    """Sky over one kind of ground, with a bent horizon and a coarse texture."""
    name, colour = GROUNDS[rng.integers(len(GROUNDS))]
    x = np.arange(width)
    bend = rng.uniform(2, 7) * np.sin(x / rng.uniform(12, 30) + rng.uniform(0, 6))
    horizon = rng.uniform(0.3, 0.6) * height + bend
    is_ground = np.arange(height)[:, None] >= horizon[None]
    image = np.where(is_ground[..., None], colour, SKY[1]).astype(np.float64)
    texture = cv2.resize(rng.normal(0, 14, (height // 6, width // 6)), (width, height), interpolation=cv2.INTER_CUBIC)
    image += texture[..., None] + rng.normal(0, 8, 3)
    return image, [(SKY[0], ~is_ground), (name, is_ground)]


def _paint(
    rng: np.random.Generator,
    shape: ObjectShape,
    number: int,
    image: np.ndarray,
    owner: Int32[np.ndarray, "h w"],
    part_of: Int32[np.ndarray, "h w"],
    painted: list[tuple[int, str]],
) -> int:
    """Paint one object over what is there; gives the number of its pixels before others hide some."""
    height, width = owner.shape
    size = rng.uniform(42, 92)
    sides = np.array([size * shape.aspect**0.5, size / shape.aspect**0.5])
    centre = rng.uniform([0.2 * width, 0.25 * height], [0.8 * width, 0.8 * height])
    angle = rng.normal(0, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    mirror = rng.random() < 0.5
    colour = np.array(shape.colour) * rng.uniform(0.85, 1.1) + rng.normal(0, 10, 3)
    whole = np.zeros((height, width), np.uint8)
    for part in shape.parts:
        for polygon in part.polygons:
            points = np.array(polygon, np.float64) - 0.5
            if mirror:
                points[:, 0] *= -1
            points = (points * sides) @ turn.T + centre
            inside = np.zeros((height, width), np.uint8)
            cv2.fillPoly(inside, [np.round(points * 16).astype(np.int32)], 1, shift=4)
            mask = inside.astype(bool)
            image[mask] = colour * part.shade + part.tint
            owner[mask], part_of[mask] = number, len(painted)
            painted.append((number, part.name))
            whole |= inside
    return int(whole.sum())
