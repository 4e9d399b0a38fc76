"""Prompts on one image: answers have its size, do not influence each other, and bad input is told apart."""

from __future__ import annotations

import io
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

from semsam.data import rle
from semsam.data.augmentation import Geometry
from semsam.data.images import ImageTooLarge, Photo
from semsam.everything import Everything, EverythingSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import PROMPTS_AT_ONCE, RELEASED, WHOLE_TO_PART, Answer, ImageSize, Predictor, PromptStyle

HEIGHT, WIDTH = 50, 70
POINTS = np.array([[3.0, 4.0], [60, 40], [30, 30], [69.5, 0]])
BOXES = np.array([[1.0, 1, 20, 30], [-5, 20, 90, 45]])


MODEL = SemanticSam.untrained("debug", seed=0)


def new_predictor(style: PromptStyle | None = None) -> Predictor:
    return Predictor(MODEL, ImageSize(64, 96), style)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


@pytest.fixture(scope="module")
def predictor(image: np.ndarray) -> Predictor:
    predictor = new_predictor()
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    predictor.set_image(image)
    return predictor


def assert_same(found: Answer, expected: Answer, rows: slice | list[int] = slice(None)) -> None:
    """The same to 1e-5, boxes relative to the image; a soft mask's rounding may cross zero at a pixel or so."""
    size = [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_allclose(found.boxes_xyxy / size, expected.boxes_xyxy[rows] / size, atol=1e-5)
    for name in ("iou_predictions", "object_scores", "part_scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name)[rows], atol=1e-5)
    assert (found.masks != expected.masks[rows]).mean() < 1e-4


def soft_masks(predictor: Predictor, points: np.ndarray) -> torch.Tensor:
    assert predictor.image is not None
    parts = [part.mask_embeddings.flatten(0, 1) for part in predictor.decode(points)]
    return predictor.image.at_own_size(predictor.image.mask_logits(torch.cat(parts))).unflatten(0, (-1, 6))


def test_answers_have_the_images_own_size(predictor: Predictor) -> None:
    answer = predictor.predict(POINTS[:2], BOXES[:1])
    assert answer.masks.shape == (3, 6, HEIGHT, WIDTH)
    assert answer.masks.dtype == bool
    assert answer.iou_predictions.shape == answer.levels.shape == (3, 6)
    assert answer.object_scores.shape == (3, 6, 2)
    assert answer.part_scores.shape == (3, 6, 1)
    assert ((answer.object_scores > 0) & (answer.object_scores < 1)).all()
    assert ((answer.boxes_xyxy >= 0) & (answer.boxes_xyxy <= [WIDTH, HEIGHT, WIDTH, HEIGHT])).all()


@pytest.mark.parametrize("points", [None, [], np.zeros((0, 2))])
def test_no_prompt_gives_an_empty_answer(predictor: Predictor, points: list | np.ndarray | None) -> None:
    answer = predictor.predict(points, [])
    assert answer.masks.shape == (0, 6, HEIGHT, WIDTH)
    assert answer.boxes_xyxy.shape == (0, 6, 4)
    assert answer.object_scores.shape == (0, 6, 2)
    assert answer.largest_first().levels.shape == (0, 6)
    assert predictor.predict(levels=[]).masks.shape == (0, 0, HEIGHT, WIDTH)


def test_no_names_give_no_scores() -> None:
    predictor = new_predictor()
    predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    answer = predictor.predict([[3.0, 4.0]])
    assert answer.object_scores.shape == answer.part_scores.shape == (1, 6, 0)
    assert answer.best_object(0, 0) is answer.best_part(0, 0) is None


def test_the_best_names_are_those_with_the_highest_scores(predictor: Predictor) -> None:
    answer = predictor.predict(POINTS)
    for prompt, level in ((0, 0), (3, 5)):
        name, score = answer.best_object(prompt, level) or ("", 0.0)
        assert answer.object_scores[prompt, level, ("car", "dog").index(name)] == score
        assert score == answer.object_scores[prompt, level].max()
        assert answer.best_part(prompt, level) == ("wheel", answer.part_scores[prompt, level, 0])


def test_other_prompts_their_order_and_their_number_change_nothing(predictor: Predictor) -> None:
    together = predictor.predict(POINTS, BOXES)
    for i in range(4):
        assert_same(predictor.predict(POINTS[i : i + 1]), together, [i])
    for i in range(2):
        assert_same(predictor.predict(boxes_xyxy=BOXES[i : i + 1]), together, [4 + i])
    order = [2, 0, 3, 1]
    assert_same(predictor.predict(POINTS[order]), together, order)
    scale = soft_masks(predictor, POINTS).abs().max()
    for some in ([1], [2, 0, 3]):
        difference = soft_masks(predictor, POINTS[some]) - soft_masks(predictor, POINTS)[some]
        assert difference.abs().max() < 1e-5 * scale


def test_many_prompts_are_decoded_in_parts_that_change_nothing(predictor: Predictor) -> None:
    points = np.random.default_rng(1).uniform(0, 50, (PROMPTS_AT_ONCE + 5, 2))
    answer = predictor.predict(points, BOXES[:1])
    assert [len(part.iou_predictions) for part in predictor.decode(points)] == [PROMPTS_AT_ONCE, 5]
    assert answer.masks.shape == (PROMPTS_AT_ONCE + 6, 6, HEIGHT, WIDTH)
    some = [0, PROMPTS_AT_ONCE - 1, PROMPTS_AT_ONCE, PROMPTS_AT_ONCE + 4]
    assert_same(predictor.predict(points[some]), answer, some)


def test_the_order_and_batch_of_images_change_nothing(predictor: Predictor, image: np.ndarray) -> None:
    other = np.random.default_rng(3).integers(0, 255, (40, 40, 3), np.uint8)
    expected = predictor.predict(POINTS)
    again = new_predictor()
    again.set_vocabulary(["car", "dog"], ["wheel"])
    encoded = again.encode([other, image, image[::-1].copy()])
    assert [one.size for one in encoded] == [(40, 40), (HEIGHT, WIDTH), (HEIGHT, WIDTH)]
    again.set_image(encoded[1])
    assert_same(again.predict(POINTS), expected)
    assert again.encode([]) == []


def test_levels_are_chosen_by_number_or_from_whole_to_part(predictor: Predictor) -> None:
    every = predictor.predict(POINTS)
    some = predictor.predict(POINTS, levels=[4, 1])
    assert some.levels.tolist() == [[4, 1]] * 4
    np.testing.assert_array_equal(some.masks, every.masks[:, [4, 1]])
    np.testing.assert_array_equal(some.object_scores, every.object_scores[:, [4, 1]])
    ordered = predictor.predict(POINTS, levels="whole_to_part")
    assert tuple(ordered.levels[0]) == WHOLE_TO_PART
    np.testing.assert_array_equal(ordered.iou_predictions, every.iou_predictions[:, list(WHOLE_TO_PART)])
    sorted_by_area = every.largest_first()
    areas = sorted_by_area.masks.sum(axis=(2, 3))
    assert (np.diff(areas, axis=1) <= 0).all()
    for prompt, level in enumerate(sorted_by_area.levels[:, 0]):
        np.testing.assert_array_equal(sorted_by_area.masks[prompt, 0], every.masks[prompt, level])
    with pytest.raises(ValueError, match=r"levels \[6\]: the model's are 0 to 5"):
        predictor.predict(POINTS, levels=[6])
    with pytest.raises(ValueError, match="not 'parts'"):
        predictor.predict(POINTS, levels="parts")  # type: ignore[arg-type]


def test_the_released_style_lets_clicks_see_each_other(image: np.ndarray) -> None:
    released, apart = new_predictor(RELEASED), new_predictor(PromptStyle(click_side=0.005))
    released.set_image(image)
    apart.set_image(image)
    together, isolated = released.predict(POINTS), apart.predict(POINTS)
    assert np.abs(together.iou_predictions - isolated.iou_predictions).max() > 1e-4
    assert_same(released.predict(POINTS[:1]), isolated, [0])  # One click has nobody to look at.
    points = np.full((PROMPTS_AT_ONCE + 1, 2), 20.0)
    assert [len(part.iou_predictions) for part in released.decode(points)] == [PROMPTS_AT_ONCE + 1]


def test_a_click_of_the_released_style_is_a_fraction_of_the_image(image: np.ndarray) -> None:
    released, boxed = new_predictor(PromptStyle(click_side=0.3)), new_predictor()
    for one in (released, boxed):
        one.model = deepcopy(MODEL)
        with torch.no_grad():  # Else a click would differ from its box.
            one.model.prompt_encoder.kinds.weight[1] = one.model.prompt_encoder.kinds.weight[0]
        one.set_image(image)
    half = np.array([0.15 * WIDTH, 0.15 * HEIGHT])
    box = np.concatenate([POINTS[2] - half, POINTS[2] + half])
    assert_same(released.predict(POINTS[2:3]), boxed.predict(boxes_xyxy=box[None]))
    with pytest.raises(ValueError, match="click_side"):
        PromptStyle(click_side=0.0)


@pytest.mark.parametrize("point", [[-1.0, 3.0], [3.0, 50.0], [70.0, 3.0], [np.nan, 3.0], [np.inf, 3.0]])
def test_a_click_outside_the_image_is_refused(predictor: Predictor, point: list[float]) -> None:
    with pytest.raises(ValueError, match="outside the image of 70 x 50"):
        predictor.predict([[1.0, 1.0], point])


@pytest.mark.parametrize("box", [[5.0, 5, 5, 9], [9.0, 5, 5, 9], [5.0, 5, np.nan, 9]])
def test_a_box_without_area_is_refused(predictor: Predictor, box: list[float]) -> None:
    with pytest.raises(ValueError, match="no area"):
        predictor.predict(boxes_xyxy=[box])


@pytest.mark.parametrize("box", [[70.0, 5, 80, 9], [-9.0, 5, 0, 9], [5.0, -9, 9, -5], [5.0, 51, 9, 60]])
def test_a_box_outside_the_image_is_refused_and_one_across_its_edge_cut(predictor: Predictor, box: list[float]) -> None:
    with pytest.raises(ValueError, match="outside the image of 70 x 50"):
        predictor.predict(boxes_xyxy=[box])
    assert_same(predictor.predict(boxes_xyxy=[[-5, 20, 90, 45]]), predictor.predict(boxes_xyxy=[[0, 20, 70, 45]]))


@pytest.mark.parametrize(("points", "boxes"), [([3.0, 4.0], None), ([[1.0, 2, 3]], None), (None, [[1.0, 2]])])
def test_prompts_of_another_shape_are_refused(predictor: Predictor, points: list | None, boxes: list | None) -> None:
    with pytest.raises(ValueError, match=r"are rows of \d numbers"):
        predictor.predict(points, boxes)


def test_asking_before_there_is_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="call set_image"):
        new_predictor().predict([[1.0, 1.0]])


@pytest.mark.parametrize("shape", [(4, 4, 2), (0, 4, 3)])
def test_what_is_no_image_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image is uint8"):
        predictor.set_image(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="not of a known format"):
        predictor.set_image(b"hello")
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file"):
        predictor.set_image("nowhere.jpg")


def test_grey_transparent_deep_and_turned_photos_are_answered_as_what_they_show(image: np.ndarray) -> None:
    def answers(photo: Photo) -> np.ndarray:
        predictor = new_predictor()
        predictor.set_image(photo)
        return predictor.predict(POINTS[:1], levels=[0, 3]).masks

    transparent = np.dstack([image, np.full((HEIGHT, WIDTH), 7, np.uint8)])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # Shown turned a quarter to the right.
    turned = io.BytesIO()
    Image.fromarray(np.rot90(image)).save(turned, "PNG", exif=exif)
    expected = answers(image)
    for photo in (Image.fromarray(image), transparent, turned.getvalue()):
        np.testing.assert_array_equal(answers(photo), expected)
    grey = image[..., 0]
    deep = io.BytesIO()
    Image.fromarray(grey.astype(np.uint16) * 257).save(deep, "PNG")
    expected = answers(np.dstack([grey] * 3))
    for photo in (grey, deep.getvalue()):
        np.testing.assert_array_equal(answers(photo), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (300, 2), (3000, 4000)])
def test_extreme_shapes_are_answered(shape: tuple[int, int]) -> None:
    predictor = new_predictor()
    predictor.set_vocabulary(["car"], ["wheel"])
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8))
    corner = [shape[1] - 0.5, shape[0] - 0.5]
    answer = predictor.predict([corner], [[0.0, 0, *shape[::-1]]], levels=[5])
    assert answer.masks.shape == (2, 1, *shape)
    for name in ("boxes_xyxy", "iou_predictions", "object_scores", "part_scores"):
        assert np.isfinite(getattr(answer, name)).all()
    assert (answer.boxes_xyxy <= np.tile(shape[::-1], 2)).all()
    assert predictor.image is not None
    [decoded] = predictor.decode([corner])
    assert torch.isfinite(predictor.image.mask_logits(decoded.mask_embeddings[0])).all()


def test_masks_are_made_a_few_at_a_time_and_none_is_lost(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = predictor.predict(POINTS)
    monkeypatch.setattr("semsam.encoded_image.MAP_BYTES", 4 * 96 * 96 * 5)  # Five masks, and a remainder.
    np.testing.assert_array_equal(predictor.predict(POINTS).masks, expected.masks)


def test_names_are_embedded_once(image: np.ndarray) -> None:
    predictor = new_predictor()
    asked: list[str] = []
    hook = predictor.model.text_encoder.register_forward_pre_hook(lambda _, inputs: asked.extend(inputs[0]))
    predictor.set_vocabulary(["car", "dog", "car"], ["wheel", "dog"])
    predictor.set_vocabulary(["dog", "cat"], [])
    predictor.set_vocabulary([], ["cat", "car"])
    hook.remove()
    assert sorted(asked) == ["car", "cat", "dog", "wheel"]
    predictor.set_image(image)
    fresh = new_predictor()
    fresh.set_vocabulary([], ["cat", "car"])
    fresh.set_image(image)
    assert_same(predictor.predict(POINTS), fresh.predict(POINTS))


@pytest.mark.parametrize(
    "names", [(name for name in ("car", "dog")), {"car": 1, "dog": 2}.keys(), np.array(["car", "dog"])]
)
def test_names_that_can_be_read_only_once_are_all_taken(image: np.ndarray, names: Iterable[str]) -> None:
    predictor = new_predictor()
    predictor.set_vocabulary(names, iter(["wheel"]))
    assert (predictor.object_names, predictor.part_names) == (("car", "dog"), ("wheel",))
    predictor.set_image(image)
    assert predictor.predict(POINTS[:1]).object_scores.shape == (1, 6, 2)


@pytest.mark.parametrize(
    "names", ["car", ["car", ""], ["car", 3], b"car", [b"car"], {"car": 1}, None, 3, (name for name in ("car", " "))]
)
def test_what_is_no_list_of_names_is_refused(predictor: Predictor, names: object) -> None:
    with pytest.raises(ValueError, match="a vocabulary is a list of names"):
        predictor.set_vocabulary(names)  # type: ignore[arg-type]


def test_a_refused_vocabulary_leaves_the_old_one(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="a vocabulary is a list of names"):
        predictor.set_vocabulary(["cat"], [""])
    assert (predictor.object_names, predictor.part_names) == (("car", "dog"), ("wheel",))


def test_a_tensor_is_refused_with_what_to_pass_instead(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match=r"torch tensor.*permute\(1, 2, 0\)\.cpu\(\)\.numpy\(\)"):
        predictor.set_image(torch.zeros(3, 50, 70, dtype=torch.uint8))  # type: ignore[arg-type]


def test_an_image_beyond_the_limit_is_refused_before_it_is_decoded(image: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    small = Predictor(MODEL, ImageSize(64, 96), max_pixels=HEIGHT * WIDTH - 1)
    with pytest.raises(ImageTooLarge, match=f"{HEIGHT} x {WIDTH} pixels"):
        small.set_image(file.getvalue())
    small.max_pixels = HEIGHT * WIDTH
    small.set_image(file.getvalue())


def test_model_and_photo_may_lie_on_s3(predictor: Predictor, bucket: str, image: np.ndarray, tmp_path: Path) -> None:
    predictor.model.save(f"{bucket}/run/checkpoint-3")
    predictor.model.save(tmp_path)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    boto3.Session().client("s3").put_object(Bucket="bucket", Key="photos/a.png", Body=file.getvalue())
    for place in (f"{bucket}/run/checkpoint-3/", tmp_path):
        loaded = Predictor.load(place, device="cpu", image_size=ImageSize(64, 96))
        loaded.set_vocabulary(["car", "dog"], ["wheel"])
        loaded.set_image(f"{bucket}/photos/a.png")
        np.testing.assert_array_equal(loaded.predict(POINTS).masks, predictor.predict(POINTS).masks)
    with pytest.raises(ValueError, match=r"s3://bucket/run/config\.yaml: no such file; .* is not a checkpoint"):
        Predictor.load(f"{bucket}/run")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        Predictor.load(tmp_path)


def test_a_square_is_the_image_padded_as_in_training(image: np.ndarray) -> None:
    """The answer is that of the padded image, without what lies on the padding."""
    square, plain = ImageSize(64, 96, square=True), ImageSize(96, 96)
    seen = square.apply(image)
    geometry = Geometry(HEIGHT, WIDTH, 8, 0, 0, HEIGHT, WIDTH, *square.resized(HEIGHT, WIDTH), flip=False, crop_size=96)
    np.testing.assert_array_equal(seen.transpose(2, 0, 1), geometry.view(image))
    ours, padded = Predictor(MODEL, square), Predictor(MODEL, plain)
    ours.set_image(image)
    padded.set_image(seen)
    scale = np.array(square.resized(HEIGHT, WIDTH)[::-1]) / (WIDTH, HEIGHT)
    answer, expected = soft_masks(ours, POINTS), soft_masks(padded, POINTS * scale)
    height, width = square.resized(HEIGHT, WIDTH)
    expected = F.interpolate(expected[..., :height, :width].flatten(0, 1)[None], (HEIGHT, WIDTH), mode="bilinear")
    torch.testing.assert_close(answer.flatten(0, 1), expected[0], atol=1e-4, rtol=1e-4)
    boxes, of_padded = ours.predict(POINTS).boxes_xyxy, padded.predict(POINTS * scale).boxes_xyxy
    np.testing.assert_allclose(boxes, (of_padded / np.tile(scale, 2)).clip(0, [WIDTH, HEIGHT] * 2), atol=1e-3)


def test_everything_is_named_without_clicks(image: np.ndarray) -> None:
    predictor = new_predictor()
    predictor.set_vocabulary(["car", "dog", "sky"], ["wheel", "leg"])
    predictor.set_image(image)
    found = predictor.everything(["car", "dog"], [("car", "wheel"), ("dog", "leg")])
    instances, semantic = found.instances or (), found.semantic or ()
    names = {(mask.object_category, mask.part_category) for mask in instances}
    assert names == {(0, None), (1, None), (0, 0), (1, 1)}
    queries = predictor.generic_queries()
    assert len(queries.boxes_xyxy) == MODEL.settings.num_generic_queries
    boxes = {tuple(box) for box in queries.boxes_xyxy.tolist()}
    assert {mask.box_xyxy for mask in instances} <= boxes
    covered = sum(rle.decode(mask.rle, HEIGHT, WIDTH).astype(int) for mask in semantic)
    np.testing.assert_array_equal(covered, np.ones((HEIGHT, WIDTH)))
    panoptic = predictor.everything(settings=EverythingSettings(min_panoptic_score=0, min_unhidden=0)).panoptic
    assert panoptic
    assert all(mask.part_category is None for mask in panoptic)


def test_all_names_are_things_and_all_objects_have_all_parts_unless_said_otherwise(predictor: Predictor) -> None:
    def names(found: Everything) -> set[tuple[int, int | None]]:
        return {(mask.object_category, mask.part_category) for mask in found.instances or ()}

    settings = EverythingSettings(max_objects=2**20, max_parts=2**20)
    everything = predictor.everything(settings=settings)
    assert names(everything) == {(0, None), (1, None), (0, 0), (1, 0)}
    told = predictor.everything(("car", "dog"), [("car", "wheel"), ("dog", "wheel")], settings)
    assert (told.instances, told.panoptic, told.semantic) == (
        everything.instances,
        everything.panoptic,
        everything.semantic,
    )
    assert names(predictor.everything([], settings=settings)) == {(0, 0), (1, 0)}
    twice = new_predictor()
    twice.set_vocabulary(["car", "dog", "car"], ["wheel"])
    twice.set_image(predictor.image)  # type: ignore[arg-type]
    assert names(twice.everything(["car"], [("car", "wheel")], settings)) == {(0, None), (2, None), (0, 0), (2, 0)}


@pytest.mark.parametrize(("size", "square"), [((1, 1), False), ((1, 400), False), ((300, 2), False), ((50, 70), True)])
def test_everything_in_extreme_shapes_is_found(size: tuple[int, int], square: bool) -> None:
    predictor = Predictor(MODEL, ImageSize(64, 96, square=square))
    predictor.set_vocabulary(["car", "dog"])
    predictor.set_image(np.zeros((*size, 3), np.uint8))
    found = predictor.everything()
    assert sum(rle.area(mask.rle) for mask in found.semantic or ()) == size[0] * size[1]


def test_what_everything_cannot_be_asked_is_refused(image: np.ndarray) -> None:
    predictor = new_predictor()
    with pytest.raises(ValueError, match="call set_image"):
        predictor.everything()
    predictor.set_image(image)
    with pytest.raises(ValueError, match="no object names yet: call set_vocabulary"):
        predictor.everything()
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    with pytest.raises(ValueError, match="things: 'cart' is not in the vocabulary; did you mean car?"):
        predictor.everything(["cart"])
    with pytest.raises(ValueError, match="object_parts: 'leg' is not in the vocabulary"):
        predictor.everything(object_parts=[("car", "leg")])
    with pytest.raises(ValueError, match="a vocabulary is a list of names"):
        predictor.everything("car")
    predictor.model = deepcopy(MODEL)
    with torch.no_grad():
        predictor.model.mask_decoder.heads.mask.last.bias[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        predictor.everything()


def test_image_sizes_keep_the_aspect_and_the_limit() -> None:
    size = ImageSize(800, 1333)
    assert size.resized(480, 640) == (800, 1067)
    assert size.resized(100, 1000) == (133, 1333)
    assert size.resized(1, 4000) == (1, 1333)
    with pytest.raises(ValueError, match="short_side 900"):
        ImageSize(900, 800)
