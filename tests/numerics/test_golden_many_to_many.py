"""The matcher and the criterion against recorded values of the published model, fed the same random points."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semsam.data.atoms import AtomMap
from semsam.data.manifest import Vocabulary
from semsam.data.sample import Batch, Prompts, Regions, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses import matcher
from semsam.losses.branches import Layers
from semsam.losses.criterion import Criterion, CriterionSettings, SharedPoints
from semsam.losses.mask_losses import EmbeddedPairs, MaskSource, importance_points
from semsam.losses.targets import Targets, count_targets
from semsam.model.predictions import ModelOutput, Predictions
from semsam.ops.point_sampling import sample_maps

TOLERANCE = 1e-5
SIZE = 128
LOSSES = {
    "loss_mask_bce": "click/mask_bce",
    "loss_mask_dice": "click/mask_dice",
    "loss_bbox": "click/box_l1",
    "loss_giou": "click/giou",
    "iou_score_loss": "click/iou",
}


@dataclass(frozen=True)
class MapMasks:
    """Predicted maps that are given, not made from embeddings (`mask_embeddings` holds them flattened)."""

    maps: Tensor

    def pairs(self, image: int, queries: Tensor) -> EmbeddedPairs:
        return EmbeddedPairs(F.one_hot(queries, self.maps.shape[1]).float(), self.maps[image])

    def at(self, points: Tensor) -> Tensor:
        return torch.stack([sample_maps(m, p.expand(len(m), -1, -1)) for m, p in zip(self.maps, points, strict=True)])


def read_maps(layers: Sequence[Predictions]) -> list[MaskSource]:
    return [MapMasks(layer.mask_embeddings.unflatten(2, layer.mask_features.shape[2:])) for layer in layers]


@dataclass(frozen=True)
class RecordedPoints:
    """The published run drew: matcher points, then per layer (last first) candidates and uniform points.

    Its pairs are sorted by query and ours by target: `order[i]` is the published place of our pair `i`.
    """

    reference: ModuleType
    seed: int
    num_layers: int
    shapes: list[list[int]]
    order: np.ndarray

    def matcher(self, sample: int, count: int) -> Tensor:
        return self._draw(0)[0]

    def losses(self, sample: int, layer: int) -> Callable[[int, int], Tensor]:
        if layer >= self.num_layers:
            return lambda pairs, points: torch.zeros(pairs, points, 2)
        call = 1 + 2 * ((layer + 1) % self.num_layers)
        drawn = torch.cat([self._draw(call), self._draw(call + 1)], dim=1)
        taken = iter(self.order)

        def stream(pairs: int, points: int) -> Tensor:
            assert points == drawn.shape[1]
            return drawn[[next(taken) for _ in range(pairs)]]

        return stream

    def _draw(self, call: int) -> Tensor:
        return 2 * torch.from_numpy(self.reference.rand_stream(self.seed, call, self.shapes[call])) - 1


@dataclass(frozen=True)
class Case:
    golden: Mapping[str, np.ndarray]
    targets: Targets
    normalizers: Tensor
    output: ModelOutput
    leaves: list[dict[str, Tensor]]
    points: RecordedPoints
    criterion: Criterion


@pytest.fixture(scope="module")
def case(reference_dir: Path) -> Case:
    reference = load(reference_dir / "deterministic_weights.py")
    golden = np.load(reference_dir / "golden_many_to_many.npz")
    seed, num_layers, tokens, side = (int(golden[name]) for name in ("seed", "n_layers", "tokens", "hm"))
    clicked = json.loads(str(golden["level_target_inds_json"]))
    kept = json.loads(str(golden["shuffle_json"]))
    masks = reference.nested_masks(SIZE, SIZE)
    batch = batch_of(masks, reference.boxes_xyxy(masks) / SIZE, clicked, golden["points"], tokens)
    assert len(kept[0]) > tokens
    vocabulary = JointVocabulary.of({"sa1b": Vocabulary(objects=())})
    leaves = [
        {
            name: torch.from_numpy(value).requires_grad_()
            for name, value in reference.fake_predictions(
                seed, layer, len(clicked), tokens, side, side, masks, clicked
            ).items()
        }
        for layer in range(num_layers)
    ]
    prompts = [predictions(leaf["pred_masks"], leaf["pred_boxes"], leaf["pred_ious"].flatten(1)) for leaf in leaves]
    nothing = predictions(torch.zeros(1, 1, side, side), torch.full((1, 1, 4), 0.5), torch.zeros(1, 1))
    shapes = json.loads(str(golden["rand_calls_shapes_json"]))
    return Case(
        golden=golden,
        targets=Targets.of(batch, vocabulary, torch.device("cpu")),
        normalizers=torch.from_numpy(count_targets(batch)),
        output=ModelOutput(prompts, [nothing], nothing),
        leaves=leaves,
        points=RecordedPoints(reference, seed, num_layers, shapes, np.argsort(golden["match_target"])),
        criterion=Criterion(CriterionSettings(num_points=int(golden["num_points"])), read_maps),
    )


def test_cost_matrix_and_assignment_are_those_of_the_published_matcher(case: Case) -> None:
    at = case.points.matcher(0, 256)[None]
    shared = SharedPoints(at, matcher.region_values_at(case.targets, at))
    layers = Layers.of(case.output.prompts, read_maps(case.output.prompts))
    cost = case.criterion.click_cost(layers, case.targets, shared)
    pairs = matcher.match_clicks(cost, case.targets)
    assert len(pairs) == case.golden["cost_matrix"].shape[1]
    # Published columns are (click, target) pairs in order, as ours; entries of other clicks are 1e6.
    ours, published = cost[0][:, pairs.region].numpy(), case.golden["cost_matrix"]
    block = published < 1e5
    assert block.sum() == sum(6 * int((row >= 0).sum()) for row in case.targets.prompt_targets_host[0])
    assert relative(ours[block], published[block]) < TOLERANCE
    assert pairs.query.tolist() == case.golden["match_query"][case.points.order].tolist()


def test_every_loss_is_that_of_the_published_criterion(case: Case) -> None:
    losses = case.criterion.layer_losses(case.output, case.targets, case.normalizers, case.points)
    published = dict(zip(case.golden["loss_names"].tolist(), case.golden["loss_values"].tolist(), strict=True))
    num_layers = len(case.output.prompts)
    for name, value in published.items():
        stem, _, number = name.rpartition("_")
        layer = (int(number) - 1) % num_layers  # "_0" is the last layer, "_1" the first.
        assert losses[LOSSES[stem]][layer].item() == pytest.approx(value, rel=TOLERANCE), name


def test_total_and_gradients_are_those_of_the_published_criterion(case: Case) -> None:
    output = case.criterion(case.output, case.targets, case.normalizers, seed=0, points=case.points)
    assert output.loss.item() == pytest.approx(float(case.golden["total_weighted"]), rel=TOLERANCE)
    leaves = [leaf for layer in case.leaves for leaf in layer.values()]
    gradients = iter(torch.autograd.grad(output.loss, leaves))
    for number, layer in enumerate(case.leaves):
        for name in layer:
            ours = next(gradients)
            norm = float(case.golden[f"gradnorm.layer{number}.{name}"])
            assert ours.norm().item() == pytest.approx(norm, rel=TOLERANCE), name
            recorded = f"grad.layer{number}.{name}"
            if recorded in case.golden:
                assert relative(ours.numpy(), case.golden[recorded]) < TOLERANCE, recorded


def test_kept_points_are_those_of_the_published_criterion(case: Case) -> None:
    """Of each pair: the same uncertain candidates in any order, and the same uniform points."""
    queries = torch.from_numpy(case.golden["match_query"][case.points.order])
    for layer in range(len(case.output.prompts)):
        published = case.golden[f"points_used.{(layer + 1) % len(case.output.prompts)}"]
        maps = case.output.prompts[layer].mask_embeddings.detach()[0, queries]
        maps = maps.unflatten(1, case.output.prompts[layer].mask_features.shape[2:])
        ours, _ = importance_points(maps, case.points.losses(0, layer), case.criterion.counts)
        assert np.array_equal(np.sort(ours[..., 0].numpy()), np.sort(2 * published[case.points.order][..., 0] - 1))


def predictions(maps: Tensor, boxes: Tensor, ious: Tensor) -> Predictions:
    b, q, height, width = maps.shape
    nothing = torch.zeros(b, q, 0)
    return Predictions(maps.flatten(2), torch.zeros(b, 0, height, width), boxes, ious, nothing, nothing)


def batch_of(
    masks: np.ndarray, boxes_xyxy: np.ndarray, clicked: list[list[int]], points: np.ndarray, tokens: int
) -> Batch:
    """The published training sample as a batch of one: labels are the bit patterns of covering masks, made dense."""
    patterns, labels = np.unique((masks.reshape(len(masks), -1).T != 0), axis=0, return_inverse=True)
    table = np.concatenate([np.zeros((1, len(masks)), bool), patterns])
    atoms = AtomMap((labels.reshape(SIZE, SIZE) + 1).astype(np.uint16), table)
    low, high = boxes_xyxy[:, :2], boxes_xyxy[:, 2:]
    m, n = len(masks), len(clicked)
    none = np.full(m, -1, np.int32)
    regions = Regions(
        np.concatenate([(low + high) / 2, high - low], 1), np.ones(m, bool), none, none, none, np.ones(m, bool)
    )
    targets = np.full((n, tokens), -1, np.int32)
    for row, found in zip(targets, clicked, strict=True):
        row[: len(found)] = found
    prompts = Prompts(points.astype(np.float32), np.zeros(n, bool), np.ones(n, bool), targets, targets[:, 0])
    image = np.zeros((3, SIZE, SIZE), np.uint8)
    return Batch.of([Sample(0, "sa1b", "nested", image, atoms, regions, prompts)], step=0)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference relative to the largest value."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
