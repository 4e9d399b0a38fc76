from semsam.config import config_values
from semsam.tracking.visible_params import DESCRIBED, EVALUATION, MOST, TRAINING, visible_params
from semsam.training.recipe import Recipe

DATASETS = [{"name": "sa1b/train"}, {"name": "coco_panoptic/train"}]


def test_a_list_of_trainings_and_evaluations_has_at_most_ten() -> None:
    found = [visible_params(names, dict.fromkeys(names, 1), DATASETS) for names in (TRAINING, EVALUATION)]
    assert [len(one) for one in found] == [len(TRAINING), len(EVALUATION)]
    assert len(found[0] | found[1]) <= MOST


def test_they_are_settings_that_a_recipe_has() -> None:
    found = visible_params(DESCRIBED, config_values(Recipe()) | {"run": {"num_workers": 8}}, DATASETS)
    assert set(DESCRIBED) - set(found) == {"model.init", "model.overrides"}  # Not set.
    assert found["datasets"] == "coco_panoptic, sa1b"
    assert found["training.steps"] == "300000"


def test_settings_that_a_run_does_not_know_are_left_out() -> None:
    assert visible_params(TRAINING, {"model": "other", "training": {}}, []) == {}
