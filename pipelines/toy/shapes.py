"""The eight kinds of toy things: the outlines of what each is made of, and how that is painted.

Outlines lie in the thing's own frame: x forwards, y down, the thing reaching from -1 to 1 along its longer side.  Few
shapes are discs and many are thin, bent, hollow or in pieces, so that the place of a click does not give its mask away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Outline = Float[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Paint:
    """A colour (hue in degrees, saturation and value in [0, 1]) and the name of a texture over it."""

    hue: float
    saturation: float
    value: float
    texture: str = "speckles"


@dataclass(frozen=True)
class Shape:
    """One outline; a second one inside it is a hole.  Shapes of one slot, painted in order, are one part."""

    slot: str  # What this is of the thing, one of a kind: "leg_1", "leg_2".
    outlines: tuple[Outline, ...]
    paint: Paint


def _car(rng: np.random.Generator) -> list[Shape]:
    s = rng.uniform(-0.1, 0.1)  # The cabin is further in front or behind.
    red, dark_red = Paint(2, 0.85, 0.8), Paint(350, 0.8, 0.52, "lines")
    glass, dark_glass = Paint(190, 0.35, 0.95, "slants"), Paint(200, 0.5, 0.62, "slants")
    wheels = (
        (1, -0.56, Paint(30, 0.1, 0.13), Paint(30, 0.1, 0.3, "plain")),
        (2, 0.56, Paint(245, 0.4, 0.3), Paint(245, 0.4, 0.5, "plain")),
    )
    body = [(-1, 0.2), (-1, -0.05), (-0.9, -0.14), (-0.62, -0.16), (-0.42 + s, -0.52), (0.25 + s, -0.52), (0.52, -0.14)]
    return [
        Shape("body", (_polygon(*body, (0.95, -0.06), (1, 0.2)),), red),
        Shape(
            "window_1", (_polygon((-0.52 + s, -0.15), (-0.36 + s, -0.45), (-0.1 + s, -0.45), (-0.1 + s, -0.15)),), glass
        ),
        Shape(
            "window_2", (_polygon((0 + s, -0.15), (0 + s, -0.45), (0.21 + s, -0.45), (0.42 + s, -0.15)),), dark_glass
        ),
        Shape("door", (_box(-0.16 + s, -0.1, 0.24 + s, 0.17),), dark_red),
        Shape("headlight", (_ellipse(0.86, 0.0, 0.17, 0.15),), Paint(52, 0.85, 1, "plain")),
        *(Shape(f"wheel_{i}", (_ellipse(x, 0.2, 0.26, 0.26),), rubber) for i, x, rubber, _ in wheels),
        *(Shape(f"wheel_{i}", (_ellipse(x, 0.2, 0.09, 0.09),), hub) for i, x, _, hub in wheels),
    ]


def _dog(rng: np.random.Generator) -> list[Shape]:
    step = rng.uniform(-0.12, 0.12, 4)
    nod = rng.uniform(-0.12, 0.1)
    coat, face, dark = Paint(26, 0.62, 0.58, "speckles"), Paint(30, 0.45, 0.8), Paint(16, 0.7, 0.28)
    fore, hind = Paint(34, 0.45, 0.85, "bars"), Paint(12, 0.6, 0.6, "bars")
    far_fore, far_hind = Paint(42, 0.55, 0.5, "bars"), Paint(4, 0.6, 0.36, "bars")
    tail = [(-0.55, -0.12), (-0.8, -0.2), (-0.95, -0.45), (-0.92, -0.75)]
    return [
        Shape("tail", (_stroke(tail, 0.23),), Paint(20, 0.75, 0.42, "lines")),
        Shape("leg_2", (_stroke([(0.14, 0), (0.12 + step[0], 0.72)], 0.25),), far_fore),
        Shape("leg_4", (_stroke([(-0.34, 0), (-0.3 + step[1], 0.72)], 0.25),), far_hind),
        Shape("torso", (_ellipse(-0.1, 0, 0.6, 0.27),), coat),
        Shape("leg_1", (_stroke([(0.32, 0.05), (0.34 + step[2], 0.78)], 0.28),), fore),
        Shape("leg_3", (_stroke([(-0.52, 0.05), (-0.54 + step[3], 0.78)], 0.28),), hind),
        Shape("head", (_ellipse(0.56, -0.4 + nod, 0.28, 0.25),), face),
        Shape("head", (_ellipse(0.82, -0.3 + nod, 0.19, 0.13),), face),
        Shape("head", (_ellipse(0.97, -0.35 + nod, 0.05, 0.06),), dark),
        Shape("head", (_ellipse(0.66, -0.48 + nod, 0.04, 0.04),), dark),
        Shape("ear", (_ellipse(0.42, -0.34 + nod, 0.16, 0.32, 15),), dark),
    ]


def _bird(rng: np.random.Generator) -> list[Shape]:
    lift = rng.choice([-0.75, -0.5, 0.1])  # Of the wing's tip.
    yellow, blue = Paint(47, 0.85, 0.92, "dots"), Paint(222, 0.75, 0.6, "lines")
    orange, brown = Paint(18, 0.95, 0.92, "plain"), Paint(12, 0.8, 0.55, "plain")
    legs, tip = ((1, -0.1, brown), (2, 0.16, orange)), rng.uniform(-0.1, 0.1)
    return [
        *(Shape(f"leg_{i}", (_stroke([(x, 0.3), (x - 0.02, 0.86)], 0.19),), paint) for i, x, paint in legs),
        *(Shape(f"leg_{i}", (_box(x - 0.04, 0.8, x + 0.18, 0.93),), paint) for i, x, paint in legs),
        Shape(
            "tail",
            (_polygon((-0.4, 0), (-1, 0.2 + tip), (-0.96, 0.5 + tip), (-0.35, 0.28)),),
            Paint(250, 0.5, 0.4, "bars"),
        ),
        Shape("torso", (_ellipse(-0.05, 0.08, 0.55, 0.32, -20),), yellow),
        Shape("head", (_ellipse(0.48, -0.32, 0.25, 0.24),), Paint(58, 0.55, 0.97)),
        Shape("head", (_ellipse(0.55, -0.38, 0.05, 0.05),), Paint(0, 0, 0.1, "plain")),
        Shape("beak", (_polygon((0.62, -0.54), (1, -0.28), (0.62, -0.1)),), orange),
        Shape("wing", (_polygon((0.22, -0.1), (0, lift * 0.6), (-0.75, lift), (-0.42, 0.05), (-0.3, 0.26)),), blue),
    ]


def _bottle(rng: np.random.Generator) -> list[Shape]:
    top = rng.uniform(-0.3, -0.1)  # Where the shoulders end.
    glass = Paint(158, 0.75, 0.5, "slants")
    body = _polygon((-0.32, 0.98), (-0.32, top), (-0.17, -0.5), (0.17, -0.5), (0.32, top), (0.32, 0.98))
    return [
        Shape("body", (body,), glass),
        Shape("neck", (_box(-0.17, -0.8, 0.17, -0.46),), Paint(135, 0.6, 0.72, "speckles")),
        Shape("cap", (_box(-0.22, -1, 0.22, -0.7),), Paint(338, 0.75, 0.85, "lines")),
        Shape("label", (_box(-0.32, 0.15, 0.32, 0.6),), Paint(45, 0.2, 0.95, "bars")),
    ]


def _chair(rng: np.random.Generator) -> list[Shape]:
    wood, low = Paint(284, 0.55, 0.55, "lines"), rng.uniform(0.85, 1)
    lean = rng.uniform(-0.1, 0.05)
    back = _polygon((-0.46 + lean, -1), (0.34 + lean, -1), (0.42, -0.05), (-0.42, -0.05))
    gap = _polygon((-0.28 + lean, -0.8), (0.18 + lean, -0.8), (0.22, -0.3), (-0.26, -0.3))
    legs = [
        ((-0.4, 0.1), (-0.4, low - 0.25)),
        ((0.36, 0.1), (0.37, low - 0.25)),
        ((-0.3, 0.2), (-0.33, low)),
        ((0.52, 0.2), (0.55, low)),
    ]
    return [
        *(
            Shape(f"leg_{i}", (_stroke(list(ends), 0.2),), Paint(262, 0.6, 0.25 if i < 3 else 0.45))
            for i, ends in enumerate(legs, 1)
        ),
        Shape("back", (back, gap), wood),
        Shape(
            "seat",
            (_polygon((-0.44, -0.1), (0.43, -0.1), (0.62, 0.24), (-0.38, 0.24)),),
            Paint(308, 0.5, 0.8, "checks"),
        ),
    ]


def _bicycle(rng: np.random.Generator) -> list[Shape]:
    pipe, wheels = (
        Paint(176, 0.85, 0.72, "plain"),
        ((1, -0.56, Paint(230, 0.15, 0.16)), (2, 0.56, Paint(80, 0.5, 0.36))),
    )
    high = rng.uniform(-0.42, -0.3)  # The saddle.
    crank, hub = (-0.08, 0.28), (-0.56, 0.28)
    saddle, steering, fork = (-0.26, high), (0.34, -0.3), (0.56, 0.28)
    pipes = [(hub, crank), (hub, saddle), (saddle, crank), (crank, steering), (saddle, steering), (fork, steering)]
    return [
        *(
            Shape(f"wheel_{i}", (_ellipse(x, 0.28, 0.44, 0.44), _ellipse(x, 0.28, 0.25, 0.25)), rubber)
            for i, x, rubber in wheels
        ),
        *(Shape("frame", (_stroke(list(ends), 0.11),), pipe) for ends in pipes),
        Shape("frame", (_ellipse(*crank, 0.13, 0.13),), Paint(200, 0.3, 0.55)),
        Shape(
            "saddle",
            (_polygon((-0.58, high - 0.2), (0, high - 0.14), (-0.06, high + 0.06), (-0.5, high + 0.12)),),
            Paint(20, 0.75, 0.4),
        ),
        Shape(
            "handlebar",
            (_stroke([(0.34, -0.28), (0.3, -0.52), (0.42, -0.64), (0.62, -0.52)], 0.2),),
            Paint(62, 0.6, 0.9, "lines"),
        ),
    ]


def _boat(rng: np.random.Generator) -> list[Shape]:
    low = rng.uniform(-0.05, 0.08)
    hull = [(-1, 0.2), (-0.6, 0.34), (0.5, 0.36), (1, 0.1), (0.72, 0.8), (-0.68, 0.8)]
    return [
        Shape("mast", (_stroke([(0, -1), (0, 0.45)], 0.14),), Paint(28, 0.7, 0.36, "plain")),
        Shape(
            "sail_1",
            (_polygon((0.06, -0.96), (0.3, -0.5), (0.8, low + 0.1), (0.06, low + 0.16)),),
            Paint(35, 0.22, 0.97, "lines"),
        ),
        Shape("sail_2", (_polygon((-0.06, -0.8), (-0.06, low + 0.1), (-0.62, low)),), Paint(12, 0.55, 0.92, "lines")),
        Shape("hull", (_polygon(*hull),), Paint(236, 0.7, 0.42, "bars")),
    ]


def _aeroplane(rng: np.random.Generator) -> list[Shape]:
    sweep = rng.uniform(-0.1, 0.1)
    metal = Paint(325, 0.28, 0.9, "speckles")
    wing = [(0.24, 0.02), (-0.3 + sweep, 0.62), (-0.56 + sweep, 0.62), (-0.22, 0.02)]
    return [
        Shape(
            "wing_2",
            (_polygon((0.2, 0), (-0.16 + sweep, -0.45), (-0.4 + sweep, -0.45), (-0.16, 0)),),
            Paint(330, 0.4, 0.55),
        ),
        Shape(
            "tail", (_polygon((-0.98, 0), (-1, -0.5), (-0.76, -0.5), (-0.5, -0.02)),), Paint(345, 0.75, 0.7, "lines")
        ),
        Shape("body", (_ellipse(0, 0, 0.99, 0.2),), metal),
        Shape("head", (_ellipse(0.72, 0, 0.28, 0.17),), Paint(300, 0.55, 0.45, "plain")),
        Shape("engine", (_ellipse(0.02, 0.28, 0.26, 0.15),), Paint(270, 0.15, 0.25)),
        Shape("wing_1", (_polygon(*wing),), Paint(318, 0.3, 0.7, "bars")),
    ]


def _pole(rng: np.random.Generator) -> list[Shape]:
    width = rng.uniform(0.05, 0.08)
    return [Shape("pole", (_stroke([(0, -1), (0, 1)], width),), Paint(80, 0.2, 0.5, "slants"))]


@dataclass(frozen=True)
class Kind:
    """How things of one kind are drawn, and how far they tilt, in degrees."""

    draw: Callable[[np.random.Generator], list[Shape]]
    tilt: float = 8


KINDS = {
    "car": Kind(_car),
    "dog": Kind(_dog),
    "bird": Kind(_bird, 15),
    "bottle": Kind(_bottle, 35),
    "chair": Kind(_chair),
    "bicycle": Kind(_bicycle),
    "boat": Kind(_boat),
    "aeroplane": Kind(_aeroplane, 20),
    "pole": Kind(_pole, 3),
}
POLE = "pole"  # Stands in front of other things and cuts them in two; few datasets have a name for it.

STUFF = {
    "sky": Paint(207, 0.38, 0.95, "clouds"),
    "grass": Paint(98, 0.6, 0.52, "speckles"),
    "road": Paint(220, 0.05, 0.42, "speckles"),
    "wall": Paint(32, 0.22, 0.78, "bricks"),
    "floor": Paint(24, 0.45, 0.5, "planks"),
    "sea": Paint(205, 0.75, 0.45, "waves"),
}


def _polygon(*points: tuple[float, float]) -> Outline:
    return np.array(points)


def _box(x1: float, y1: float, x2: float, y2: float) -> Outline:
    return _polygon((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _ellipse(x: float, y: float, x_radius: float, y_radius: float, degrees: float = 0) -> Outline:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    turn = np.deg2rad(degrees)
    along, across = x_radius * np.cos(angles), y_radius * np.sin(angles)
    return np.stack(
        [x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn)], axis=1
    )


def _stroke(points: list[tuple[float, float]], width: float) -> Outline:
    """The outline of a broken line of some width."""
    line = np.array(points)
    along = np.gradient(line, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * (width / 2 / np.linalg.norm(along, axis=1)[:, None])
    return np.concatenate([line + across, (line - across)[::-1]])
