"""From a prompt to masks with their names: what runs in the model's thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from pipelines.serve.downloads import decoded
from pipelines.serve.faults import malformed
from pipelines.serve.messages import (
    MOST_MASKS,
    Answer,
    Everything,
    EverythingRequest,
    FoundMask,
    Named,
    Prompt,
    RunLengths,
    Vocabulary,
)
from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings, ImageMasks
from semsam.data import rle
from semsam.data.named_mask import NamedMask
from semsam.encoded_image import EncodedImage
from semsam.everything import EverythingSettings
from semsam.predictor import Answer as Prediction
from semsam.predictor import Predictor, mask_boxes_xyxy
from semsam.several_clicks import SeveralClicks

_BEST_NAMES = 3  # That are told of each mask, of objects and of parts.


class Stopwatch:
    """Milliseconds of the stages of a request."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is in the block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Add what was measured elsewhere."""
        self.stages[name] = round(self.stages.get(name, 0.0) + 1000 * max(seconds, 0.0), 2)


def answer(
    predictor: Predictor, image_id: str, image: EncodedImage, prompt: Prompt, max_pixels: int, watch: Stopwatch
) -> Answer:
    """The masks of a prompt, from part to whole.

    Raises `Refused` for a prompt that has neither a positive click nor a box, or lies outside the image.
    """
    _prepare(predictor, image, prompt, watch)
    boxes = None if prompt.box is None else [[prompt.box.x1, prompt.box.y1, prompt.box.x2, prompt.box.y2]]
    if boxes is None and not any(point.positive for point in prompt.points):
        raise malformed("points: a prompt needs a positive click or a box")
    clicks = SeveralClicks.of(
        np.array([[[point.x, point.y] for point in prompt.points]]).reshape(1, -1, 2),
        np.array([[int(point.positive) for point in prompt.points]], np.int64).reshape(1, -1),
    )
    is_single = len(prompt.points) + (boxes is not None) == 1
    can_more = predictor.model.settings.further_clicks
    last = _last_mask(prompt, image, max_pixels) if can_more and prompt.last is not None else None
    with watch.stage("model"):
        try:
            if can_more and (not is_single or last is not None):
                found = predictor.predict(clicks.xy, boxes, labels=clicks.labels, last_masks=last)
            else:
                found = _by_agreement(predictor, clicks, boxes)
        except ValueError as error:
            raise malformed(str(error)) from None
    with watch.stage("masks"):
        masks, chosen = _masks(found)
    return Answer(
        image=image_id,
        height=image.size[0],
        width=image.size[1],
        masks=masks,
        chosen=chosen,
        clicks="single" if is_single else "joint" if can_more else "agreement",
        last_used=last is not None,
        time_ms=watch.stages,
    )


def everything(
    predictor: Predictor, image_id: str, image: EncodedImage, asked: EverythingRequest, watch: Stopwatch
) -> Everything:
    """All masks of an image.  Raises `Refused` where names are needed, and there are none."""
    _prepare(predictor, image, asked, watch)
    if asked.kind == "masks":
        masks = _of_a_grid(predictor, image, asked, watch)
    else:
        masks = _of_generic_queries(predictor, image, asked, watch)
    return Everything(
        image=image_id,
        height=image.size[0],
        width=image.size[1],
        kind=asked.kind,
        masks=masks[:MOST_MASKS],
        time_ms=watch.stages,
    )


def _prepare(predictor: Predictor, image: EncodedImage, names: Vocabulary, watch: Stopwatch) -> None:
    with watch.stage("names"):
        predictor.set_vocabulary(list(dict.fromkeys(names.objects)), list(dict.fromkeys(names.parts)))
    predictor.set_image(image)


def _by_agreement(predictor: Predictor, clicks: SeveralClicks, boxes: list[list[float]] | None) -> Prediction:
    """The answer to the box, or without one to the positive click, that is right about most of the clicks.

    Each click is asked alone; of equally good answers the earliest click's.  The rule is that of `semsam.sam_api`.
    """
    xy, positive = clicks.xy[0], clicks.labels[0] == 1
    outside = SeveralClicks(xy[None], clicks.labels)
    best: Prediction | None = None
    most = -1
    asked = [(None, boxes)] if boxes else [([one], None) for one in xy[positive].tolist()]
    for points, box in asked:
        found = predictor.predict(points, box)
        _check_inside(outside, found)
        agreement = clicks.agreement(found.masks)
        if agreement.max() > most:
            tight = mask_boxes_xyxy(found.masks)
            own = None if box is None else np.array(box)
            chosen = predictor.prompt_style.choose(found.iou_predictions, tight, own, agreement)
            best, most = replace(found, chosen=chosen), int(agreement.max())
    assert best is not None
    return best


def _check_inside(clicks: SeveralClicks, found: Prediction) -> None:
    """Raise `ValueError` for a click outside the image: those that only choose were not looked at before."""
    height, width = found.masks.shape[2:]
    for x, y in clicks.xy[0]:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"click ({x:g}, {y:g}) is outside the image of {width} x {height} pixels")


def _last_mask(prompt: Prompt, image: EncodedImage, max_pixels: int) -> np.ndarray:
    assert prompt.last is not None
    if tuple(prompt.last.size) != image.size:
        raise malformed(f"last: a mask of {prompt.last.size}, and the image has {image.size} (height and width)")
    return decoded(prompt.last, max_pixels)[None]


def _masks(found: Prediction) -> tuple[list[FoundMask], int | None]:
    """The levels' masks from part to whole without those that are empty or there already, and which one is chosen."""
    ordered = found.largest_first()
    size = (ordered.masks.shape[2], ordered.masks.shape[3])
    by_counts: dict[bytes, int] = {}  # The surest level of each mask, from whole to part.
    every = [rle.encode(mask) for mask in ordered.masks[0]]
    for level, counts in enumerate(every):
        best = by_counts.setdefault(counts, level)
        if ordered.iou_predictions[0, level] > ordered.iou_predictions[0, best]:
            by_counts[counts] = level
    kept = [(counts, level) for counts, level in by_counts.items() if rle.area(counts)][::-1]
    masks = [
        _found(
            counts,
            size,
            float(ordered.iou_predictions[0, level]),
            int(ordered.levels[0, level]),
            _best(found.object_names, ordered.object_scores[0, level]),
            _best(found.part_names, ordered.part_scores[0, level]),
        )
        for counts, level in kept
    ]
    chosen = every[int(ordered.chosen[0])]
    places = [place for place, (counts, _) in enumerate(kept) if counts == chosen]
    qualities = [mask.quality for mask in masks]
    return masks, places[0] if places else int(np.argmax(qualities)) if masks else None


def _of_a_grid(
    predictor: Predictor, image: EncodedImage, asked: EverythingRequest, watch: Stopwatch
) -> list[FoundMask]:
    settings = AutomaticMaskSettings(
        points_per_side=asked.points_per_side, min_iou=asked.min_quality, min_stability=asked.min_stability
    )
    with watch.stage("model"):
        found: ImageMasks = AutomaticMasks(predictor, settings).of_encoded(image)
    with watch.stage("masks"):
        return [
            _found(
                counts,
                image.size,
                float(found.iou_predictions[i]),
                int(found.levels[i]),
                _one(found.object_names[i], float(found.object_scores[i])),
                _one(found.part_names[i], float(found.part_scores[i])),
            )
            for i, counts in enumerate(found.rles)
        ]


def _of_generic_queries(
    predictor: Predictor, image: EncodedImage, asked: EverythingRequest, watch: Stopwatch
) -> list[FoundMask]:
    if not asked.objects:
        raise malformed(f"objects: {asked.kind} needs names to look for")
    settings = EverythingSettings(
        **{kind: kind == asked.kind for kind in ("instances", "panoptic", "semantic")},
        min_score=asked.min_quality,
        min_panoptic_score=asked.min_quality,
    )
    with watch.stage("model"):
        found = predictor.everything(settings=settings)
    named: Iterable[NamedMask] | None = getattr(found, asked.kind)
    objects, parts = predictor.object_names, predictor.part_names
    with watch.stage("masks"):
        return [
            _found(
                one.rle,
                image.size,
                one.score,
                None,
                _one(objects[one.object_category], one.score),
                _one(None if one.part_category is None else parts[one.part_category], one.score),
            )
            for one in named or ()
        ]


def _found(
    counts: bytes,
    size: tuple[int, int],
    quality: float,
    level: int | None,
    objects: list[Named],
    parts: list[Named],
) -> FoundMask:
    left, top, right, bottom = rle.box_xyxy(counts, *size)
    return FoundMask(
        rle=RunLengths(size=size, counts=counts.decode()),
        bbox=(left, top, right - left, bottom - top),
        area=rle.area(counts),
        quality=round(quality, 4),
        level=level,
        objects=objects,
        parts=parts,
    )


def _one(name: str | None, score: float) -> list[Named]:
    return [] if name is None else [Named(name=name, score=_share(score))]


def _best(names: Sequence[str], scores: Float[np.ndarray, " x"]) -> list[Named]:
    order = np.argsort(-scores, kind="stable")[:_BEST_NAMES]
    return [Named(name=names[i], score=_share(float(scores[i]))) for i in order]


def _share(score: float) -> float:
    return round(min(max(score, 0.0), 1.0), 4)
