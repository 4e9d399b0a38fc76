"""Scenes of the toy world: things made of parts, before textured stuff, hiding one another.

All that is true of a scene is one label map, from which each dataset's layout takes what that dataset annotates.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int16, UInt8

from pipelines.toy.shapes import KINDS, POLE, STUFF, Paint, Shape
from pipelines.toy.textures import SIZE, textures

# Stuff that is seen together: behind, in front, and a band across the front (or none).
_GROUNDS = (
    ("sky", "grass", "road"),
    ("sky", "road", "grass"),
    ("sky", "sea", None),
    ("wall", "floor", None),
    ("wall", "road", "grass"),
)
MIN_PIXELS = 64  # What shows fewer pixels than this is not annotated.
_MIN_VISIBLE = 0.45  # A new thing must leave this share of every other thing in sight.
_ATTEMPTS = 8  # To find a place for a thing.
_TEXTURE_STRENGTH = 0.13


@dataclass(frozen=True)
class Thing:
    """A thing of a scene: its kind, its parts' labels by slot, and the group of things that it stands in."""

    kind: str
    slots: dict[str, int]
    group: int


@dataclass(frozen=True)
class Scene:
    """A picture, and which part or stuff each pixel shows."""

    image: UInt8[np.ndarray, "h w 3"]  # RGB
    labels: Int16[np.ndarray, "h w"]
    things: tuple[Thing, ...]  # From back to front.
    stuff: dict[str, int]  # Labels by name.

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[0], self.labels.shape[1]

    def mask(self, labels: Iterable[int]) -> Bool[np.ndarray, "h w"]:
        """The pixels that show any of these labels."""
        chosen = np.zeros(int(self.labels.max()) + 2, bool)
        chosen[[label for label in labels if label < len(chosen)]] = True
        return chosen[self.labels]

    def thing_mask(self, thing: Thing) -> Bool[np.ndarray, "h w"]:
        """The visible pixels of a thing."""
        return self.mask(thing.slots.values())

    def part_masks(
        self, thing: Thing, parts: Iterable[tuple[str, Sequence[str]]]
    ) -> list[tuple[str, Bool[np.ndarray, "h w"]]]:
        """The visible parts of a thing, each the union of some slots."""
        masks = [(name, self.mask(thing.slots[slot] for slot in slots)) for name, slots in parts]
        return [(name, mask) for name, mask in masks if mask.sum() >= MIN_PIXELS]

    def stuff_masks(self) -> list[tuple[str, Bool[np.ndarray, "h w"]]]:
        """The visible stuff by name."""
        masks = [(name, self.mask([label])) for name, label in self.stuff.items()]
        return [(name, mask) for name, mask in masks if mask.sum() >= MIN_PIXELS]


def draw_scene(rng: np.random.Generator, kinds: Sequence[str], pole_share: float) -> Scene:
    """A scene of things of these kinds, from back to front, with a pole before them in a share of all scenes.

    A thing that finds no place where it leaves enough of the others in sight is left out; the first always has one.
    """
    short, long = rng.integers(96, 145), rng.integers(112, 177)
    height, width = (short, long) if rng.random() < 0.75 else (long, short)
    canvas = _Canvas(rng, int(height), int(width))
    canvas.paint_ground()
    for kind in kinds:
        any(canvas.place(kind) for _ in range(_ATTEMPTS))
    if rng.random() < pole_share:
        canvas.place(POLE)
    return canvas.scene()


@dataclass(frozen=True)
class _Painted:
    """How the pixels of one shape look, and the label that they bear."""

    label: int
    paint: Paint
    texture_xy: tuple[int, int]  # Where in its texture the image's corner lies.
    light: tuple[float, float, float]  # From above: strength, middle and half of the height of what is lit.


class _Canvas:
    """A scene in the making: which of the shapes painted so far each pixel shows."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.shown = np.zeros((height, width), np.int16)
        self.painted: list[_Painted] = []
        self.num_labels = 1
        self.stuff: dict[str, int] = {}
        self.things: list[Thing] = []
        self.areas: list[int] = []  # Of each thing, in pixels, when it was placed.
        self.centres: list[tuple[float, float]] = []

    def paint_ground(self) -> None:
        """Fill the canvas with stuff."""
        rng, (height, width) = self.rng, self.shown.shape
        behind, front, band = _GROUNDS[rng.integers(len(_GROUNDS))]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        bend = rng.uniform(1, 6) if behind != "wall" else 0.0
        wave = bend * np.sin(x[0] / rng.uniform(9, 25) + rng.uniform(0, 6))
        depth = y - height * rng.uniform(0.3, 0.6) - rng.uniform(-0.08, 0.08) * x - wave
        masks = {behind: depth < 0, front: depth >= 0}
        if band is not None and rng.random() < 0.6:
            middle = rng.uniform(0.1, 0.7) * width + rng.uniform(-0.8, 0.8) * depth
            masks[band] = (depth >= 0) & (abs(x - middle) < 5 + 0.2 * depth)
        for name, mask in masks.items():
            self.stuff[name] = self._new_label()
            self.shown[mask] = self._add(self.stuff[name], _vary([STUFF[name]], rng)[0])

    def place(self, kind: str) -> bool:
        """Paint a thing somewhere; False if it would hide too much of another."""
        rng = self.rng
        joins = bool(self.things) and kind != POLE and rng.random() < 0.5
        scale, centre = self._choose_place(kind, joins)
        shapes = KINDS[kind].draw(rng)
        layer = self._rasterise(shapes, kind, scale, centre)
        area = int((layer > 0).sum())
        if area < 8 * MIN_PIXELS or self._hides_too_much(layer > 0):
            return False
        slots = {slot: self._new_label() for slot in dict.fromkeys(shape.slot for shape in shapes)}
        light = (rng.uniform(0, 0.15), centre[1], scale)
        first = len(self.painted)
        for shape, paint in zip(shapes, _vary([shape.paint for shape in shapes], rng), strict=True):
            self._add(slots[shape.slot], paint, light)
        np.copyto(self.shown, layer + (first - 1), where=layer > 0)
        group = self.things[-1].group if joins else len(self.things)
        self.things.append(Thing(kind, slots, group))
        self.areas.append(area)
        self.centres.append(centre)
        return True

    def scene(self) -> Scene:
        """The scene as painted, a little out of focus and noisy."""
        image = cv2.GaussianBlur(self._render(), (3, 3), 0.6)
        image += 4 * self.rng.standard_normal(image.shape, np.float32)
        pixels = np.clip(image + 0.5, 0, 255).astype(np.uint8)
        labels = np.array([painted.label for painted in self.painted], np.int16)
        return Scene(pixels, labels[self.shown], tuple(self.things), self.stuff)

    def _render(self) -> Float32[np.ndarray, "h w 3"]:
        height, width = self.shown.shape
        names, patterns = textures()
        texture = np.array([names[painted.paint.texture] for painted in self.painted])[self.shown]
        left, top = np.array([painted.texture_xy for painted in self.painted]).T
        pattern = patterns[texture, np.arange(height)[:, None] + top[self.shown], np.arange(width) + left[self.shown]]
        strength, middle, half = np.array([painted.light for painted in self.painted], np.float32).T
        depth = (np.arange(height, dtype=np.float32)[:, None] - middle[self.shown]) / half[self.shown]
        light = (1 + _TEXTURE_STRENGTH * pattern) * (1 - strength[self.shown] * np.clip(depth, -1, 1))
        colours = np.stack([_rgb(painted.paint) for painted in self.painted])
        return colours[self.shown] * light[..., None]

    def _choose_place(self, kind: str, joins: bool) -> tuple[float, tuple[float, float]]:
        """Half the length of a thing, and its centre (x, y); one that joins the last thing's group is close to it."""
        rng, (height, width) = self.rng, self.shown.shape
        if kind == POLE:
            return 0.6 * height, (rng.uniform(0.15, 0.85) * width, 0.5 * height)
        scale = rng.uniform(0.34, 0.52) * float(np.sqrt(height * width))
        if not joins:
            return scale, (rng.uniform(0.2, 0.8) * width, rng.uniform(0.25, 0.75) * height)
        x, y = self.centres[-1]
        x += rng.choice([-1, 1]) * rng.uniform(0.7, 1.2) * scale
        y += rng.uniform(-0.4, 0.4) * scale
        return scale, (float(np.clip(x, 0.12 * width, 0.88 * width)), float(np.clip(y, 0.15 * height, 0.85 * height)))

    def _rasterise(
        self, shapes: Sequence[Shape], kind: str, scale: float, centre: tuple[float, float]
    ) -> Int16[np.ndarray, "h w"]:
        """Which of the shapes, counted from 1, lies on top at each pixel; 0 where there is none."""
        rng = self.rng
        turn = np.deg2rad(rng.uniform(-1, 1) * KINDS[kind].tilt)
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        stretch = np.array([rng.choice([-1, 1]) * rng.uniform(0.9, 1), rng.uniform(0.85, 1)])
        layer = np.zeros(self.shown.shape, np.int16)
        for i, shape in enumerate(shapes, start=1):
            outlines = [(outline * stretch) @ rotation.T * scale + centre for outline in shape.outlines]
            cv2.fillPoly(layer, [np.rint(outline * 16).astype(np.int32) for outline in outlines], i, shift=4)
        return layer

    def _hides_too_much(self, whole: Bool[np.ndarray, "h w"]) -> bool:
        labels = np.array([painted.label for painted in self.painted])
        still = np.bincount(labels[self.shown[~whole]], minlength=self.num_labels)
        return any(
            still[list(thing.slots.values())].sum() < _MIN_VISIBLE * area
            for thing, area in zip(self.things, self.areas, strict=True)
        )

    def _new_label(self) -> int:
        self.num_labels += 1
        return self.num_labels - 1

    def _add(self, label: int, paint: Paint, light: tuple[float, float, float] = (0, 0, 1)) -> int:
        """The number of a new painted shape."""
        height, width = self.shown.shape
        left, top = self.rng.integers(0, (SIZE - width + 1, SIZE - height + 1)).tolist()
        self.painted.append(_Painted(label, paint, (left, top), light))
        return len(self.painted) - 1


def _rgb(paint: Paint) -> Float32[np.ndarray, " 3"]:
    return 255 * np.array(colorsys.hsv_to_rgb(paint.hue % 360 / 360, paint.saturation, paint.value), np.float32)


def _vary(paints: Sequence[Paint], rng: np.random.Generator) -> list[Paint]:
    """Each paint a little different, all in much the same way: red cars differ, and so, less, do the parts of one."""
    amount = np.array([6, 0.06, 0.06])
    together: Float[np.ndarray, " 3"] = rng.uniform(-1, 1, 3) * amount
    each = together + rng.uniform(-0.3, 0.3, (len(paints), 3)) * amount
    return [
        replace(
            paint,
            hue=paint.hue + hue,
            saturation=min(max(paint.saturation + saturation, 0.0), 1.0),
            value=min(max(paint.value + value, 0.0), 1.0),
        )
        for paint, (hue, saturation, value) in zip(paints, each.tolist(), strict=True)
    ]
