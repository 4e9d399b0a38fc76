"""What can be had without looking at the image: every learned number is printed beside one of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import orjson
from jaxtyping import Float
from pydantic import TypeAdapter

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.named_mask import NamedMask
from semsam.data.schema import Record
from semsam.evaluation.blind_shapes import RegionRuns, box_fillings, discs
from semsam.evaluation.items import Ask, ImageItem
from semsam.evaluation.prompt_table import or_minus_one
from semsam.evaluation.questions import AskedRegions, Questions, RegionPrompts, item_of

# Radii to choose from, as shares of the image's geometric mean side: from a speck to the whole image.
CANDIDATE_RADII = np.geomspace(0.01, 1.5, 32)
FILLINGS = ("filled_box", "ellipse")  # The levels of a blind answer to a box.

Place = tuple[float, float, float, float]  # A box (x1, y1, x2, y2) as shares of the image's width and height.


@dataclass(frozen=True)
class Guess:
    """A name, and where to guess it in every image."""

    object_category: int
    part_category: int | None
    place: Place


@dataclass(frozen=True)
class Baselines:
    """Blind guesses tuned on train: discs around a click, the filling of a box, the commonest names and their place."""

    radii: tuple[float, ...] = ()  # Shares of the image's geometric mean side, ascending; empty without masks.
    single: int = 0  # Position in `radii` of the one to guess when only one may be.
    filling: int = 0  # Position in `FILLINGS` of the better one.
    commonest_object: int | None = None
    commonest_part: int | None = None
    # What is guessed where nothing was asked: the commonest name of each kind, at the mean place of its regions.
    thing: Guess | None = None
    segment: Guess | None = None  # A thing or stuff.
    part: Guess | None = None


@dataclass(frozen=True)
class NameCount:
    """How many regions have a name (-1: none), and the sum of their places."""

    object_category: int
    part_category: int
    is_thing: bool
    count: int
    places: Place

    def __add__(self, other: NameCount) -> NameCount:
        """Both together; they are of the same name."""
        x1, y1, x2, y2 = (one + more for one, more in zip(self.places, other.places, strict=True))
        return replace(self, count=self.count + other.count, places=(x1, y1, x2, y2))


@dataclass
class BaselineFit:
    """What the blind baselines learn from a train split; fits of neighbouring images are merged in their order."""

    disc_ious: list[list[float]] = field(default_factory=list)  # Of each clicked region with each candidate disc,
    filling_ious: list[list[float]] = field(default_factory=list)  # and with each filling of its box.
    names: list[NameCount] = field(default_factory=list)

    @staticmethod
    def of(record: Record) -> BaselineFit:
        """What one record of the train split teaches."""
        asked = AskedRegions.of(record)
        runs, size, fit = _runs(asked), (record.height, record.width), BaselineFit()
        for column, click in asked.innermost_clicks().items():
            own = runs.take(np.array([column]))
            fit.disc_ious.append(discs(click, CANDIDATE_RADII, *size).ious(own)[:, 0].tolist())
            fit.filling_ious.append(box_fillings(asked.regions[column].box_xyxy, *size).ious(own)[:, 0].tolist())
        for region in asked.regions:
            x1, y1, x2, y2 = region.box_xyxy
            place = (x1 / record.width, y1 / record.height, x2 / record.width, y2 / record.height)
            names = (or_minus_one(region.object_category), or_minus_one(region.part_category))
            fit.names.append(NameCount(*names, region.is_thing, 1, place))
        return fit

    def merge(self, other: BaselineFit) -> None:
        """Add what was learnt from the images that follow."""
        self.disc_ious += other.disc_ious
        self.filling_ious += other.filling_ious
        by_name: dict[tuple[int, int, bool], NameCount] = {}
        for one in [*self.names, *other.names]:
            name = (one.object_category, one.part_category, one.is_thing)
            by_name[name] = by_name[name] + one if name in by_name else one
        self.names = list(by_name.values())

    def to_json(self) -> bytes:
        """The fit as text, for another process."""
        return orjson.dumps(self)

    @staticmethod
    def from_json(data: bytes) -> BaselineFit:
        """The inverse of `to_json`."""
        return TypeAdapter(BaselineFit).validate_json(data)

    def compute(self, levels: int) -> Baselines:
        """The `levels` best discs, the better filling, and the commonest names (the smallest number of a tie)."""
        chosen: list[int] = []
        single = filling = 0
        if self.disc_ious:
            ious = np.array(self.disc_ious)
            chosen = best_radii(ious, levels)
            single = int(np.argmax(ious[:, chosen].mean(axis=0)))
            filling = int(np.argmax(np.mean(self.filling_ious, axis=0)))
        whole = [one for one in self.names if one.object_category >= 0 > one.part_category]
        return Baselines(
            radii=tuple(float(CANDIDATE_RADII[i]) for i in chosen),
            single=single,
            filling=filling,
            commonest_object=_commonest(self.names, lambda one: one.object_category),
            commonest_part=_commonest(self.names, lambda one: one.part_category),
            thing=_guess([one for one in whole if one.is_thing]),
            segment=_guess(whole),
            part=_guess([one for one in self.names if min(one.object_category, one.part_category) >= 0]),
        )


def blind_item(
    record: Record, baselines: Baselines, questions: Questions, vocabulary: Vocabulary, levels: int
) -> ImageItem:
    """What is guessed about a record, as a model's answers are kept; nothing of its image is looked at.

    A click is answered by the discs and a box by its `FILLINGS`, each at `levels` levels, some of them empty.
    """
    asked = AskedRegions.of(record)
    prompts = asked.prompts(record, questions)
    ious, chosen = _guessed_ious(record, asked, prompts, baselines, max(levels, len(FILLINGS)))
    shape = ious.shape[:2]
    prompted = asked.answered(
        prompts,
        chosen,
        (np.arange(shape[1]) == chosen[:, None]).astype(np.float32),
        ious,
        np.full((*shape, shape[1]), np.nan, np.float32),
        _one_hot(baselines.commonest_object, len(vocabulary.objects), shape),
        _one_hot(baselines.commonest_part, len(vocabulary.parts), shape),
    )
    segment = _masks(record, baselines.segment)
    instances = _masks(record, baselines.thing) + _masks(record, baselines.part)
    return replace(item_of(record, prompted), instances=instances, panoptic=segment, semantic=segment)


def _guessed_ious(
    record: Record, asked: AskedRegions, prompts: RegionPrompts, baselines: Baselines, levels: int
) -> tuple[Float[np.ndarray, "p k m"], np.ndarray]:
    """IoU of each prompt's guesses with the regions that matter to it (0 with others), and the level to choose."""
    runs, under = _runs(asked), asked.under(prompts.click_xy)
    size = record.height, record.width
    ious = np.zeros((len(prompts), levels, len(asked.regions)))
    for prompt, column in enumerate(prompts.column):
        if prompts.ask[prompt] == Ask.BOX:
            shapes = box_fillings(tuple(prompts.box_xyxy[prompt].tolist()), *size)
        else:
            shapes = discs(tuple(prompts.click_xy[prompt].tolist()), np.array(baselines.radii), *size)
        wanted = np.union1d(np.flatnonzero(under[prompt]), column)
        ious[prompt, : len(shapes.top), wanted] = shapes.ious(runs.take(wanted)).T
    return ious, np.where(prompts.ask == Ask.BOX, baselines.filling, baselines.single)


def _runs(asked: AskedRegions) -> RegionRuns:
    return RegionRuns.of(asked.atoms.runs, asked.atoms.table, asked.atoms.areas())


def _masks(record: Record, guess: Guess | None) -> tuple[NamedMask, ...]:
    """The filled box of a guess; nothing where there is none, or no pixel in it."""
    if guess is None:
        return ()
    x1, y1, x2, y2 = (share * side for share, side in zip(guess.place, (record.width, record.height) * 2, strict=True))
    filled = box_fillings((x1, y1, x2, y2), record.height, record.width)
    top, bottom = filled.top[0], filled.bottom[0]
    if not (bottom > top).any():
        return ()
    columns = np.stack([top, bottom - top, record.height - bottom], axis=1)  # Zeros, ones, zeros down each column.
    inside = np.repeat(np.tile([False, True, False], record.width), columns.reshape(-1))
    mask = rle.encode(inside.reshape(record.width, record.height).T)
    return (NamedMask(mask, (x1, y1, x2, y2), guess.object_category, guess.part_category, 1.0),)


def _one_hot(guess: int | None, num_names: int, shape: tuple[int, int]) -> np.ndarray:
    scores = np.zeros((*shape, num_names), np.float32)
    if guess is not None:
        scores[:, :, guess] = 1
    return scores


def _commonest(names: Sequence[NameCount], number: Callable[[NameCount], int]) -> int | None:
    counts: dict[int, int] = {}
    for one in names:
        if number(one) >= 0:
            counts[number(one)] = counts.get(number(one), 0) + one.count
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _guess(names: Sequence[NameCount]) -> Guess | None:
    if not names:
        return None
    one = min(names, key=lambda one: (-one.count, one.object_category, one.part_category))
    x1, y1, x2, y2 = (total / one.count for total in one.places)
    part = None if one.part_category < 0 else one.part_category
    return Guess(one.object_category, part, (x1, y1, x2, y2))


def best_radii(ious: Float[np.ndarray, "n r"], count: int) -> list[int]:
    """Positions of the `count` radii whose best IoU per region has the highest mean, by greedy choice and exchange."""
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(_best_addition(ious, chosen))
    while True:
        before = ious[:, chosen].max(axis=1).mean()
        for position in range(count):
            rest = chosen[:position] + chosen[position + 1 :]
            chosen = [*rest[:position], _best_addition(ious, rest), *rest[position:]]
        if ious[:, chosen].max(axis=1).mean() <= before + 1e-9:
            return sorted(chosen)


def _best_addition(ious: Float[np.ndarray, "n r"], chosen: Sequence[int]) -> int:
    so_far = ious[:, list(chosen)].max(axis=1) if chosen else np.zeros(len(ious))
    return int(np.argmax(np.maximum(ious, so_far[:, None]).mean(axis=0)))
