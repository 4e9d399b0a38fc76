"""Small batches of nested masks and random predictions for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.data.atoms import AtomMap
from semsam.data.manifest import Vocabulary
from semsam.data.sample import Batch, Prompts, Regions, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.model.predictions import ModelOutput, Predictions

SIZE, LEVELS, NUM_PROMPTS, NUM_GENERIC = 64, 6, 4, 12
NUM_NAMES = {
    "sa1b": (0, 0),
    "coco_panoptic": (5, 0),
    "objects365": (6, 0),
    "ade20k": (4, 0),
    "pascal_part": (3, 4),
    "paco": (4, 6),
    "partimagenet": (2, 3),
}


@pytest.fixture(scope="session")
def vocabulary() -> JointVocabulary:
    return JointVocabulary.of(
        {
            dataset: Vocabulary(
                tuple(f"{dataset} object {i}" for i in range(objects)),
                tuple(f"{dataset} part {i}" for i in range(parts)),
            )
            for dataset, (objects, parts) in NUM_NAMES.items()
        }
    )


def random_masks(num_masks: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes inside boxes: many pixels are covered several times."""
    ys, xs = np.mgrid[:SIZE, :SIZE]
    masks = np.zeros((num_masks, SIZE, SIZE), bool)
    for mask in masks:
        y, x = np.sort(rng.integers(0, SIZE + 1, (2, 2)))
        mask[:] = (ys >= min(y[0], SIZE - 2)) & (ys < y[1] + 1) & (xs >= min(x[0], SIZE - 2)) & (xs < x[1] + 1)
    return masks


def atoms_of(masks: np.ndarray) -> AtomMap:
    """The obvious way: one label per distinct column of the stack."""
    if not len(masks):
        return AtomMap(np.zeros((SIZE, SIZE), np.uint16), np.zeros((1, 0), bool))
    patterns, labels = np.unique(masks.reshape(len(masks), -1).T, axis=0, return_inverse=True)
    table = np.concatenate([np.zeros((1, len(masks)), bool), patterns])
    return AtomMap((labels.reshape(masks.shape[1:]) + 1).astype(np.uint16), table)


def boxes_cxcywh(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        low, high = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]]) + 1
        box[:] = np.concatenate([(low + high) / 2, high - low]) / SIZE
    return boxes


def random_sample(dataset: str, index: int, num_masks: int = 7) -> Sample:
    """A sample of any dataset: nothing named that the dataset does not name, parts with parents where it has parts."""
    rng = np.random.default_rng(index)
    num_masks = num_masks if dataset else 0
    objects, parts = NUM_NAMES[dataset] if dataset else (0, 0)
    has_masks = dataset != "objects365"
    masks = random_masks(num_masks, rng)
    is_part = (np.arange(num_masks) % 2 == 1) & (parts > 0)
    object_category = rng.integers(0, objects, num_masks) if objects else np.full(num_masks, -1)
    regions = Regions(
        boxes_cxcywh=boxes_cxcywh(masks),
        has_mask=np.full(num_masks, has_masks),
        object_category=np.where(is_part, -1, object_category).astype(np.int32),
        part_category=np.where(is_part, rng.integers(0, max(1, parts), num_masks), -1).astype(np.int32),
        parent=np.where(is_part, np.arange(num_masks) - 1, -1).astype(np.int32),
        is_thing=np.ones(num_masks, bool),
    )
    targets, all_asked = np.full((NUM_PROMPTS, LEVELS), -1, np.int32), np.full(NUM_PROMPTS, -1, np.int32)
    for number, row in enumerate(targets if num_masks else []):
        asked = all_asked[number] = int(rng.integers(num_masks))
        y, x = rng.permutation(np.argwhere(masks[asked]))[0]
        under = rng.permutation(np.flatnonzero(masks[:, y, x]))[:LEVELS]
        found = np.sort(under) if has_masks and number else [asked]  # The first prompt is a box.
        row[: len(found)] = found
    is_box = np.arange(NUM_PROMPTS) == 0 if has_masks else np.ones(NUM_PROMPTS, bool)
    is_valid = np.full(NUM_PROMPTS, num_masks > 0)
    prompts = Prompts(rng.random((NUM_PROMPTS, 4), np.float32), is_box, is_valid, targets, all_asked)
    if not has_masks:
        masks = np.zeros_like(masks)
    image = np.zeros((3, SIZE, SIZE), np.uint8)
    return Sample(index if dataset else -1, dataset, str(index), image, atoms_of(masks), regions, prompts)


def federated(sample: Sample) -> Sample:
    """The sample of a dataset that checks only some names on each image."""
    return replace(
        sample,
        checked_objects=np.array([0, 2], np.int32),
        checked_parts=np.array([1, 4], np.int32),
        not_exhaustive_objects=np.array([2], np.int32),
    )


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    return random_sample


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    def make(datasets: list[str], num_masks: int = 7) -> Batch:
        samples = [random_sample(dataset, index, num_masks) for index, dataset in enumerate(datasets)]
        return Batch.of([federated(s) if s.dataset == "paco" else s for s in samples], step=0)

    return make


@pytest.fixture(scope="session")
def make_output(vocabulary: JointVocabulary) -> Callable[..., ModelOutput]:
    """Random predictions whose tensors are leaves; the pixel embeddings are one tensor for all, as in the model."""

    def make(
        num_images: int, num_layers: int = 2, num_prompts: int = NUM_PROMPTS, num_denoising: int = 0
    ) -> ModelOutput:
        generator = torch.Generator().manual_seed(7)
        channels, side = 5, SIZE // 4

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        features = normal(num_images, channels, side, side).requires_grad_()

        def predictions(q: int) -> Predictions:
            leaves = Predictions(
                mask_embeddings=normal(num_images, q, channels),
                mask_features=features,
                boxes_cxcywh=torch.rand((num_images, q, 4), generator=generator) * 0.5 + 0.2,
                iou_predictions=normal(num_images, q),
                object_logits=normal(num_images, q, len(vocabulary.objects)) - 1,
                part_logits=normal(num_images, q, len(vocabulary.parts)) - 1,
            )
            return replace(
                leaves, **{name: t.requires_grad_() for name, t in vars(leaves).items() if name != "mask_features"}
            )

        return ModelOutput(
            prompts=[predictions(num_prompts * LEVELS) for _ in range(num_layers)],
            generic=[predictions(NUM_GENERIC) for _ in range(num_layers)],
            proposals=predictions(NUM_GENERIC),
            denoising=[predictions(num_denoising) for _ in range(num_layers if num_denoising else 0)],
        )

    return make
