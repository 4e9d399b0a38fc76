import itertools

import numpy as np
import pytest

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record, Region
from semsam.evaluation.baselines import FILLINGS, BaselineFit, Baselines, Guess, best_radii, blind_item
from semsam.evaluation.items import Ask
from semsam.evaluation.questions import Questions

VOCABULARY = Vocabulary(("sky", "car", "dog"), ("wheel",), (False, True, True), ((1, 0),))


def region(y1: int, x1: int, y2: int, x2: int, **fields: object) -> Region:
    mask = np.zeros((20, 40), bool)
    mask[y1:y2, x1:x2] = True
    values = {"annotation_id": "1", "rle": rle.encode(mask), "area": 1.0, "kind": Kind.INSTANCE, **fields}
    return Region(box_xyxy=(x1, y1, x2, y2), **values)  # type: ignore[arg-type]


def record(*regions: Region) -> Record:
    return Record("paco", "train", "7", b"", 20, 40, 20, 40, regions)


CARS = record(
    region(0, 0, 10, 20, object_category=1),
    region(10, 20, 20, 40, object_category=1),
    region(2, 2, 6, 6, object_category=1, part_category=0, kind=Kind.PART),
    region(0, 0, 5, 40, object_category=0, is_thing=False),
)
DOG = record(region(5, 5, 15, 25, object_category=2))


def fitted(*records: Record) -> BaselineFit:
    fit = BaselineFit()
    for one in records:
        fit.merge(BaselineFit.of(one))
    return fit


def test_the_chosen_radii_are_the_best_or_nearly() -> None:
    ious = np.random.default_rng(0).random((50, 8)) ** 3
    chosen = ious[:, best_radii(ious, 3)].max(axis=1).mean()
    best = max(ious[:, list(c)].max(axis=1).mean() for c in itertools.combinations(range(8), 3))
    assert chosen == pytest.approx(best, rel=0.01)


def test_a_fit_survives_the_way_between_processes_and_merging() -> None:
    merged = BaselineFit.from_json(fitted(CARS).to_json())
    merged.merge(BaselineFit.from_json(fitted(DOG, CARS).to_json()))
    assert merged.compute(6) == fitted(CARS, DOG, CARS).compute(6)


def test_the_commonest_names_are_guessed_at_the_mean_place_of_their_regions() -> None:
    found = fitted(CARS, DOG).compute(6)
    assert (found.commonest_object, found.commonest_part) == (1, 0)
    assert found.thing == Guess(1, None, (0.25, 0.25, 0.75, 0.75))
    assert found.part == Guess(1, 0, (2 / 40, 2 / 20, 6 / 40, 6 / 20))
    assert found.segment == found.thing
    assert FILLINGS[found.filling] == "filled_box"


def test_of_two_names_as_common_the_first_is_guessed() -> None:
    found = fitted(DOG, record(region(0, 0, 9, 9, object_category=0, is_thing=False))).compute(6)
    assert found.commonest_object == 0
    assert found.segment is not None
    assert (found.segment.object_category, found.thing and found.thing.object_category) == (0, 2)


@pytest.mark.parametrize("regions", [(), (region(0, 0, 9, 9, is_crowd=True),)])
def test_nothing_to_fit_gives_no_guess(regions: tuple[Region, ...]) -> None:
    assert fitted(record(*regions)).compute(6) == Baselines()
    assert BaselineFit().compute(6) == Baselines()


def test_boxes_without_masks_are_guessed_by_name_and_place_alone() -> None:
    boxed = Region("1", None, (10.0, 5.0, 30.0, 15.0), 1.0, Kind.INSTANCE, 1)
    found = fitted(record(boxed)).compute(6)
    assert (found.radii, found.thing) == ((), Guess(1, None, (0.25, 0.25, 0.75, 0.75)))
    item = blind_item(record(boxed), found, Questions(), VOCABULARY, 6)
    assert item.prompted is not None
    assert np.isnan(item.prompted.ious).all()


def test_a_blind_answer_is_kept_as_a_models_is() -> None:
    baselines = fitted(CARS, DOG).compute(6)
    item = blind_item(CARS, baselines, Questions(random_clicks=2), VOCABULARY, 6)
    prompted = item.prompted
    assert prompted is not None
    assert prompted.ious.shape == (4 * 4, 6)
    is_box = prompted.ask == Ask.BOX
    assert prompted.chosen[is_box].tolist() == [baselines.filling] * 4
    assert (prompted.chosen[~is_box] == baselines.single).all()
    np.testing.assert_allclose(prompted.ious[is_box, 0], 1)  # These regions are boxes.
    assert not prompted.ious[is_box, len(FILLINGS) :].any()
    assert (prompted.objects[:, :, 0] == 1).all()
    assert prompted.true_part_score[prompted.region == 2].min() == 1
    assert item.instances is not None
    [thing, part] = item.instances
    assert (thing.object_category, thing.part_category) == (1, None)
    assert (part.object_category, part.part_category) == (1, 0)
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    np.testing.assert_array_equal(rle.decode(thing.rle, 20, 40), mask)
    assert item.panoptic == item.semantic == (thing,)


def test_without_a_train_split_there_is_nothing_to_see() -> None:
    item = blind_item(CARS, Baselines(), Questions(), VOCABULARY, 6)
    assert item.instances == item.panoptic == ()
    assert item.prompted is not None
    assert not item.prompted.ious[item.prompted.ask != Ask.BOX].any()
