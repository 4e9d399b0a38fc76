import pytest

from semsam.config import config_values
from semsam.tracking.visible_params import EVALUATION, MOST, TRAINING, visible_params
from semsam.training.recipe import Recipe

DATASETS = [{"name": "sa1b/train"}, {"name": "coco_panoptic/train"}]


@pytest.mark.parametrize("names", [TRAINING, EVALUATION])
def test_a_run_has_at_most_ten(names: tuple[str, ...]) -> None:
    assert len(visible_params(names, dict.fromkeys(names, 1), DATASETS)) == len(names) <= MOST


def test_they_are_settings_that_a_recipe_has() -> None:
    found = visible_params(TRAINING, config_values(Recipe()) | {"run": {"num_workers": 8}}, DATASETS)
    assert set(TRAINING) - set(found) == {"model.init", "model.overrides"}  # Not set.
    assert found["datasets"] == "coco_panoptic, sa1b"
    assert found["training.steps"] == "300000"


def test_settings_that_a_run_does_not_know_are_left_out() -> None:
    assert visible_params(TRAINING, {"model": "other", "training": {}}, []) == {}
