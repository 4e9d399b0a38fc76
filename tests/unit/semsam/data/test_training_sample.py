"""Records become samples: which regions train, what the crop keeps, and that nothing depends on the process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from semsam.data import rle
from semsam.data.augmentation import AugmentationSettings
from semsam.data.images import encode_jpeg
from semsam.data.prompts import PromptSettings
from semsam.data.sample import Batch, Sample
from semsam.data.schema import Kind, Record, Region
from semsam.data.training_sample import SampleSettings, empty_sample, regions_to_train, training_sample

HEIGHT, WIDTH, SIZE = 48, 64, 64
PROMPTS = PromptSettings(num_prompts=12)
STILL = SampleSettings(AugmentationSettings(SIZE, 1.0, 1.0, {}, flip_probability=0.0), PROMPTS)
JITTER = SampleSettings(AugmentationSettings(SIZE), PROMPTS)


def rectangle(x1: int, y1: int, x2: int, y2: int, kind: Kind = Kind.INSTANCE, **fields) -> Region:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y1:y2, x1:x2] = True
    return Region(f"{x1} {y1}", rle.encode(mask), (x1, y1, x2, y2), float(mask.sum()), kind, **fields)


def record_of(*regions: Region, dataset: str = "paco", **fields) -> Record:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = encode_jpeg(np.stack([x * 3, y * 3, x + y], axis=2).astype(np.uint8))
    return Record(dataset, "train", "000007", image, HEIGHT, WIDTH, HEIGHT, WIDTH, regions, **fields)


def assert_same(first: Sample, second: Sample) -> None:
    assert_array_equal(first.image, second.image)
    assert_array_equal(first.atoms.labels, second.atoms.labels)
    assert_array_equal(first.atoms.table, second.atoms.table)
    assert_array_equal(first.regions.boxes_cxcywh, second.regions.boxes_cxcywh)
    assert_array_equal(first.prompts.boxes_cxcywh, second.prompts.boxes_cxcywh)
    assert_array_equal(first.prompts.targets, second.prompts.targets)


def test_without_jitter_a_sample_is_its_record() -> None:
    regions = (
        rectangle(0, 0, 40, 30, object_category=5),
        rectangle(4, 4, 10, 12, kind=Kind.PART, object_category=5, part_category=2, parent=0, is_thing=False),
    )
    sample = training_sample(record_of(*regions, checked_objects=(5, 7)), 3, 0, STILL)
    assert (sample.index, sample.dataset, sample.sample_id) == (3, "paco", "000007")
    assert sample.image.shape == (3, SIZE, SIZE)
    assert (sample.image[:, HEIGHT:] == 128).all()
    for j, region in enumerate(regions):
        assert_array_equal(sample.atoms.mask(j)[:HEIGHT], rle.decode(region.rle or b"", HEIGHT, WIDTH))
    expected = np.array([[20, 15, 40, 30], [7, 8, 6, 8]], np.float32) / SIZE
    np.testing.assert_allclose(sample.regions.boxes_cxcywh, expected)
    assert sample.regions.object_category.tolist() == [5, 5]
    assert sample.regions.part_category.tolist() == [-1, 2]
    assert sample.regions.parent.tolist() == [-1, 0]
    assert sample.regions.is_thing.tolist() == [True, False]
    assert sample.checked_objects is not None
    assert sample.checked_objects.tolist() == [5, 7]
    assert sample.checked_parts is None
    assert sample.prompts.valid.all()


@pytest.mark.parametrize("index", range(12))
def test_jitter_moves_image_and_masks_together(index: int) -> None:
    # The image's first two colours are 3 x and 3 y, so a mask of columns 20 to 40 is red from 60 to 120.
    sample = training_sample(record_of(rectangle(20, 10, 40, 30)), index, 0, JITTER)
    if not len(sample.regions):
        return
    mask = sample.atoms.mask(0)
    inside = sample.image[:, mask].astype(int)
    assert inside[0].min() > 60 - 15
    assert inside[0].max() < 120 + 15
    assert inside[1].min() > 30 - 15
    assert inside[1].max() < 90 + 15


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    record = record_of(rectangle(0, 0, 40, 30), rectangle(10, 10, 60, 40))
    assert_same(training_sample(record, 8, 1, JITTER), training_sample(record, 8, 1, JITTER))
    other = [training_sample(record, index, seed, JITTER).image for index, seed in ((8, 1), (9, 1), (8, 2))]
    assert not np.array_equal(other[0], other[1])
    assert not np.array_equal(other[0], other[2])


def test_crowds_do_not_train() -> None:
    regions = (rectangle(0, 0, 9, 9, is_crowd=True), rectangle(5, 5, 20, 20))
    assert regions_to_train(regions) == {1: regions[1]}
    sample = training_sample(record_of(*regions), 0, 0, STILL)
    assert len(sample.regions) == sample.atoms.num_masks == 1


def ignored_pixels(sample: Sample) -> np.ndarray:
    return np.zeros(sample.atoms.labels.shape, bool) if sample.ignored is None else sample.ignored[sample.atoms.labels]


def test_crowds_are_ignored_and_of_a_box_alone_its_box() -> None:
    crowd, other = rectangle(0, 0, 9, 9, is_crowd=True), rectangle(30, 30, 40, 36, is_crowd=True)._replace(rle=None)
    sample = training_sample(record_of(crowd, rectangle(5, 5, 20, 20), other), 0, 0, STILL)
    expected = np.zeros((SIZE, SIZE), bool)
    expected[:9, :9] = expected[30:36, 30:40] = True
    assert_array_equal(ignored_pixels(sample), expected)
    assert_array_equal(sample.atoms.mask(0)[:HEIGHT, :WIDTH], rle.decode(rectangle(5, 5, 20, 20).rle, HEIGHT, WIDTH))


def test_of_a_panoptic_record_what_has_no_segment_is_ignored_and_what_lies_beyond_the_image_is_not() -> None:
    left, crowd = rectangle(0, 0, 20, HEIGHT, kind=Kind.PANOPTIC), rectangle(20, 0, 30, 9, kind=Kind.PANOPTIC)
    instance_crowd = rectangle(0, 0, 5, 5, is_crowd=True)  # Beside the segments, for AP alone.
    record = record_of(left, crowd._replace(is_crowd=True), instance_crowd, dataset="coco_panoptic")
    expected = np.zeros((SIZE, SIZE), bool)
    expected[:HEIGHT, 20:WIDTH] = True
    assert_array_equal(ignored_pixels(training_sample(record, 0, 0, STILL)), expected)


def test_where_nothing_is_void_or_crowd_nothing_is_ignored() -> None:
    whole = rectangle(0, 0, WIDTH, HEIGHT, kind=Kind.PANOPTIC)
    assert training_sample(record_of(whole), 0, 0, STILL).ignored is None
    assert training_sample(record_of(rectangle(5, 5, 20, 20)), 0, 0, STILL).ignored is None
    assert empty_sample(STILL).ignored is None


@pytest.mark.parametrize("index", range(8))
def test_what_is_ignored_moves_with_the_image(index: int) -> None:
    # Its colours are 3 x and 3 y, so void of the columns from 40 on is red from 120 on.
    record = record_of(rectangle(0, 0, 40, HEIGHT, kind=Kind.PANOPTIC), dataset="coco_panoptic")
    sample = training_sample(record, index, 0, JITTER)
    ignored = ignored_pixels(sample)
    if ignored.any():
        assert sample.image[0][ignored].astype(int).min() > 120 - 15
        assert not sample.atoms.table[sample.atoms.labels[ignored]].any()


def test_beside_panoptic_segments_instances_do_not_train() -> None:
    panoptic = rectangle(0, 0, 20, 20, kind=Kind.PANOPTIC)
    assert list(regions_to_train((rectangle(0, 0, 9, 9), panoptic, rectangle(2, 2, 9, 9), panoptic))) == [1, 3]
    assert list(regions_to_train((rectangle(0, 0, 9, 9), rectangle(1, 1, 9, 9, kind=Kind.PART)))) == [0, 1]


@pytest.mark.parametrize("regions", [(), (rectangle(0, 0, 9, 9, is_crowd=True),), (rectangle(9, 9, 9, 9),)])
def test_an_image_without_anything_to_learn_from_is_legal(regions: tuple[Region, ...]) -> None:
    sample = training_sample(record_of(*regions), 0, 0, JITTER)
    assert len(sample.regions) == 0
    assert sample.regions.boxes_cxcywh.shape == (0, 4)
    assert sample.atoms.table.shape == (1, 0)
    assert not sample.prompts.valid.any()


def test_what_the_crop_no_longer_shows_is_dropped_and_parents_are_renumbered() -> None:
    zoom = replace(STILL, augmentation=AugmentationSettings(SIZE, 2.0, 2.0, flip_probability=0.0))
    regions = (
        rectangle(0, 0, 2, 2),
        rectangle(62, 46, 64, 48),
        rectangle(5, 5, 60, 44),
        rectangle(20, 20, 44, 28, kind=Kind.PART, part_category=0, parent=2),
        rectangle(28, 20, 36, 28, kind=Kind.PART, part_category=1, parent=0),
    )
    sample = training_sample(record_of(*regions), 1, 0, zoom)
    assert 2 <= len(sample.regions) < 5  # At twice the size no crop holds two opposite corners.
    assert (sample.atoms.areas() > 0).all()
    large = int(sample.atoms.areas().argmax())
    part = int(np.flatnonzero(sample.regions.part_category == 0)[0])
    assert sample.regions.parent[part] == large


def test_regions_with_boxes_alone_are_moved_cut_and_dropped() -> None:
    boxes = [(8, 8, 24, 24), (-5, 30, 12, 80), (70, 0, 90, 10), (10, 10, 10.5, 40), (0, 0, 64, 48)]
    regions = [Region(str(i), None, box, 1.0, Kind.INSTANCE, object_category=i) for i, box in enumerate(boxes)]
    sample = training_sample(record_of(*regions, dataset="objects365"), 0, 0, STILL)
    assert sample.regions.object_category.tolist() == [0, 1, 4]
    assert not sample.regions.has_mask.any()
    expected = np.array([[16, 16, 16, 16], [6, 39, 12, 18], [32, 24, 64, 48]], np.float32) / SIZE
    np.testing.assert_allclose(sample.regions.boxes_cxcywh, expected)
    assert sample.atoms.table.shape == (1, 3)
    assert sample.prompts.is_box.all()
    assert sample.prompts.valid.all()


def test_masks_and_boxes_may_be_mixed() -> None:
    box = Region("b", None, (8, 8, 24, 24), 1.0, Kind.INSTANCE)
    sample = training_sample(record_of(rectangle(0, 0, 9, 9), box, rectangle(5, 5, 30, 30)), 0, 0, STILL)
    assert sample.regions.has_mask.tolist() == [True, False, True]
    assert sample.atoms.areas().tolist() == [81, 0, 625]


def test_masks_of_noise_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    noise = [
        Region(str(j), rle.encode(rng.random((HEIGHT, WIDTH)) < 0.5), (0, 0, WIDTH, HEIGHT), 1.0, Kind.CLASS_AGNOSTIC)
        for j in range(12)
    ]
    sample = training_sample(
        record_of(rectangle(5, 5, 30, 30), *noise), 0, 0, replace(STILL, max_table_bytes=1000)
    )  # fmt: skip
    assert 0 < sample.masks_left_out < 12
    assert sample.atoms.table.size <= 1000
    assert len(sample.regions) == 13 - sample.masks_left_out
    assert sample.atoms.areas()[0] == 625  # The thing is kept, noise goes.


@pytest.mark.parametrize("image", [b"", b"\xff\xd8", record_of().image[:-40]])
def test_a_broken_image_names_its_record(image: bytes) -> None:
    with pytest.raises(ValueError, match="paco train 000007: broken JPEG"):
        training_sample(replace(record_of(rectangle(0, 0, 9, 9)), image=image), 0, 0, STILL)


def test_a_mask_of_another_size_names_its_record() -> None:
    wrong = rectangle(0, 0, 9, 9)._replace(rle=rle.encode(np.ones((3, 3), bool)))
    with pytest.raises(ValueError, match="paco train 000007: RLE runs add up to 9 pixels"):
        training_sample(record_of(wrong), 0, 0, STILL)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (200, 1), (3, 5)])
def test_tiny_and_thin_images_are_legal(height: int, width: int) -> None:
    mask = np.ones((height, width), bool)
    region = Region("0", rle.encode(mask), (0, 0, width, height), 1.0, Kind.CLASS_AGNOSTIC)
    image = encode_jpeg(np.zeros((height, width, 3), np.uint8))
    for index in range(5):
        record = Record("ade20k", "train", "t", image, height, width, height, width, (region,))
        sample = training_sample(record, index, 0, JITTER)
        assert len(sample.regions) == 1
        assert sample.image.shape == (3, SIZE, SIZE)
        assert sample.atoms.areas()[0] == (sample.image[0] != 128).sum()


def test_samples_and_padding_make_a_batch() -> None:
    samples = [
        training_sample(record_of(rectangle(0, 0, 9, 9)), 4, 0, JITTER),
        training_sample(record_of(), 5, 0, JITTER),
        empty_sample(JITTER),
    ]
    batch = Batch.of(samples, step=2)
    assert batch.indices.tolist() == [4, 5, -1]
    assert batch.images.shape == (3, 3, SIZE, SIZE)
    assert batch.prompt_targets.shape == (3, 12, 6)
    assert len(empty_sample(JITTER).regions) == empty_sample(JITTER).atoms.num_masks == 0
