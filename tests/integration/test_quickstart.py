"""The whole way at its smallest: seven native datasets to a tracked evaluation, on one local cluster."""

from __future__ import annotations

import signal
import warnings
from pathlib import Path

import orjson
import pytest

from pipelines.toy.layouts import LAYOUTS
from semsam.config import load_config

pytestmark = pytest.mark.cluster


@pytest.mark.filterwarnings("ignore")  # Ray's and MLflow's own, of which none is ours to mend.
def test_seven_native_datasets_become_a_tracked_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    from jobs import quickstart

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    overrides = [f"output={tmp_path}/quickstart", "toy.train_images=8", "toy.val_images=3", "toy.faults=false"]
    overrides += ["train.training.steps=3"]
    job = load_config(quickstart.QuickstartJob, str(quickstart.DEFAULT_CONFIG), overrides)
    on_interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = quickstart.run(job)
    assert signal.getsignal(signal.SIGINT) is on_interrupt
    assert {m.dataset for m in result.manifests} == set(LAYOUTS)
    assert result.training.steps == 3
    assert (Path(result.training.checkpoint) / "model.safetensors").is_file()
    run = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(str(result.after.run_id))
    sent = {name: value for name, value in run.data.metrics.items() if not name.startswith("interval_")}
    assert sent == pytest.approx(result.after.metrics)
    assert {d.dataset.name for d in run.inputs.dataset_inputs} == {f"{d}/val" for d in LAYOUTS}
    assert len(list(Path(result.after.pictures).glob("*.png"))) >= 6
    summary = orjson.loads((tmp_path / "quickstart" / "summary.json").read_bytes())
    assert summary["one_click/miou_oracle"]["after"] == pytest.approx(result.after.means["one_click/miou_oracle"][0])
    assert "one_click/miou_oracle" in quickstart.report(result)
