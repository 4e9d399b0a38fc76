"""Everything in an image: the same as slow, obvious versions of the rules on dense masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.named_mask import NamedMask
from semsam.encoded_image import EncodedImage
from semsam.everything import Everything, EverythingSettings, GenericQueries, find_everything, whole_scores
from semsam.model.pixel_decoder import ImageFeatures

CHANNELS = 8
OBJECTS, PARTS = ("car", "dog", "sky", "road", "cat"), ("wheel", "leg", "door")
THINGS = (True, True, False, False, True)
PAIRS = ((0, 0), (0, 2), (1, 1), (4, 1))
# Height and width of the image, of the network's input, and of the padded input.
SIZES = [
    ((40, 56), (40, 56), (64, 64)),
    ((50, 70), (64, 90), (64, 96)),
    ((90, 61), (64, 43), (64, 64)),
    ((3, 2), (3, 2), (32, 32)),
    ((1, 70), (1, 70), (32, 96)),
    ((20, 300), (2, 32), (32, 32)),
]


@dataclass(frozen=True)
class Scene:
    image: EncodedImage
    queries: GenericQueries
    vocabulary: Vocabulary

    def masks(self) -> torch.Tensor:
        """The soft masks of all queries at the image's own size, as prompts' masks are made."""
        return self.image.at_own_size(self.image.mask_logits(self.queries.mask_embeddings))

    def object_scores(self) -> np.ndarray:
        return self.queries.object_scores.double().numpy()

    def part_scores(self) -> np.ndarray:
        return self.queries.part_scores.double().numpy()


def scene(
    seed: int = 0,
    sizes: tuple[tuple[int, int], ...] = SIZES[1],
    num_queries: int = 12,
    objects: Sequence[str] = OBJECTS,
    parts: Sequence[str] = PARTS,
    things: Sequence[bool] = THINGS,
    pairs: Sequence[tuple[int, int]] = PAIRS,
    dtype: torch.dtype = torch.float32,
) -> Scene:
    """Random masks with smooth edges; of each query one name is sure."""
    random = torch.Generator().manual_seed(seed)
    size, input_size, padded_size = sizes
    coarse = torch.randn(1, CHANNELS, 5, 5, generator=random)
    features = F.interpolate(coarse, [side // 4 for side in padded_size], mode="bicubic").to(dtype)
    logits = torch.randn(num_queries, len(objects), generator=random) - 2
    if len(objects):
        sure = torch.randint(len(objects), (num_queries, 1), generator=random)
        logits = logits.scatter_add(1, sure, 4 * torch.rand(num_queries, 1, generator=random))
    queries = GenericQueries(
        (2 * torch.randn(num_queries, CHANNELS, generator=random)).to(dtype),
        torch.rand(num_queries, 4, generator=random),
        logits.sigmoid(),
        torch.rand(num_queries, len(parts), generator=random),
    )
    vocabulary = Vocabulary(tuple(objects), tuple(parts), tuple(things), tuple(pairs))
    return Scene(EncodedImage(ImageFeatures(features, (), padded_size), size, input_size), queries, vocabulary)


def slow_whole_scores(of: Scene) -> np.ndarray:
    objects, parts, pairs = of.object_scores(), of.part_scores(), of.vocabulary.object_parts
    scores = objects.copy()
    for query in range(objects.shape[0]):
        for name in range(objects.shape[1]):
            own = [parts[query, part] for part in range(parts.shape[1]) if not pairs or (name, part) in pairs]
            scores[query, name] *= 1 - max(own, default=0.0)
    return scores


@dataclass(frozen=True)
class Expected:
    mask: np.ndarray
    object_category: int
    part_category: int | None
    score: float


def slow_instances(of: Scene, settings: EverythingSettings) -> list[Expected]:
    masks, whole, objects, parts = of.masks().double(), slow_whole_scores(of), of.object_scores(), of.part_scores()
    of_objects = [
        (whole[query, name], query, name, None)
        for query in range(whole.shape[0])
        for name in range(whole.shape[1])
        if of.vocabulary.things[name]
    ]
    pairs = of.vocabulary.object_parts
    of_parts = [
        (objects[query, name] * parts[query, part], query, name, part)
        for query in range(whole.shape[0])
        for name in range(whole.shape[1])
        for part in range(parts.shape[1])
        if not pairs or (name, part) in pairs
    ]
    chosen = sorted(of_objects, key=lambda one: -one[0])[: settings.max_objects]
    chosen += sorted(of_parts, key=lambda one: -one[0])[: settings.max_parts]
    found = []
    for score, query, name, part in chosen:
        inside = (masks[query] > 0).numpy()
        if inside.any():
            quality = masks[query].sigmoid().numpy()[inside].mean()
            if score * quality > settings.min_score:
                found.append(Expected(inside, name, part, score * quality))
    return sorted(found, key=lambda one: -one.score)


def slow_panoptic(of: Scene, settings: EverythingSettings) -> list[Expected]:
    probabilities, whole = of.masks().double().sigmoid().numpy(), slow_whole_scores(of)
    competing = []
    for query, scores in enumerate(whole):
        if scores.size and scores.max() > settings.min_panoptic_score:
            name = int(scores.argmax())
            sharp = np.exp(scores / settings.temperature) / np.exp(scores / settings.temperature).sum()
            competing.append((scores[name], name, sharp[name], probabilities[query]))
    competing.sort(key=lambda one: -one[0])
    if not competing:
        return []
    winner = np.stack([weight * mask for _, _, weight, mask in competing]).argmax(axis=0)
    segments: list[Expected] = []
    for place, (score, name, _, mask) in enumerate(competing):
        claimed, won = mask > 0.5, winner == place
        own = claimed & won
        if not own.any() or won.sum() / claimed.sum() < settings.min_unhidden:
            continue
        same = [one for one in segments if one.object_category == name and not of.vocabulary.things[name]]
        if same:
            same[0].mask[own] = True
        else:
            segments.append(Expected(own, name, None, score))
    return segments


def slow_semantic(of: Scene, settings: EverythingSettings) -> list[Expected]:
    probabilities, whole = of.masks().double().sigmoid().numpy(), slow_whole_scores(of)
    if not whole.size:
        return []
    sharp = np.exp(whole / settings.temperature)
    sharp /= sharp.sum(axis=1, keepdims=True)
    votes = np.einsum("qx,qhw->xhw", sharp, probabilities)
    shares = votes / votes.sum(axis=0)
    names = votes.argmax(axis=0)
    found = [
        Expected(names == name, name, None, shares[name][names == name].mean()) for name in np.unique(names).tolist()
    ]
    return sorted(found, key=lambda one: -one.score)


def dense(found: Sequence[NamedMask], of: Scene) -> np.ndarray:
    masks = [rle.decode(one.rle, *of.image.size) for one in found]
    return np.array(masks, bool).reshape(-1, *of.image.size)


def assert_found(found: Sequence[NamedMask] | None, expected: Sequence[Expected], of: Scene) -> None:
    """The same names in the same order; scores to 1e-5, and masks but for a pixel whose rounding may cross one half."""
    assert found is not None
    names = [(one.object_category, one.part_category) for one in found]
    assert names == [(one.object_category, one.part_category) for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-5)
    if expected:
        assert (dense(found, of) != np.stack([one.mask for one in expected])).mean() < 1e-4


def tight_boxes(found: Sequence[NamedMask], of: Scene) -> list[tuple[float, ...]]:
    return [rle.box_xyxy(one.rle, *of.image.size) for one in found]


@pytest.mark.parametrize("sizes", SIZES)
def test_bands_are_the_masks_that_prompts_get(sizes: tuple) -> None:
    one = scene(sizes=sizes)
    expected = one.masks().transpose(1, 2)
    for num_maps in (1, 10**6):
        bands = list(one.image.bands(one.queries.mask_embeddings, num_maps))
        torch.testing.assert_close(torch.cat(bands, dim=1), expected, rtol=1e-4, atol=1e-4)
    assert [band.shape[0] for band in one.image.bands(one.queries.mask_embeddings[:0], 1)] == [0]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairs", [PAIRS, ()])
def test_everything_is_what_the_slow_rules_find(sizes: tuple, seed: int, pairs: tuple) -> None:
    one = scene(seed, sizes, pairs=pairs)
    settings = EverythingSettings(max_objects=20, max_parts=15, min_unhidden=0.4)
    found = find_everything(one.image, one.queries, one.vocabulary, settings)
    assert_found(found.instances, slow_instances(one, settings), one)
    assert_found(found.panoptic, slow_panoptic(one, settings), one)
    assert_found(found.semantic, slow_semantic(one, settings), one)


@pytest.mark.parametrize(
    "changes",
    [
        {"objects": (), "things": (), "parts": (), "pairs": ()},
        {"objects": (), "things": (), "pairs": ()},
        {"parts": (), "pairs": ()},
        {"things": (False,) * 5},
        {"things": (False,) * 5, "parts": (), "pairs": ()},
        {"objects": ("car",), "things": (True,), "parts": (), "pairs": ()},
        {"num_queries": 1},
        {"num_queries": 0},
        {"num_queries": 70},
    ],
)
def test_few_names_and_queries_are_legal(changes: dict) -> None:
    one = scene(**changes)
    settings = EverythingSettings()
    found = find_everything(one.image, one.queries, one.vocabulary, settings)
    assert_found(found.instances, slow_instances(one, settings), one)
    if changes.get("objects") != ("car",):  # There all weigh the same, and which of two sure ones wins is rounding.
        assert_found(found.panoptic, slow_panoptic(one, settings), one)
    assert_found(found.semantic, slow_semantic(one, settings), one)


def test_what_is_below_its_threshold_is_not_there() -> None:
    one = scene()
    low = replace(one.queries, object_scores=one.queries.object_scores * 0.1)
    found = find_everything(one.image, low, one.vocabulary, EverythingSettings(min_score=0.2))
    assert found.instances == found.panoptic == ()
    assert found.semantic
    settings = EverythingSettings(min_score=0.3)
    some = find_everything(one.image, one.queries, one.vocabulary, settings).instances or ()
    assert 0 < len(some) < len(find_everything(one.image, one.queries, one.vocabulary).instances or ())
    assert_found(some, slow_instances(one, settings), one)


def masks_of(found: Everything) -> dict[str, tuple[NamedMask, ...] | None]:
    return {kind: getattr(found, kind) for kind in ("instances", "panoptic", "semantic")}


def test_a_vocabulary_that_says_nothing_of_things_has_things_alone() -> None:
    silent, told = scene(things=()), scene(things=(True,) * 5)
    settings = EverythingSettings(min_unhidden=0.1)
    found, expected = (find_everything(one.image, one.queries, one.vocabulary, settings) for one in (silent, told))
    assert masks_of(found) == masks_of(expected)
    assert len(found.panoptic or ()) > 0


def test_only_what_is_asked_for_is_looked_for() -> None:
    one = scene()
    every = find_everything(one.image, one.queries, one.vocabulary)
    for name in ("instances", "panoptic", "semantic"):
        only = EverythingSettings(**{other: other == name for other in ("instances", "panoptic", "semantic")})
        found = find_everything(one.image, one.queries, one.vocabulary, only)
        assert {kind for kind, masks in masks_of(found).items() if masks is not None} == {name}
        masks, expected = getattr(found, name), getattr(every, name)
        assert [(a.rle, a.object_category) for a in masks] == [(b.rle, b.object_category) for b in expected]
    nothing = EverythingSettings(instances=False, panoptic=False, semantic=False)
    assert set(masks_of(find_everything(one.image, one.queries, one.vocabulary, nothing)).values()) == {None}


@pytest.mark.parametrize("seed", range(5))
def test_panoptic_segments_never_overlap_and_semantic_masks_cover_all(seed: int) -> None:
    one = scene(seed, SIZES[2], num_queries=30)
    found = find_everything(one.image, one.queries, one.vocabulary, EverythingSettings(min_unhidden=0.1))
    panoptic, semantic = found.panoptic or (), found.semantic or ()
    assert len(panoptic) > 1
    assert dense(panoptic, one).sum(axis=0).max() == 1
    assert (dense(semantic, one).sum(axis=0) == 1).all()
    for segments in (panoptic, semantic):
        assert [segment.box_xyxy for segment in segments] == tight_boxes(segments, one)
        assert [segment.score for segment in segments] == sorted((s.score for s in segments), reverse=True)
    stuff = [segment.object_category for segment in panoptic if not THINGS[segment.object_category]]
    assert len(stuff) == len(set(stuff))
    names = [segment.object_category for segment in semantic]
    assert len(names) == len(set(names))


def test_scores_of_parts_and_wholes() -> None:
    one = scene(num_queries=1)
    objects, parts = torch.tensor([[0.9, 0.5, 0.4, 0.2, 0.1]]), torch.tensor([[0.6, 0.8, 0.3]])
    queries = replace(one.queries, object_scores=objects, part_scores=parts)
    # A car has wheel (0.6) and door (0.3), a dog and a cat have a leg (0.8); sky and road have no parts.
    whole = whole_scores(queries, torch.tensor(PAIRS))
    torch.testing.assert_close(whole, torch.tensor([[0.9 * 0.4, 0.5 * 0.2, 0.4, 0.2, 0.1 * 0.2]]))
    every = torch.cartesian_prod(torch.arange(5), torch.arange(3))
    torch.testing.assert_close(whole_scores(queries, every), objects * (1 - 0.8))
    torch.testing.assert_close(whole_scores(queries, every[:0]), objects)
    found = find_everything(one.image, queries, one.vocabulary).instances or ()
    quality = one.masks()[0].sigmoid()[one.masks()[0] > 0].mean().item()
    scores = {(mask.object_category, mask.part_category): mask.score / quality for mask in found}
    expected = {(0, 0): 0.54, (0, 2): 0.27, (1, 1): 0.4, (4, 1): 0.08, (0, None): 0.36, (1, None): 0.1, (4, None): 0.02}
    assert scores == pytest.approx(expected, rel=1e-4)
    # One mask, encoded once, whatever it is called; and the model's own box.
    assert len({id(mask.rle) for mask in found}) == 1
    assert {mask.box_xyxy for mask in found} == {tuple(queries.boxes_xyxy[0].tolist())}


def test_equal_scores_stay_in_the_order_of_queries_and_names() -> None:
    one = scene(parts=(), pairs=())
    first = one.queries.mask_embeddings[:1].expand(12, -1)
    equal = replace(one.queries, mask_embeddings=first, object_scores=torch.full((12, 5), 0.5))
    boxes = equal.boxes_xyxy.tolist()
    found = find_everything(one.image, equal, one.vocabulary, EverythingSettings(max_objects=7)).instances or ()
    places = [(boxes.index(list(mask.box_xyxy)), mask.object_category) for mask in found]
    assert places == [(0, 0), (0, 1), (0, 4), (1, 0), (1, 1), (1, 4), (2, 0)]


@pytest.mark.parametrize("sizes", SIZES)
def test_memory_is_bounded_and_how_changes_nothing(sizes: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene(2, sizes)
    expected = find_everything(one.image, one.queries, one.vocabulary)
    monkeypatch.setattr("semsam.encoded_image.MAP_BYTES", 4 * 96 * 96 * 2)
    monkeypatch.setattr("semsam.everything.SCORES_AT_ONCE", 9)
    maps = []
    bands = EncodedImage.bands

    def noted(image: EncodedImage, embeddings: torch.Tensor, num_maps: int):
        for band in bands(image, embeddings, num_maps):
            maps.append(band.numel())
            yield band

    monkeypatch.setattr(EncodedImage, "bands", noted)
    found = find_everything(one.image, one.queries, one.vocabulary)
    assert max(maps) <= max(96 * 96 * 2, 12 * sizes[0][0])  # At least one column of each.
    for name, masks in masks_of(found).items():
        others = getattr(expected, name)
        assert masks is not None
        assert [mask.score for mask in masks] == pytest.approx([mask.score for mask in others], rel=1e-5)
        assert [replace(mask, score=0) for mask in masks] == [replace(mask, score=0) for mask in others]


@pytest.mark.parametrize("field", ["mask_embeddings", "boxes_xyxy", "object_scores", "part_scores"])
def test_predictions_that_are_not_finite_are_refused(field: str) -> None:
    one = scene()
    values = getattr(one.queries, field).clone()
    values[3, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        find_everything(one.image, replace(one.queries, **{field: values}), one.vocabulary)
    one.image.features.mask_features[0, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        find_everything(one.image, one.queries, one.vocabulary)


def test_half_precision_models_are_answered() -> None:
    one, exact = scene(parts=(), pairs=(), dtype=torch.bfloat16), scene(parts=(), pairs=())
    with torch.autocast("cpu", torch.bfloat16):
        found = find_everything(one.image, one.queries, one.vocabulary)
    expected = find_everything(exact.image, exact.queries, exact.vocabulary)
    for name in ("instances", "semantic"):
        masks, others = getattr(found, name), getattr(expected, name)
        assert [mask.score for mask in masks] == pytest.approx([mask.score for mask in others], abs=0.01)
    by_name = [
        {mask.object_category: rle.decode(mask.rle, *one.image.size) for mask in masks or ()}
        for masks in (found.semantic, expected.semantic)
    ]
    assert by_name[0].keys() == by_name[1].keys()
    assert np.mean([by_name[0][name] != mask for name, mask in by_name[1].items()]) < 0.01
