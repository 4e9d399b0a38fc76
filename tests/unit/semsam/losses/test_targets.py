from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.data.atoms import AtomMap
from semsam.data.sample import Batch, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.targets import NORMALIZERS, Targets, count_targets
from semsam.ops.point_sampling import all_region_values

CPU = torch.device("cpu")
MakeBatch = Callable[..., Batch]
MakeSample = Callable[..., Sample]


def counts(batch: Batch, many_to_one: bool = False) -> dict[str, int]:
    return {name: int(n) for name, n in zip(NORMALIZERS, count_targets(batch, many_to_one), strict=True)}


def test_counts_are_pairs_that_the_terms_sum_over(make_batch: MakeBatch) -> None:
    found = counts(make_batch(["sa1b", "objects365", "paco", ""]))
    batch = make_batch(["sa1b", "objects365", "paco", ""])
    clicks = (batch.prompt_targets >= 0).sum((1, 2))
    assert found == {
        "click/boxes": clicks.sum(),
        "click/masks": clicks[0] + clicks[2],
        "click/objects": clicks[1] + clicks[2],
        "click/parts": clicks[2],
        "generic/boxes": 14,
        "generic/masks": 7,
        "generic/objects": 14,
        "generic/parts": 7,
        "denoising/boxes": 0,
        "denoising/masks": 0,
        "denoising/objects": 0,
        "denoising/parts": 0,
    }
    assert counts(batch, many_to_one=True)["click/boxes"] == 3 * batch.prompt_targets.shape[1]


def test_counts_of_a_batch_are_the_sum_of_its_samples(make_batch: MakeBatch) -> None:
    batch = make_batch(["ade20k", "sa1b", "partimagenet"])
    single = [count_targets(Batch.of([sample], step=0)) for sample in batch.samples]
    assert np.array_equal(count_targets(batch), sum(single))


@pytest.mark.parametrize("datasets", [["", ""], ["sa1b"], ["paco", "sa1b"]])
def test_without_regions_everything_counts_zero(datasets: list[str], make_batch: MakeBatch) -> None:
    assert not count_targets(make_batch(datasets, num_masks=0)).any()


def test_prompts_that_are_padding_count_nowhere(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    batch = make_batch(["coco_panoptic"])
    batch = replace(batch, prompt_valid=np.zeros_like(batch.prompt_valid))
    assert counts(batch)["click/boxes"] == counts(batch, many_to_one=True)["click/boxes"] == 0
    assert (Targets.of(batch, vocabulary, CPU).prompt_asked_host == -1).all()
    assert (Targets.of(batch, vocabulary, CPU).prompt_targets == -1).all()


def test_ragged_samples_are_padded_and_keep_their_masks(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    samples = [make_sample("ade20k", 0, 3), make_sample("pascal_part", 1, 8), make_sample("", 2)]
    targets = Targets.of(Batch.of(samples, step=0), vocabulary, CPU)
    assert targets.boxes_cxcywh.shape == (3, 8, 4)
    assert targets.samples == (0, 1, -1)
    assert targets.num_regions_host == (3, 8, 0)
    assert targets.generic_host == (True, True, False)
    ys, xs = np.mgrid[:64, :64]
    centres = torch.from_numpy(np.stack([xs, ys], -1).reshape(-1, 2)).float().add(0.5).div(32).sub(1)
    values = all_region_values(targets.labels, targets.tables, centres.expand(3, -1, -1))
    for image, sample in enumerate(samples):
        for region in range(8):
            expected = sample.atoms.mask(region) if region < len(sample.regions) else np.zeros((64, 64), bool)
            assert np.array_equal(values[image, :, region].view(64, 64).numpy() > 0.5, expected)
    assert (targets.objects.names[0, 3:] == -1).all()
    assert not targets.teaches_mask[0, 3:].any()


def test_targets_are_relative_to_the_padded_image(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    """A crop of 48x40 is padded to 64x64 at the right and bottom, as the model pads it."""
    sample = make_sample("sa1b", 0, 2)
    labels = np.zeros((40, 48), np.uint16)
    labels[10:20, 12:36] = 1
    sample = replace(
        sample,
        image=np.zeros((3, 40, 48), np.uint8),
        atoms=AtomMap(labels, np.array([[False, False], [True, False]])),
        regions=replace(
            sample.regions, boxes_cxcywh=np.array([[24 / 48, 15 / 40, 24 / 48, 10 / 40], [0, 0, 0, 0]], np.float32)
        ),
    )
    targets = Targets.of(Batch.of([sample], step=0), vocabulary, CPU)
    torch.testing.assert_close(targets.boxes_cxcywh[0, 0] * 64, torch.tensor([24.0, 15.0, 24.0, 10.0]))
    at = torch.tensor([[[20.0, 15.0], [40.0, 15.0], [20.0, 25.0], [60.0, 60.0]]]) / 32 - 1
    assert all_region_values(targets.labels, targets.tables, at)[0, :, 0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_spans_enclose_allowed_names(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    targets = Targets.of(make_batch(["sa1b", "ade20k", "paco"]), vocabulary, CPU)
    for head in (targets.objects, targets.parts):
        for allowed, span in zip(head.allowed, head.spans_host, strict=True):
            assert allowed[span].sum() == allowed.sum()
            assert not allowed.any() or (allowed[span.start] and allowed[span.stop - 1])
