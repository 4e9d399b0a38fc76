"""Everything in an image, named, without clicks: the generic queries as instances, panoptic and semantic masks.

The rules and defaults are those of Mask DINO's published inference (arXiv 2206.02777), which the generic queries come
from: names by sigmoid, made sharper by a softmax where masks compete.  Parts are Semantic-SAM's (arXiv 2307.04767): a
part is named by its object and by its bare name and scores p_object * p_part; a whole object scores
p_object * (1 - max p_part), in all three.

Every mask is made once, a band of columns at a time: each pixel sees all masks, and no mask is there as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from semsam.config import Positive, PositiveFloat, Share, settings
from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.named_mask import NamedMask
from semsam.detections import detections
from semsam.encoded_image import EncodedImage
from semsam.mask_encoding import RunLengths, encode_labels, mask_areas

SCORES_AT_ONCE = 2**22  # Of queries as parts of objects.


@settings
class EverythingSettings:
    """What is looked for, and what of it is kept."""

    instances: bool = True
    panoptic: bool = True
    semantic: bool = True
    # Of the (query, name) pairs of an image the likeliest are kept; parts do not take the places of objects.
    max_objects: Positive = 100
    max_parts: Positive = 100
    min_score: Share = 0.0  # Instances are kept whose score is greater.
    # Queries compete for the pixels of a panoptic segmentation whose score is greater than this,
    min_panoptic_score: Share = 0.25
    # and keep theirs if they have won at least this share of what they claim.
    min_unhidden: Share = 0.8
    temperature: PositiveFloat = 0.06  # Of the softmax over sigmoids where masks compete: panoptic and semantic.


@dataclass(frozen=True)
class GenericQueries:
    """What the `q` generic queries say of an image, in float32, on the model's device."""

    mask_embeddings: Float[Tensor, "q c"]
    boxes_xyxy: Float[Tensor, "q 4"]  # In the image's pixels, and inside it.
    object_scores: Float[Tensor, "q x"]  # Sigmoids.
    part_scores: Float[Tensor, "q y"]


@dataclass(frozen=True)
class Everything:
    """What is in an image, the best score first.  Names are positions in the vocabulary; None: was not looked for."""

    # Things, and parts of objects, which overlap; the boxes are the model's.  A mask with several names is there with
    # each of them.  The score is the name's, times the mean probability of the mask's pixels.
    instances: tuple[NamedMask, ...] | None
    # Segments without overlaps, one for each thing and one for each name of stuff; pixels may be in none.  Boxes are
    # tight.  The score is the name's, of stuff that of its best query.
    panoptic: tuple[NamedMask, ...] | None
    # At most one mask of each object name; every pixel is in one.  Boxes are tight.  The score is the mean share of the
    # votes that the name has in its pixels.
    semantic: tuple[NamedMask, ...] | None
    size: tuple[int, int]  # Height and width of the image.
    vocabulary: Vocabulary  # What it was looked at with.

    def to_supervision(self, what: Literal["instances", "panoptic", "semantic"] = "instances") -> Any:
        """`supervision.Detections` of one of the three, in its order, with dense masks.

        Class ids are the object's position in the vocabulary, for a part as well: its own is in `data`, `part_id` (-1
        for whole objects) beside `part_name`; see `semsam.detections`.  The confidence is the score.  Raises
        `ValueError` for what was not looked for, and where the library is not installed.
        """
        found: tuple[NamedMask, ...] | None = getattr(self, what)
        if found is None:
            raise ValueError(f"what: {what} was not looked for (EverythingSettings.{what})")
        masks = np.zeros((len(found), *self.size), bool)
        for row, one in zip(masks, found, strict=True):
            row[:] = rle.decode(one.rle, *self.size)
        parts = [one.part_category for one in found]
        return detections(
            np.array([one.box_xyxy for one in found]),
            masks,
            np.array([one.score for one in found]),
            [one.object_category for one in found],
            {
                "class_name": [self.vocabulary.objects[one.object_category] for one in found],
                "part_name": [None if part is None else self.vocabulary.parts[part] for part in parts],
                "part_id": [-1 if part is None else part for part in parts],
            },
        )


@torch.no_grad()
def find_everything(
    image: EncodedImage,
    queries: GenericQueries,
    vocabulary: Vocabulary,
    settings: EverythingSettings | None = None,
) -> Everything:
    """What the generic queries say as masks; `vocabulary` is what their scores are of.

    Its `things` say which objects are countable: all, where it says nothing.  Parts are looked for in its
    `object_parts`: every part in every object, where there are none.  Equal scores stay in the order of queries, then
    of names.  Raises `ValueError` for predictions that are not finite.
    """
    settings = settings or EverythingSettings()
    _check_finite(image, queries)
    pairs = _object_parts(vocabulary, queries)
    whole = whole_scores(queries, pairs)
    things = torch.tensor(vocabulary.things or (True,) * whole.shape[1], dtype=torch.bool, device=whole.device)
    instances = _Instances(queries, whole, pairs, things, settings) if settings.instances else None
    panoptic = _Panoptic(image.size, whole, things, settings) if settings.panoptic else None
    semantic = _Semantic(image.size, whole, settings) if settings.semantic else None
    tasks = [task for task in (instances, panoptic, semantic) if task is not None]
    needed = np.unique(np.concatenate([np.zeros(0, np.int64), *(task.queries for task in tasks)]))
    if len(needed):
        rows = [_rows(task.queries, needed, whole.device) for task in tasks]
        num_maps = len(needed) + (whole.shape[1] if settings.semantic else 0)
        for logits in image.bands(queries.mask_embeddings[torch.from_numpy(needed).to(whole.device)], num_maps):
            probabilities = logits.sigmoid()
            for task, own in zip(tasks, rows, strict=True):
                task.add(probabilities[own])
    in_instances, in_panoptic, in_semantic = (
        None if task is None else tuple(task.found()) for task in (instances, panoptic, semantic)
    )
    return Everything(in_instances, in_panoptic, in_semantic, image.size, vocabulary)


def whole_scores(queries: GenericQueries, object_parts: Int64[Tensor, "p 2"]) -> Float[Tensor, "q x"]:
    """How likely each query is which whole object: p_object * (1 - max p_part), over the parts that the object has."""
    of_object, part = object_parts.unbind(1)
    likeliest = torch.zeros_like(queries.object_scores).scatter_reduce(
        1, of_object.expand(len(queries.object_scores), -1), queries.part_scores[:, part], "amax"
    )
    return queries.object_scores * (1 - likeliest)


class _Instances:
    """The likeliest (query, name) pairs; each query's mask is encoded once."""

    def __init__(
        self,
        queries: GenericQueries,
        whole: Float[Tensor, "q x"],
        pairs: Int64[Tensor, "p 2"],
        things: Bool[Tensor, " x"],
        settings: EverythingSettings,
    ) -> None:
        self.settings = settings
        # What is no thing cannot be an instance; the published models let it take places, and drop it afterwards.
        thing = torch.nonzero(things)[:, 0]
        objects = _likeliest(iter([whole[:, thing]]), settings.max_objects, settings.min_score)
        parts = _likeliest(_part_scores(queries, pairs), settings.max_parts, settings.min_score)
        self.scores = np.concatenate([objects[2], parts[2]])
        self.names: list[tuple[int, int | None]] = [(int(name), None) for name in thing.cpu().numpy()[objects[1]]]
        self.names += [(int(of_object), int(part)) for of_object, part in pairs.cpu().numpy()[parts[1]]]
        self.queries, self.query = np.unique(np.concatenate([objects[0], parts[0]]), return_inverse=True)
        self.boxes = queries.boxes_xyxy[torch.from_numpy(self.queries).to(whole.device)].cpu().numpy()
        self.runs = RunLengths(len(self.queries))
        self.sums = torch.zeros(len(self.queries), dtype=torch.float64, device=whole.device)
        self.areas = torch.zeros(len(self.queries), dtype=torch.int64, device=whole.device)

    def add(self, probabilities: Float[Tensor, "m x h"]) -> None:
        """Take the next columns of the masks of `queries`."""
        inside = probabilities > 0.5
        self.runs.add(inside)
        self.sums += torch.where(inside, probabilities, 0).sum(dim=(1, 2))
        self.areas += mask_areas(inside)

    def found(self) -> Iterator[NamedMask]:
        """What was found, the best first."""
        rles = self.runs.encoded()
        # An empty mask has nothing to be sure of, and goes.
        scores = self.scores * (self.sums / self.areas.clamp(min=1)).cpu().numpy()[self.query]
        for i in np.argsort(-scores, kind="stable"):
            if scores[i] > self.settings.min_score:
                yield _named(rles[self.query[i]], self.boxes[self.query[i]], self.names[i], scores[i])


class _Panoptic:
    """Queries compete for pixels; who has lost too many of the own ones to others gives up the rest."""

    def __init__(
        self,
        size: tuple[int, int],
        whole: Float[Tensor, "q x"],
        things: Bool[Tensor, " x"],
        settings: EverythingSettings,
    ) -> None:
        self.settings = settings
        scores, names, weights = whole.new_zeros(0), torch.zeros(0, dtype=torch.int64), whole.new_zeros(0)
        kept = np.zeros(0, np.int64)
        if whole.numel():
            scores, names = whole.max(dim=1)
            weights = (whole / settings.temperature).softmax(dim=1).gather(1, names[:, None])[:, 0]
            kept = np.flatnonzero((scores > settings.min_panoptic_score).cpu().numpy())
        # The best first: it wins where two are equally sure.
        self.scores, self.names = scores.cpu().numpy()[kept], names.cpu().numpy()[kept]
        order = np.argsort(-self.scores, kind="stable")
        self.queries, self.scores, self.names = kept[order], self.scores[order], self.names[order]
        self.is_thing = things.cpu().numpy()[self.names]
        self.weights = weights[torch.from_numpy(self.queries).to(whole.device)]
        self.won, self.claimed = (torch.zeros(len(kept), dtype=torch.int64, device=whole.device) for _ in range(2))
        self.winners = _LabelMap(*size)

    def add(self, probabilities: Float[Tensor, "m x h"]) -> None:
        """Take the next columns of the masks of `queries`."""
        if not len(probabilities):
            return
        winner = (probabilities * self.weights[:, None, None]).argmax(dim=0)
        inside = probabilities > 0.5
        self.won += torch.bincount(winner.flatten(), minlength=len(self.won))
        self.claimed += mask_areas(inside)
        taken = torch.where(inside.gather(0, winner[None])[0], winner, -1)
        self.winners.add(taken)

    def found(self) -> Iterator[NamedMask]:
        """What was found, the best first."""
        if not len(self.queries):
            return
        own = np.bincount(self.winners.labels.reshape(-1) + 1, minlength=len(self.queries) + 1)[1:]
        won, claimed = self.won.cpu().numpy(), self.claimed.cpu().numpy()
        stays = (own > 0) & (won / claimed.clip(1) >= self.settings.min_unhidden)
        segment = np.full(len(self.queries) + 1, -1, np.int32)  # Of each query, and of no query.
        best: list[int] = []  # Query of each segment.
        stuff: dict[int, int] = {}
        for query in np.flatnonzero(stays).tolist():
            name = int(self.names[query])
            segment[query] = len(best) if self.is_thing[query] else stuff.setdefault(name, len(best))
            if segment[query] == len(best):
                best.append(query)
        rles = encode_labels(segment[self.winners.labels], len(best))
        for query, counts in zip(best, rles, strict=True):
            yield _named(counts, self.winners.box_xyxy(counts), (int(self.names[query]), None), self.scores[query])


class _Semantic:
    """All queries vote for names where they see something; each pixel takes the name with the most votes."""

    def __init__(self, size: tuple[int, int], whole: Float[Tensor, "q x"], settings: EverythingSettings) -> None:
        num_names = whole.shape[1]
        self.queries = np.arange(len(whole) if num_names else 0)
        self.weights = (whole / settings.temperature).softmax(dim=1)
        self.winners = _LabelMap(*size)
        self.areas, self.shares = np.zeros(num_names, np.int64), np.zeros(num_names)

    def add(self, probabilities: Float[Tensor, "m x h"]) -> None:
        """Take the next columns of the masks of `queries`."""
        if not len(probabilities):
            return
        # Sums over hundreds of queries: rounded to bfloat16, names would tie.
        with torch.autocast(probabilities.device.type, enabled=False):
            votes = torch.tensordot(self.weights, probabilities, dims=([0], [0]))
        most, winner = votes.max(dim=0)
        total = probabilities.sum(dim=0)
        shares = (most / total.clamp(min=torch.finfo(total.dtype).tiny)).cpu().numpy()
        names = self.winners.add(winner).reshape(-1)
        self.areas += np.bincount(names, minlength=len(self.areas))
        self.shares += np.bincount(names, shares.reshape(-1), len(self.areas))

    def found(self) -> Iterator[NamedMask]:
        """What was found, the best first."""
        if not len(self.queries):
            return
        scores = self.shares / self.areas.clip(1)
        rles = encode_labels(self.winners.labels, len(self.areas))
        for name in np.argsort(-scores, kind="stable").tolist():
            if self.areas[name]:
                yield _named(rles[name], self.winners.box_xyxy(rles[name]), (name, None), scores[name])


class _LabelMap:
    """A label for each pixel, column by column, on the host.  One array: many small ones would fragment its memory."""

    def __init__(self, height: int, width: int) -> None:
        self.labels = np.full((width, height), -1, np.int32)
        self._filled = 0

    def add(self, columns: Int64[Tensor, "x h"]) -> Int32[np.ndarray, "x h"]:
        """Fill the next columns, and return what is there now."""
        start, self._filled = self._filled, self._filled + len(columns)
        self.labels[start : self._filled] = columns.to(torch.int32).cpu().numpy()
        return self.labels[start : self._filled]

    def box_xyxy(self, counts: bytes) -> Float[np.ndarray, " 4"]:
        """The tight box of a mask of this size."""
        return np.array(rle.box_xyxy(counts, *self.labels.shape[::-1]))


def _rows(queries: Int64[np.ndarray, " k"], needed: Int64[np.ndarray, " m"], device: torch.device) -> Tensor | slice:
    """Where a task's queries stand among all that are needed; all of them in order: a slice, which copies nothing."""
    if np.array_equal(queries, needed):
        return slice(None)
    return torch.from_numpy(np.searchsorted(needed, queries)).to(device)


def _object_parts(vocabulary: Vocabulary, queries: GenericQueries) -> Int64[Tensor, "p 2"]:
    """The (object, part) pairs that there may be, on the queries' device."""
    pairs = np.array(vocabulary.object_parts, np.int64).reshape(-1, 2)
    if not len(pairs):
        every = np.indices((len(vocabulary.objects), len(vocabulary.parts)))
        pairs = every.reshape(2, -1).T.astype(np.int64)
    return torch.from_numpy(pairs).to(queries.object_scores.device)


def _part_scores(queries: GenericQueries, pairs: Int64[Tensor, "p 2"]) -> Iterator[Float[Tensor, "n p"]]:
    """How likely each query is which part of which object, for some queries at a time."""
    of_object, part = pairs.unbind(1)
    at_once = max(SCORES_AT_ONCE // max(len(pairs), 1), 1)
    for objects, parts in zip(queries.object_scores.split(at_once), queries.part_scores.split(at_once), strict=True):
        yield objects[:, of_object] * parts[:, part]


def _likeliest(
    scores: Iterator[Float[Tensor, "n p"]], most: int, min_score: float
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Rows, columns and values of the highest scores above `min_score`, best first; equal ones in their order.

    Rows go on from one matrix to the next.
    """
    rows, columns, values, start = [], [], [], 0
    for some in scores:
        flat = some.flatten()
        is_candidate = flat > min_score
        if len(flat) > most:
            is_candidate &= flat >= flat.topk(most).values[-1]
        chosen = torch.nonzero(is_candidate)[:, 0]
        place = chosen.cpu().numpy()
        rows.append(start + place // max(some.shape[1], 1))
        columns.append(place % max(some.shape[1], 1))
        values.append(flat[chosen].cpu().numpy())
        start += len(some)
    row, column, value = (np.concatenate(found) for found in (rows, columns, values))
    best = np.argsort(-value, kind="stable")[:most]
    return row[best], column[best], value[best]


def _named(counts: bytes, box: Float[np.ndarray, " 4"], names: tuple[int, int | None], score: float) -> NamedMask:
    x1, y1, x2, y2 = box.tolist()
    return NamedMask(counts, (x1, y1, x2, y2), *names, float(score))


def _check_finite(image: EncodedImage, queries: GenericQueries) -> None:
    said = (*vars(queries).values(), image.features.mask_features)
    if not torch.stack([values.isfinite().all() for values in said]).all():
        raise ValueError(
            "the model's predictions for this image are not finite (NaN): its weights are damaged, or its numbers "
            "beyond what their precision holds"
        )
