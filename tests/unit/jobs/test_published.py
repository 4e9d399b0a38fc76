"""What others have published becomes runs beside one's own: each once, with its source and how it was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import published
from jobs.published import load_published
from jobs.track import Target, TrackJob, main, run
from semsam.config import ConfigError


def test_every_published_number_is_a_share_with_one_convention() -> None:
    known = load_published()
    assert "arXiv" in known.source
    for numbers in known.models.values():
        assert numbers
        for name, value in numbers.items():
            assert 0 < value < 1
            assert known.convention(name)
            assert "published/" not in name[1:]
    used = {name for numbers in known.models.values() for name in numbers}
    assert all(any(name.startswith(start) for name in used) for start in known.conventions)


def test_published_numbers_are_runs_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        main(["published=true", f"tracking.uri={uri}", "tracking.experiment=mine"])
    said = capsys.readouterr().out.splitlines()
    models = load_published().models
    assert said[-1].startswith(f"sent {len(models)} published models: MLflow run ")
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine").experiment_id
    found = {one.info.run_name: one for one in client.search_runs([experiment])}  # The latest first, as in the UI.
    assert list(found) == [f"{name} (published)" for name in models]
    one = found["Semantic-SAM-L (published)"]
    assert one.data.metrics["one_click/coco_panoptic/miou_max"] == 0.57
    assert len(client.get_metric_history(one.info.run_id, "one_click/coco_panoptic/miou_max")) == 1
    assert one.data.params == {}  # Each would be a column beside one's own runs,
    day = 1_688_947_200_000
    assert day - 60_000 < one.info.start_time == one.info.end_time <= day  # which come first.
    assert one.data.tags["mlflow.source.name"] == "Semantic-SAM, arXiv 2307.04767v1"
    assert "COCO val2017; one click" in one.data.tags["mlflow.note.content"]
    assert one.info.status == "FINISHED"
    (tmp_path / "other.yaml").write_text(published.FILE.read_text().replace("0.570", "0.571"))
    monkeypatch.setattr(published, "FILE", tmp_path / "other.yaml")
    run(TrackJob(published=True, tracking=Target(uri=uri, experiment="mine")))  # A number that was mended.
    again = client.get_run(one.info.run_id)
    assert again.data.metrics["one_click/coco_panoptic/miou_max"] == 0.571
    assert again.info.end_time == one.info.end_time


def test_it_is_a_folder_or_what_was_published() -> None:
    for arguments in ([], ["outputs/evaluation", "published=true"]):
        with pytest.raises(ConfigError, match="folder: name that of a training or an evaluation, or set published"):
            main(arguments)
