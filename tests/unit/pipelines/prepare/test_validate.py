"""A record that breaks the contract on disk loses the regions that do, counted by reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipelines.prepare.validate import validate
from pipelines.sources.source import BadSample, Read
from semsam.data import rle
from semsam.data.images import encode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region

HEIGHT, WIDTH = 8, 12
VOCABULARY = Vocabulary(("car", "dog"), ("wheel",), (True, True), ((0, 0),))


def masked(top: int, left: int, bottom: int, right: int, **changes: Any) -> Region:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    counts = rle.encode(mask)
    region = Region("7", counts, rle.box_xyxy(counts, HEIGHT, WIDTH), float(mask.sum()), Kind.INSTANCE, 1)
    return region._replace(**changes)


def boxed(box: tuple[float, float, float, float], **changes: Any) -> Region:
    return Region("8", None, box, 4.0, Kind.INSTANCE, 0)._replace(**changes)


def read(*regions: Region, **changes: Any) -> Read:
    image = encode_jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    record = Record("paco", "train", "000000000001", image, HEIGHT, WIDTH, HEIGHT, WIDTH, regions)
    return Read(replace(record, **changes))


PART = masked(1, 1, 2, 3, kind=Kind.PART, object_category=0, part_category=0, parent=0)


@pytest.mark.parametrize(
    "regions",
    [
        (),
        (masked(0, 0, HEIGHT, WIDTH),),
        (masked(7, 11, 8, 12),),
        (masked(0, 0, 4, 4, is_crowd=True),),
        (masked(0, 0, 4, 4), PART),
        (PART._replace(parent=None),),
        (boxed((0.0, 0.0, 12.0, 8.0)), boxed((11.5, 7.5, 12.0, 8.0))),
        (masked(0, 0, 2, 2, kind=Kind.CLASS_AGNOSTIC, object_category=None),),
        (masked(0, 0, 2, 2, box_xyxy=(0.0, 0.25, 1.5, 3.75)),),
    ],
)
def test_a_sound_record_comes_back_as_it_is(regions: tuple[Region, ...]) -> None:
    assert validate(read(*regions), VOCABULARY) == read(*regions)


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (masked(0, 0, 2, 2, rle=rle.encode(np.ones((9, WIDTH), bool))), "broken RLE"),
        (masked(0, 0, 2, 2, rle=b"04j"), "broken RLE"),
        (masked(0, 0, 2, 2, rle=rle.encode(np.zeros((HEIGHT, WIDTH), bool))), "empty mask"),
        (masked(0, 0, 2, 2, box_xyxy=(2.0, 0.0, 4.0, 2.0)), "box does not fit the mask"),
        (masked(0, 0, 2, 2, box_xyxy=(0.0, 0.0, 1.0, 1.0), kind=Kind.DERIVED), "box does not fit the mask"),
        (masked(0, 0, 2, 2, box_xyxy=(0.0, 0.0, 1.5, 2.0), kind=Kind.PANOPTIC), "box does not fit the mask"),
        (masked(0, 0, 2, 2, area=float("nan")), "box or area is no number"),
        (masked(0, 0, 2, 2, area=-1.0), "box or area is no number"),
        (masked(0, 0, 2, 2, object_category=2), "unknown category"),
        (masked(0, 0, 2, 2, object_category=-1), "unknown category"),
        (masked(0, 0, 2, 2, part_category=0), "kind and names disagree"),
        (masked(0, 0, 2, 2, kind=Kind.PART), "kind and names disagree"),
        (masked(0, 0, 2, 2, kind=Kind.CLASS_AGNOSTIC), "kind and names disagree"),
        (boxed((1.0, 1.0, 1.0, 2.0)), "empty box"),
        (boxed((1.0, 3.0, 2.0, 2.0)), "empty box"),
        (boxed((-0.5, 1.0, 2.0, 2.0)), "box outside the image"),
        (boxed((0.0, 1.0, 2.0, 8.5)), "box outside the image"),
        (boxed((0.0, float("inf"), 2.0, 3.0)), "box or area is no number"),
        (masked(0, 0, 2, 2, parent=5), "parent is no object"),
        (masked(0, 0, 2, 2, parent=1), "parent is no object"),
    ],
)
def test_a_broken_region_is_dropped_for_its_reason(region: Region, reason: str) -> None:
    sound = masked(4, 4, 6, 6)
    result = validate(read(sound, region, sound), VOCABULARY)
    assert result.record.regions == (sound, sound)
    assert [(one.reason, one.sample_id) for one in result.dropped] == [(reason, "000000000001")]
    assert f"region {region.annotation_id}: " in result.dropped[0].detail


def test_a_part_of_a_part_is_dropped() -> None:
    result = validate(read(masked(0, 0, 4, 4), PART, PART._replace(parent=1)), VOCABULARY)
    assert len(result.record.regions) == 2
    assert [one.reason for one in result.dropped] == ["parent is no object"]


def test_parts_go_with_their_object_and_the_others_keep_their_parents() -> None:
    broken, sound = masked(0, 0, 2, 2, object_category=9), masked(0, 0, 4, 4)
    result = validate(read(broken, PART._replace(parent=0), sound, PART._replace(parent=2)), VOCABULARY)
    assert result.record.regions == (sound, PART._replace(parent=0))
    assert [one.reason for one in result.dropped] == ["unknown category", "part of a dropped object"]


def test_what_the_source_dropped_stays_counted() -> None:
    before = validate(read(boxed((1.0, 1.0, 1.0, 2.0))), VOCABULARY)
    again = validate(Read(replace(before.record, regions=(boxed((3.0, 1.0, 3.0, 2.0)),)), before.dropped), VOCABULARY)
    assert [one.reason for one in again.dropped] == ["empty box", "empty box"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image": b"no image"}, "broken image"),
        ({"image": b""}, "broken image"),
        ({"height": HEIGHT + 1}, "image size differs from annotation"),
        ({"checked_objects": (0, 2)}, "unknown category"),
        ({"checked_parts": (-1,)}, "unknown category"),
        ({"not_exhaustive_objects": (2,)}, "unknown category"),
    ],
)
def test_a_record_that_is_wrong_as_a_whole_is_a_bad_sample(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        validate(read(**changes), VOCABULARY)
    assert caught.value.rejected.reason == reason
