"""Noise on boxes and names: how much, of what, and that it depends on the sample alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from semsam.data.sample import Batch, Sample
from semsam.data.vocabularies import JointVocabulary
from semsam.losses.denoising import Noise
from semsam.losses.router import route
from semsam.losses.targets import NORMALIZERS, Targets, count_targets
from semsam.model.generic_queries import NoisedRegions

CPU = torch.device("cpu")
NOISE = Noise(num_queries=30, scale=0.4, seed=5)
MakeBatch = Callable[..., Batch]
MakeSample = Callable[..., Sample]


def noised(
    sample: Sample, vocabulary: JointVocabulary, noise: Noise = NOISE
) -> tuple[NoisedRegions, np.ndarray, np.ndarray]:
    """What is given, the regions to restore, and their true names among all names of both kinds."""
    targets = Targets.of(Batch.of([sample], step=0), vocabulary, CPU, noise)
    assert targets.noised is not None
    lesson, regions = route(sample, vocabulary), targets.restored_host[0]
    parts = lesson.parts.names[regions] + len(vocabulary.objects)
    is_part = lesson.parts.names[regions] >= 0
    return targets.noised, regions, np.where(is_part, parts, lesson.objects.names[regions])


def test_every_group_has_each_region_once_and_the_last_is_cut(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    given, regions, _ = noised(make_sample("ade20k", 3, 7), vocabulary)
    assert given.groups[0].tolist() == [i // 7 for i in range(30)]
    for group in range(4):
        assert sorted(regions[group * 7 : group * 7 + 7]) == list(range(7))
    assert len(set(regions[28:])) == 2
    assert regions[:7].tolist() != regions[7:14].tolist()


def test_of_more_regions_than_queries_a_random_choice_is_restored(make_sample: MakeSample) -> None:
    chosen = [Noise(5, 0.4, seed).regions(make_sample("ade20k", 3, 20)) for seed in range(30)]
    assert all(len(set(some.tolist())) == 5 for some in chosen)
    assert len(set(np.concatenate(chosen).tolist())) == 20


@pytest.mark.parametrize(("dataset", "num_masks"), [("sa1b", 7), ("", 0), ("paco", 0)])
def test_samples_that_teach_no_generic_queries_or_have_no_regions_give_padding(
    dataset: str, num_masks: int, make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample(dataset, 1, num_masks)
    targets = Targets.of(Batch.of([sample], step=0), vocabulary, CPU, NOISE)
    assert (targets.restored_host == -1).all()
    assert targets.noised is not None
    assert (targets.noised.names == -1).all()
    assert targets.noised.boxes_cxcywh[0, 0].tolist() == [0.5, 0.5, 1.0, 1.0]
    assert not count_targets(Batch.of([sample], step=0), noise=NOISE)[NORMALIZERS.index("denoising/boxes") :].any()


def test_boxes_move_by_up_to_the_noise_and_stay_in_the_image(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample("objects365", 2, 7)
    wide = replace(NOISE, num_queries=3000)
    given, regions, _ = noised(sample, vocabulary, wide)
    boxes, true = given.boxes_cxcywh[0].numpy(), sample.regions.boxes_cxcywh[regions]
    sides = np.concatenate([true[:, 2:] / 2, true[:, 2:]], axis=1)
    moved = (boxes - true) / sides
    assert np.abs(moved).max() <= 0.4 + 1e-5
    assert (np.abs(moved).max(0) > 0.38).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1
    still, _, _ = noised(sample, vocabulary, replace(wide, scale=0.0))
    np.testing.assert_allclose(still.boxes_cxcywh[0].numpy(), true, rtol=1e-6)


@pytest.mark.parametrize("dataset", ["coco_panoptic", "objects365", "pascal_part", "paco"])
def test_a_fifth_of_the_names_is_replaced_by_another_allowed_name_of_the_same_kind(
    dataset: str, make_batch: MakeBatch, vocabulary: JointVocabulary
) -> None:
    (sample,) = make_batch([dataset]).samples
    given, _, true = noised(sample, vocabulary, replace(NOISE, num_queries=4000))
    names, lesson = given.names[0].numpy(), route(sample, vocabulary)
    num_objects = len(vocabulary.objects)
    allowed = np.concatenate(
        [np.flatnonzero(lesson.objects.allowed), np.flatnonzero(lesson.parts.allowed) + num_objects]
    )
    assert np.isin(names, allowed).all()
    assert ((names >= num_objects) == (true >= num_objects)).all()
    assert (names != true).mean() == pytest.approx(0.2, abs=0.03)
    for kind in (names < num_objects, names >= num_objects):
        assert set(names[kind & (names != true)]) == set(names[kind])
    exact, _, _ = noised(sample, vocabulary, replace(NOISE, scale=0.0))
    assert exact.names[0].tolist() == true[: NOISE.num_queries].tolist()


def test_a_part_has_its_part_name_and_a_part_without_one_has_none(
    make_sample: MakeSample, vocabulary: JointVocabulary
) -> None:
    sample = make_sample("pascal_part", 4, 6)
    parts = sample.regions.part_category.copy()
    parts[1] = -1  # A part of region 0, whose name is not known.
    sample = replace(sample, regions=replace(sample.regions, part_category=parts))
    given, regions, _ = noised(sample, vocabulary, replace(NOISE, scale=0.0))
    names = given.names[0].numpy()
    assert (names[regions == 1] == -1).all()
    assert (names[(regions % 2 == 1) & (regions != 1)] >= len(vocabulary.objects)).all()
    objects = names[regions % 2 == 0]
    assert ((objects >= 0) & (objects < len(vocabulary.objects))).all()


def test_the_only_name_there_is_stays(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    sample = make_sample("paco", 0, 1)
    sample = replace(sample, checked_objects=sample.regions.object_category, checked_parts=np.zeros(0, np.int32))
    given, _, true = noised(sample, vocabulary, replace(NOISE, num_queries=200))
    assert given.names[0].tolist() == true.tolist()


def test_noise_depends_on_seed_and_sample_alone(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    batch = make_batch(["pascal_part", "sa1b", "objects365", "paco"])
    together = Targets.of(batch, vocabulary, CPU, NOISE)
    other = Targets.of(batch, vocabulary, CPU, replace(NOISE, seed=6))
    assert together.noised is not None
    assert other.noised is not None
    for i, sample in enumerate(batch.samples):
        alone = Targets.of(Batch.of([sample], step=9), vocabulary, CPU, NOISE)
        assert alone.noised is not None
        assert np.array_equal(alone.restored_host[0], together.restored_host[i])
        for name in ("boxes_cxcywh", "names", "groups"):
            assert torch.equal(getattr(alone.noised, name)[0], getattr(together.noised, name)[i])
        assert torch.equal(together.noised.boxes_cxcywh[i], other.noised.boxes_cxcywh[i]) == (sample.dataset == "sa1b")


def test_counts_are_the_pairs_to_restore(make_batch: MakeBatch, vocabulary: JointVocabulary) -> None:
    batch = make_batch(["pascal_part", "sa1b", "objects365", "ade20k"])
    counts = dict(zip(NORMALIZERS, count_targets(batch, noise=NOISE), strict=True))
    assert [counts[f"denoising/{of}"] for of in ("boxes", "masks", "objects", "parts")] == [90, 60, 90, 30]
    targets = Targets.of(batch, vocabulary, CPU, NOISE)
    assert (targets.restored_host >= 0).sum() == 90


def test_boxes_are_relative_to_the_padded_image(make_sample: MakeSample, vocabulary: JointVocabulary) -> None:
    sample = make_sample("objects365", 0, 2)
    cut = replace(sample, image=sample.image[:, :40, :48])
    cut = replace(cut, atoms=replace(sample.atoms, labels=sample.atoms.labels[:40, :48]))
    given, regions, _ = noised(cut, vocabulary, replace(NOISE, scale=0.0))
    expected = sample.regions.boxes_cxcywh[regions] * np.array([48 / 64, 40 / 64] * 2)
    np.testing.assert_allclose(given.boxes_cxcywh[0].numpy(), expected, rtol=1e-5)
