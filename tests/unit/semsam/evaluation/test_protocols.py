"""The numbers of clicks and boxes, from items made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.clicked_classes import confusions
from semsam.evaluation.iou_calibration import Calibration
from semsam.evaluation.items import BEST, Ask, ImageItem, Prompted, join_prompted
from semsam.evaluation.open_vocabulary import TrainedNames
from semsam.evaluation.prompt_table import PromptTable
from semsam.evaluation.protocols import PromptNumbers, means_of, metric_name
from semsam.evaluation.values import Values

VOCABULARY = Vocabulary(tuple("abcdef"), tuple("uvwxyz"))


def answer(
    ious: Sequence[float],
    ask: Ask = Ask.INNERMOST,
    *,
    region: int = 0,
    chosen: int = 0,
    predicted: Sequence[float] | None = None,
    under: Sequence[tuple[int, Sequence[float]]] = (),
    objects: Sequence[int] = (),
    parts: Sequence[int] = (),
    level_ious: np.ndarray | None = None,
) -> Prompted:
    """One prompt; the likeliest names of each level are given, and the regions under it with the levels' IoUs."""
    levels = len(ious)

    def best(names: Sequence[int]) -> np.ndarray:
        found = np.full((1, levels, BEST), -1, np.int32)
        found[0, :, 0] = names or -1
        return found

    def array(values: object, *shape: int) -> np.ndarray:
        return np.array(values, np.float32).reshape(shape)

    zeros = np.zeros((1, levels, BEST), np.float32)
    return Prompted(
        ask=np.array([ask], np.int32),
        region=np.array([region], np.int32),
        click_xy=np.zeros((1, 2), np.int32),
        chosen=np.array([chosen], np.int32),
        iou_predictions=array(predicted or ious, 1, levels),
        ious=array(ious, 1, levels),
        under_starts=np.array([0, len(under)]),
        under=np.array([place for place, _ in under], np.int32),
        under_ious=array([values for _, values in under], len(under), levels),
        level_ious=array(np.eye(levels) if level_ious is None else level_ious, 1, levels, levels),
        objects=best(objects),
        object_scores=zeros,
        true_object_score=array([0] * levels, 1, levels),
        parts=best(parts),
        part_scores=zeros,
        true_part_score=array([0] * levels, 1, levels),
    )


def item(*prompts: Prompted, regions: Sequence[tuple[int | None, int | None]] = ((1, None),)) -> ImageItem:
    """An image whose regions have these names."""
    found = tuple(Region("1", b"", (0, 0, 1, 1), 1.0, Kind.INSTANCE, *names) for names in regions)
    return ImageItem("7", 4, 4, 4, 4, found, prompted=join_prompted(prompts, 2))


def numbers(*items: ImageItem, is_blind: bool = False) -> dict[str, float]:
    found = PromptNumbers(VOCABULARY, is_blind)
    for one in items:
        found.add([one])
    return flat(found)


def flat(found: PromptNumbers) -> dict[str, float]:
    return {f"{protocol}/{name}": v for protocol, one in found.compute().items() for name, v in one.values.items()}


def test_max_takes_the_chosen_level_and_oracle_the_best() -> None:
    found = numbers(item(answer([0.5, 0.25], chosen=1), answer([0.75, 1.0], Ask.RANDOM, chosen=0)))
    assert (found["one_click/miou_max"], found["one_click/miou_oracle"]) == (0.25, 0.5)
    assert (found["random_click/miou_max"], found["random_click/miou_oracle"]) == (0.75, 1.0)


def test_granularity_gives_each_truth_its_own_level() -> None:
    under = ((0, [0.75, 0.5]), (1, [0.75, 0.25]))
    assert numbers(item(answer([1, 1], under=under)))["granularity/miou_all"] == (0.5 + 0.75) / 2


def test_granularity_counts_a_truth_without_a_level_as_zero() -> None:
    under = [(place, [1.0, 1.0]) for place in range(4)]
    assert numbers(item(answer([1, 1], under=under)))["granularity/miou_all"] == 0.5


def test_levels_that_show_the_same_are_one_mask() -> None:
    alike = np.array([[1, 0.9, 0.0], [0.9, 1, 0.0], [0.0, 0.0, 1]])
    assert numbers(item(answer([0, 0, 0], level_ious=alike)))["granularity/distinct"] == 2
    chain = np.array([[1, 0.95, 0.5], [0.95, 1, 0.95], [0.5, 0.95, 1]])  # The third is like the second, not the first.
    assert numbers(item(answer([0, 0, 0], level_ious=chain)))["granularity/distinct"] == 2


def test_box_prompts_without_masks_measure_the_name_alone() -> None:
    unknown = [float("nan")] * 2
    found = numbers(item(answer(unknown, Ask.BOX, chosen=1, objects=[0, 1])))
    assert found == {"box_prompt/object_top1": 1.0}


def test_classes_are_read_from_the_level_that_fits_best() -> None:
    found = numbers(
        item(
            answer([0.25, 1], objects=[0, 1], parts=[0, 3]),
            answer([1, 0.25], region=1, objects=[0, 1], parts=[2, 0]),
            regions=((1, None), (1, 2)),
        )
    )
    assert (found["classes/object_top1"], found["classes/part_top1"]) == (0.5, 1.0)


def test_a_name_among_the_five_likeliest_counts_for_five_alone() -> None:
    clicked = answer([1, 0], objects=[0, 0])
    clicked.objects[0, 0, 4] = 1
    found = numbers(item(clicked))
    assert (found["classes/object_top1"], found["classes/object_top5"]) == (0.0, 1.0)


def test_what_was_taken_for_what_is_kept() -> None:
    table = PromptTable.of(
        [
            item(
                answer([1, 0], objects=[4, 0]),
                answer([1, 0], region=1, objects=[2, 0]),
                regions=((1, None), (None, None)),
            )
        ]
    )
    assert confusions(table)["object"].tolist() == [[1, 4]]


def test_the_chosen_level_is_compared_with_whatever_it_may_mean() -> None:
    under = ((0, [0.25, 0.5]), (1, [1.0, 0.0]))
    assert numbers(item(answer([0.25, 0.5], chosen=0, under=under)))["choice/miou"] == 1.0
    assert numbers(item(answer([0.25, 0.5], chosen=0)))["choice/miou"] == 0.0


def test_predictions_that_are_true_are_calibrated_and_those_that_mislead_are_not() -> None:
    def calibration(predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
        some = item(answer([0, 0], predicted=predicted, under=((0, true),)))
        return Calibration.of(PromptTable.of([some])).numbers()

    assert calibration([0.25, 0.75], [0.25, 0.75]) == {"ece": 0.0, "rank_correlation": pytest.approx(1.0)}
    assert calibration([0.75, 0.25], [0.25, 0.75]) == {"ece": 0.5, "rank_correlation": pytest.approx(-1.0)}
    assert calibration([1.5, -0.5], [1.0, 0.0])["ece"] == pytest.approx(0.5)  # Raw numbers: beyond 0 and 1, too.
    assert "rank_correlation" not in calibration([0.5, 0.5], [0.25, 0.75])
    assert Calibration.of(PromptTable.of([item()])).numbers() == {}


def test_blind_guesses_have_the_numbers_that_mean_something() -> None:
    found = numbers(item(answer([0.5, 0.75]), answer([0.25, 0.5], Ask.BOX, chosen=1)), is_blind=True)
    assert (found["box_prompt/miou_filled_box"], found["box_prompt/miou_ellipse"]) == (0.25, 0.5)
    assert found["box_prompt/miou"] == 0.5
    assert not {"granularity/distinct", "iou_calibration/ece", "classes/object_top5"} & found.keys()


def test_any_division_into_parts_gives_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    items = [
        item(
            *(answer(rng.random(2).tolist(), chosen=1, under=((0, rng.random(2)),)) for _ in range(rng.integers(0, 4)))
        )
        for _ in range(20)
    ]
    whole, parts = PromptNumbers(VOCABULARY), PromptNumbers(VOCABULARY)
    whole.add(items)
    for start in range(0, 20, 3):
        parts.add(items[start : start + 3])
    assert flat(whole) == flat(parts)
    assert parts.num_images == 20


def test_what_was_not_measured_is_absent() -> None:
    assert numbers() == numbers(item()) == {}


def test_an_image_that_was_not_asked_is_named() -> None:
    with pytest.raises(ValueError, match="^7: no prompts were put to this image"):
        PromptNumbers(VOCABULARY).add([ImageItem("7", 4, 4, 4, 4, ())])


def test_means_over_datasets_are_over_their_values() -> None:
    assert means_of([{"a": (3.0, 2)}, {"a": (1.0, 2), "b": (2.0, 1)}]) == {"a": (1.0, 4), "b": (2.0, 1)}


def test_numbers_have_a_name_for_each_cell_of_the_papers_tables() -> None:
    assert metric_name("one_click/miou_max", "paco") == "one_click/paco/miou_max"
    assert metric_name("one_click/miou_max", "paco", is_blind=True) == "baseline/one_click/paco/miou_max"


def test_values_are_known_by_image_and_by_name() -> None:
    values = Values.of(np.array([1.0, 2.0, 4.0]), np.array([0, 2, 2]), np.array([5, 5, -1]))
    sums, counts = values.by_image(4)
    assert (sums.tolist(), counts.tolist()) == ([1, 0, 6, 0], [1, 0, 2, 0])
    assert values.by_category() == {5: (1.5, 2)}


def test_names_have_rows_of_their_own() -> None:
    found = PromptNumbers(VOCABULARY)
    prompts = (answer([1, 0], objects=[1, 0]), answer([1, 0], region=1, objects=[1, 0], parts=[3, 0]))
    found.add([item(*prompts, regions=((1, None), (2, 3)))])
    images = found.compute()["classes"].images
    rows = images.per_class()
    assert rows["b"] == {"object_top1": 1.0, "object_top1_count": 1, "object_top5": 1.0, "object_top5_count": 1}
    assert rows["c"]["object_top1"] == 0.0
    assert rows["x"]["part_top1"] == 1.0
    assert images.resampled(np.array([[2]]))["object_top1"].tolist() == [0.5]
    assert images.resampled_classes(np.array([[2]]))["b"]["object_top1"].tolist() == [1.0]
    assert images.per_image()["object_top1"].tolist() == [0.5]
    assert found.confusion("object").sum() == 2
    assert (found.confusion("object")[1, 1], found.confusion("object")[2, 1], found.confusion("part")[3, 3]) == (
        1,
        1,
        1,
    )


def test_the_error_of_calibration_follows_from_what_each_image_adds() -> None:
    rng = np.random.default_rng(0)
    found = PromptNumbers(VOCABULARY)
    for _ in range(9):
        found.add(
            [item(*(answer([0, 0], predicted=rng.random(2).tolist(), under=((0, rng.random(2)),)) for _ in range(4)))]
        )
    numbers = found.compute()["iou_calibration"]
    assert numbers.images.resampled(np.ones((1, 9), int))["ece"] == pytest.approx([numbers.values["ece"]])
    halves = numbers.images.resampled(np.array([[1] * 4 + [0] * 5]))["ece"]
    first = PromptNumbers(VOCABULARY)
    first.calibrations = found.calibrations[:4]
    first.num_images = 4
    assert halves == pytest.approx([first.compute()["iou_calibration"].values["ece"]])
    assert sum(row["levels"] for row in numbers.images.per_class().values()) == 72


def test_names_that_were_never_trained_have_numbers_of_their_own() -> None:
    trained = TrainedNames(("a", "b"), ("u",), (("a", "u"),))
    found = PromptNumbers(VOCABULARY, trained=trained)
    prompts = [
        answer([1, 0], objects=[0, 0], parts=[0, 0]),  # a:u, a trained pair, both names right.
        answer([1, 0], region=1, objects=[1, 0], parts=[1, 0]),  # b:u, a new pair: the part is wrong.
        answer([1, 0], region=2, objects=[2, 0], parts=[1, 0]),  # c:v, two new names, both right.
        answer([1, 0], region=3, objects=[0, 0]),  # d, a new name, wrong, and no part.
    ]
    found.add([item(*prompts, regions=((0, 0), (1, 0), (2, 1), (3, None)))])
    values = dict(found.compute()["open_vocabulary"].values)
    shuffled = values.pop("object_top1_shuffled"), values.pop("part_top1_shuffled")
    assert values == {
        "object_top1_new": 0.5,
        "object_top1_trained": 1.0,
        "part_top1_new": 1.0,
        "part_top1_trained": 0.5,
        "pair_top1_new": 0.0,
        "pair_top1_trained": 1.0,
    }
    assert set(shuffled) <= {0.0, 0.5, 1.0}


def test_without_knowing_what_was_trained_nothing_is_called_new() -> None:
    assert not any(name.startswith("open") for name in numbers(item(answer([1, 0], objects=[1, 0]))))


def test_names_dealt_out_by_chance_are_right_as_often_as_chance_has_it() -> None:
    rng = np.random.default_rng(0)
    names = Vocabulary(tuple(f"name {i}" for i in range(50)))
    found = PromptNumbers(names, trained=TrainedNames((), (), ()))
    for _ in range(40):
        truth = rng.integers(0, 50, 20).tolist()
        prompts = [answer([1, 0], region=i, objects=[name, 0]) for i, name in enumerate(truth)]
        found.add([item(*prompts, regions=[(name, None) for name in truth])])
    values = found.compute()["open_vocabulary"].values
    assert values["object_top1_new"] == 1.0
    assert values["object_top1_shuffled"] < 0.1
