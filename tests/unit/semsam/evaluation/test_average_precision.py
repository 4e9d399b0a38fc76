"""Average precision and recall are pycocotools' to the last digit, and say so where there is nothing to measure."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from semsam.data import rle
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Region
from semsam.evaluation.average_precision import average_precision
from semsam.evaluation.items import ImageItem, NamedMask, from_table, to_table
from semsam.evaluation.matches import Matches
from semsam.evaluation.named_regions import Names, Overlap
from semsam.evaluation.numbers import Absent, Numbers
from tests.synthetic_items import NAMES, federated, synthetic_items

NUMBERS = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


def category_of(names: Names, vocabulary: Vocabulary) -> Callable[[int | None, int | None], int | None]:
    """The native category id of an object and part name; None: is not measured."""

    def of(object_category: int | None, part_category: int | None) -> int | None:
        if names is Names.THINGS:
            return object_category if part_category is None and vocabulary.things[object_category or 0] else None
        if names is Names.PARTS:
            return part_category
        pair = (object_category, part_category)
        return vocabulary.object_parts.index(pair) if pair in vocabulary.object_parts else None  # type: ignore[arg-type]

    return of


def pycocotools_evaluation(
    items: list[ImageItem], names: Names, overlap: Overlap, vocabulary: Vocabulary = NAMES
) -> COCOeval:
    """The evaluation by pycocotools, ready to run: its own ids, its own readers of results."""
    category = category_of(names, vocabulary)
    truth, found, areas = [], [], []
    for image, item in enumerate(items):
        for region in item.regions:
            name = category(region.object_category, region.part_category)
            if region.kind is Kind.PANOPTIC or name is None:
                continue
            x1, y1, x2, y2 = region.box_xyxy
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": image,
                    "category_id": name,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": region.area,
                    "iscrowd": int(region.is_crowd),
                    "segmentation": {"size": [item.height, item.width], "counts": region.rle},
                }
            )
        for answer in item.instances or ():
            name = category(answer.object_category, answer.part_category)
            if name is None:
                continue
            x1, y1, x2, y2 = answer.box_xyxy
            mask = {"size": [item.height, item.width], "counts": answer.rle}
            where = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if overlap is Overlap.BOXES else {"segmentation": mask}
            found.append({"image_id": image, "category_id": name, "score": answer.score, **where})
            areas.append(item.original_height * item.original_width / (item.height * item.width))
    classes = {
        Names.THINGS: vocabulary.objects,
        Names.PARTS: vocabulary.parts,
        Names.OBJECT_PARTS: vocabulary.object_parts,
    }[names]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": one.height, "width": one.width} for i, one in enumerate(items)],
            "annotations": truth,
            "categories": [{"id": c, "name": str(name)} for c, name in enumerate(classes)],
        }
        coco.createIndex()
        answers = coco.loadRes(found)
        for answer, scale in zip(answers.dataset["annotations"], areas, strict=True):
            answer["area"] = answer["area"] * scale
    return COCOeval(coco, answers, "bbox" if overlap is Overlap.BOXES else "segm")


def run(evaluation: COCOeval) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: value for name, value in zip(NUMBERS, evaluation.stats, strict=True) if value > -1}


def numbers(items: list[ImageItem], names: Names = Names.THINGS, overlap: Overlap = Overlap.MASKS) -> Numbers:
    result = average_precision(items, NAMES, names, overlap)
    assert isinstance(result, Numbers), result
    return result


def matches_of(result: Numbers) -> Matches:
    assert isinstance(result.images, Matches)
    return result.images


def assert_same(values: Mapping[str, float], expected: Mapping[str, float]) -> None:
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("names", Names)
@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize("resized", [True, False])
def test_numbers_are_those_of_pycocotools(names: Names, overlap: Overlap, resized: bool) -> None:
    items = synthetic_items(60, seed=1, resized=resized)
    result = numbers(items, names, overlap)
    assert_same(result.values, run(pycocotools_evaluation(items, names, overlap)))
    assert_same(matches_of(result).values(), result.values)


@pytest.mark.parametrize("names", Names)
def test_curves_are_those_of_pycocotools(names: Names) -> None:
    items = synthetic_items(60, seed=1)
    evaluation = pycocotools_evaluation(items, names, Overlap.MASKS)
    run(evaluation)
    matches = matches_of(numbers(items, names))
    for iou, place, number in ((0.5, 0, "ap50"), (0.75, 5, "ap75")):
        of_class = evaluation.eval["precision"][place, :, :, 0, 2]
        curve = matches.precisions(iou)
        np.testing.assert_allclose(curve, of_class[:, of_class[0] > -1].mean(1), atol=1e-12)
        assert curve.mean() == pytest.approx(matches.values()[number], abs=1e-12)
    with pytest.raises(ValueError, match="no detections are matched at IoU 0.62; thresholds are"):
        matches.precisions(0.62)


def test_without_truth_there_is_no_curve_and_without_answers_one_at_zero() -> None:
    items = synthetic_items(20, seed=1)
    matches = matches_of(numbers(items))
    unseen = dataclasses.replace(matches, truth_counts=np.zeros_like(matches.truth_counts))
    assert np.isnan(unseen.precisions(0.5)).all()
    silent = [dataclasses.replace(item, instances=()) for item in items]
    assert (matches_of(numbers(silent)).precisions(0.5) == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("names", Names)
@pytest.mark.parametrize("overlap", Overlap)
def test_numbers_of_many_images_are_those_of_pycocotools(names: Names, overlap: Overlap) -> None:
    items = synthetic_items(600, seed=7)
    result = numbers(items, names, overlap)
    assert_same(result.values, run(pycocotools_evaluation(items, names, overlap)))
    assert_same(matches_of(result).values(), result.values)


@pytest.mark.slow
@pytest.mark.samples
def test_numbers_of_photos_are_those_of_pycocotools(photo_items: list[ImageItem], photo_names: Vocabulary) -> None:
    for overlap in Overlap:
        result = average_precision(photo_items, photo_names, Names.THINGS, overlap)
        assert isinstance(result, Numbers)
        expected = run(pycocotools_evaluation(photo_items, Names.THINGS, overlap, photo_names))
        assert_same(result.values, expected)
        assert_same(matches_of(result).values(), expected)


def test_numbers_of_each_class_are_those_of_pycocotools() -> None:
    items = synthetic_items(60, seed=1)
    evaluation = pycocotools_evaluation(items, Names.THINGS, Overlap.MASKS)
    run(evaluation)
    table = numbers(items).images.per_class()
    precision = evaluation.eval["precision"]
    for position, name in enumerate(NAMES.objects):
        of_class = precision[:, :, position, 0, 2]
        if of_class.max() < 0:
            assert name not in table
        else:
            assert table[name]["ap"] == pytest.approx(of_class.mean(), abs=1e-12)
            assert table[name]["ap50"] == pytest.approx(of_class[0].mean(), abs=1e-12)
    assert set(table) == {"dog", "car", "cat", "cup"}


def test_matches_are_those_of_pycocotools() -> None:
    items = synthetic_items(60, seed=1)
    evaluation = pycocotools_evaluation(items, Names.THINGS, Overlap.MASKS)
    run(evaluation)
    matches = matches_of(numbers(items))
    true, ignored = np.zeros(10, int), np.zeros(10, int)
    for cell in evaluation.evalImgs:
        if cell and cell["aRng"] == evaluation.params.areaRng[0]:
            true += ((cell["dtMatches"] > 0) & ~cell["dtIgnore"]).sum(1)
            ignored += cell["dtIgnore"].sum(1)
    np.testing.assert_array_equal(matches.is_true[:, 0].sum(1), true)
    np.testing.assert_array_equal(matches.is_ignored[:, 0].sum(1), ignored)


def test_native_ids_do_not_matter() -> None:
    items = synthetic_items(30, seed=3)
    others = [with_regions(item, *(r._replace(annotation_id="0") for r in item.regions)) for item in items]
    assert numbers(items).values == numbers(others).values


def test_a_single_perfect_answer_is_found_whatever_its_annotation_id() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    for native in ("0", "1", str(2**40 + 1)):
        item = one_object(mask, native, answer(mask, 0.5))
        values = numbers([item]).values
        assert values["ap"] == pytest.approx(1, abs=1e-12)
        assert values["ar1"] == 1


def test_items_from_a_file_have_the_same_numbers() -> None:
    items = synthetic_items(30, seed=4)
    again = from_table(to_table(items))
    assert numbers(again).values == numbers(items).values


def test_boxes_without_masks_have_numbers_for_boxes_only() -> None:
    items = [
        with_regions(item, *(region._replace(rle=None) for region in item.regions))
        for item in synthetic_items(20, seed=5)
    ]
    assert (
        numbers(items, overlap=Overlap.BOXES).values
        == numbers(synthetic_items(20, seed=5), overlap=Overlap.BOXES).values
    )
    result = average_precision(items, NAMES, Names.THINGS, Overlap.MASKS)
    assert isinstance(result, Absent)
    assert "boxes only" in result.reason


def test_objects_made_of_parts_are_truth_where_there_are_no_instances() -> None:
    items = synthetic_items(20, seed=5)
    derived = [
        with_regions(
            item,
            *(r._replace(kind=Kind.DERIVED) if r.kind is Kind.INSTANCE else r for r in item.regions),
        )
        for item in items
    ]
    assert numbers(derived).values == numbers(items).values


def test_a_size_without_truth_has_no_number() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True  # Small, by COCO.
    assert set(numbers([one_object(mask, "1", answer(mask, 0.5))]).values) == {
        *("ap", "ap50", "ap75", "ap_small", "ar1", "ar10", "ar100", "ar_small"),
    }


def test_of_a_class_and_image_the_best_hundred_detections_count() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:30, 5:30] = True
    wrong = np.roll(mask, 9, 0)
    item = one_object(mask, "1", *(answer(wrong, 0.5) for _ in range(99)), answer(mask, 0.5))
    last = numbers([item]).values
    assert last["ap"] == pytest.approx(0.01, abs=1e-12)
    assert (last["ar10"], last["ar100"]) == (0, 1)
    assert_same(last, run(pycocotools_evaluation([item], Names.THINGS, Overlap.MASKS)))
    too_many = one_object(mask, "1", *(answer(wrong, 0.5) for _ in range(100)), answer(mask, 0.5))
    assert numbers([too_many]).values["ar100"] == 0
    # A hundred of each class, not of all.
    others = (dataclasses.replace(answer(mask, 0.9), object_category=1) for _ in range(300))
    assert numbers([one_object(mask, "1", *others, answer(mask, 0.5))]).values["ap"] == pytest.approx(1, abs=1e-12)


def test_no_answers_at_all_is_zero() -> None:
    mask = np.ones((40, 40), bool)
    values = numbers([one_object(mask, "1")]).values
    assert set(values.values()) == {0.0}


def test_an_image_without_answers_makes_the_numbers_absent() -> None:
    items = synthetic_items(20, seed=5)
    items[3] = dataclasses.replace(items[3], instances=None)
    result = average_precision(items, NAMES, Names.THINGS, Overlap.BOXES)
    assert result == Absent("1 of 20 images have no instances answers, the first of them 000003")


def test_no_truth_makes_the_numbers_absent() -> None:
    items = [with_regions(item) for item in synthetic_items(20, seed=5)]
    for names in Names:
        assert isinstance(average_precision(items, NAMES, names, Overlap.MASKS), Absent)
    without_parts = Vocabulary(NAMES.objects, things=NAMES.things)
    result = average_precision(items, without_parts, Names.PARTS, Overlap.BOXES)
    assert result == Absent("the dataset has no names of parts")


def test_an_all_crowd_dataset_has_no_numbers() -> None:
    mask = np.ones((40, 40), bool)
    item = one_object(mask, "1", answer(mask, 0.5))
    item = with_regions(item, item.regions[0]._replace(is_crowd=True))
    assert isinstance(average_precision([item], NAMES, Names.THINGS, Overlap.MASKS), Absent)


def test_a_federated_dataset_is_not_measured_as_if_it_were_none() -> None:
    result = average_precision(federated(synthetic_items(9, seed=5), 0), NAMES, Names.THINGS, Overlap.MASKS)
    assert isinstance(result, Absent)
    assert "federated" in result.reason


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        average_precision([], NAMES, Names.THINGS, Overlap.MASKS)


@pytest.mark.parametrize(
    "wrong", [{"score": float("nan")}, {"box_xyxy": (0.0, 0.0, float("inf"), 1.0)}, {"object_category": 7}]
)
def test_answers_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    mask = np.ones((40, 40), bool)
    item = one_object(mask, "1", dataclasses.replace(answer(mask, 0.5), **wrong))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="photo: an answer has"):
        average_precision([item], NAMES, Names.THINGS, Overlap.BOXES)


def with_regions(item: ImageItem, *regions: Region) -> ImageItem:
    return dataclasses.replace(item, regions=regions)


def one_object(mask: np.ndarray, native: str, *answers: NamedMask) -> ImageItem:
    counts = rle.encode(mask)
    region = Region(native, counts, rle.box_xyxy(counts, *mask.shape), float(mask.sum()), Kind.INSTANCE, 0)
    return ImageItem("photo", *mask.shape, *mask.shape, (region,), instances=answers)  # type: ignore[arg-type]


def answer(mask: np.ndarray, score: float) -> NamedMask:
    counts = rle.encode(mask)
    return NamedMask(counts, rle.box_xyxy(counts, *mask.shape), 0, None, score)
