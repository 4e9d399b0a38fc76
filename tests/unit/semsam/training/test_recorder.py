"""How many samples of each dataset a run has seen stands in its log and in MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from semsam.storage import Folder
from semsam.tracking.tracker import RUN_ID_FILE, TrackingSettings
from semsam.training.recipe import Recipe
from semsam.training.recorder import Recorder
from semsam.training.train_log import read_log
from semsam.training.training_data import TrainingData


@pytest.mark.slow
def test_samples_seen_of_each_dataset_stand_in_the_log_and_in_mlflow(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    recipe = make_recipe(steps=5, global_batch=3, log_every=2)
    training_data = TrainingData.of(recipe)
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/mlflow.db")
    folder = Folder(str(tmp_path / "run"))
    seen: Counter[str] = Counter({"coco_panoptic": 0, "pascal_part": 0})
    counts = []
    for first, last in ((0, 3), (3, 5)):  # Interrupted once.
        recorder = Recorder(recipe, training_data, folder, first, "test", tracking)
        for step in range(first, last):
            seen.update(row.dataset for row in training_data.plan.rows(step))
            counts.append(dict(seen))
            recorder.add(step, {"loss": 1.0, "seconds": 0.1})
        recorder.close(failed=last < 5)
    assert [entry["samples_seen"] for entry in read_log(folder)] == counts
    assert sum(counts[-1].values()) == 15
    client, run_id = MlflowClient(tracking.uri), folder.read(RUN_ID_FILE).decode()
    for dataset in seen:
        history = client.get_metric_history(run_id, f"samples_seen/{dataset}")
        assert [(one.step, one.value) for one in history] == [(n, counts[n - 1][dataset]) for n in (2, 4, 5)]


def test_who_asks_is_told_what_each_step_came_to(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = make_recipe(steps=3, global_batch=3)
    told: list[float] = []
    recorder = Recorder(
        recipe,
        TrainingData.of(recipe),
        Folder(str(tmp_path / "run")),
        0,
        "test",
        tracking=None,
        on_record=lambda values: told.append(values["loss"]),
    )
    for step in range(3):
        recorder.add(step, {"loss": step / 2, "seconds": 0.1})
    recorder.close(failed=False)
    assert told == [0.0, 0.5, 1.0]
