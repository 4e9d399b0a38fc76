import numpy as np
import pytest

from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    predictor = Predictor(SemanticSam.untrained("debug", seed=0), ImageSize(64, 96))
    predictor.set_vocabulary(["car", "dog"], ["wheel"])
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8))
    return predictor


def test_answers_have_the_images_own_size(predictor: Predictor) -> None:
    answer = predictor.predict(np.array([[3.0, 4.0], [60, 40]]), np.array([[1.0, 1, 20, 30]]))
    assert answer.masks.shape == (3, 6, 50, 70)
    assert answer.masks.dtype == bool
    assert answer.iou_predictions.shape == (3, 6)
    assert answer.object_scores.shape == (3, 6, 2)
    assert answer.part_scores.shape == (3, 6, 1)
    assert ((answer.object_scores > 0) & (answer.object_scores < 1)).all()


def test_no_prompt_gives_an_empty_answer(predictor: Predictor) -> None:
    assert predictor.predict().masks.shape == (0, 6, 50, 70)


def test_no_names_give_no_scores() -> None:
    predictor = Predictor(SemanticSam.untrained("debug", seed=0), ImageSize(64, 96))
    predictor.set_image(np.zeros((64, 64, 3), np.uint8))
    assert predictor.predict(np.array([[3.0, 4.0]])).object_scores.shape == (1, 6, 0)


def test_prompts_do_not_influence_each_other(predictor: Predictor) -> None:
    points = np.array([[3.0, 4.0], [60, 40], [30, 30]])
    together = predictor.predict(points)
    for i in (2, 0):
        alone = predictor.predict(points[i : i + 1])
        np.testing.assert_allclose(alone.iou_predictions[0], together.iou_predictions[i], atol=1e-5)
        np.testing.assert_allclose(alone.boxes_xyxy[0], together.boxes_xyxy[i], atol=1e-3)


@pytest.mark.parametrize("point", [[-1.0, 3.0], [3.0, 50.0], [70.0, 3.0]])
def test_a_click_outside_the_image_is_refused(predictor: Predictor, point: list[float]) -> None:
    with pytest.raises(ValueError, match="outside the image of 70 x 50"):
        predictor.predict(np.array([point]))


def test_a_box_without_area_is_refused(predictor: Predictor) -> None:
    with pytest.raises(ValueError, match="no area"):
        predictor.predict(boxes_xyxy=np.array([[5.0, 5, 5, 9]]))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_what_is_no_rgb_image_is_refused(predictor: Predictor, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image is uint8"):
        predictor.set_image(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 2)])
def test_extreme_shapes_are_answered(shape: tuple[int, int]) -> None:
    predictor = Predictor(SemanticSam.untrained("debug", seed=0), ImageSize(64, 96))
    predictor.set_image(np.zeros((*shape, 3), np.uint8))
    answer = predictor.predict(np.array([[0.0, 0.0]]))
    assert answer.masks.shape == (1, 6, *shape)
    assert np.isfinite(answer.iou_predictions).all()


def test_image_sizes_keep_the_aspect_and_the_limit() -> None:
    size = ImageSize(800, 1333)
    assert size.resized(480, 640) == (800, 1067)
    assert size.resized(100, 1000) == (133, 1333)
    assert size.resized(1, 4000) == (1, 1333)
    with pytest.raises(ValueError, match="short_side 900"):
        ImageSize(900, 800)
