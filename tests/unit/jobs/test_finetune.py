"""What jobs.finetune makes of its settings, and what it refuses before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.finetune import DEFAULT_CONFIG, FinetuneJob, _dataset, _steps, main
from semsam.config import config_values, load_config
from semsam.data.plan import Stage
from semsam.model.presets import preset
from semsam.model.semantic_sam import SemanticSam


def job(**values: Any) -> FinetuneJob:
    return load_config(FinetuneJob, str(DEFAULT_CONFIG), [f"{name}={value}" for name, value in values.items()])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The settings of a checkpoint whose model has four levels."""
    folder = tmp_path / "checkpoint-9"
    folder.mkdir()
    values = config_values(preset("debug")) | {"num_levels": 4}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": values}))
    return folder


@pytest.mark.parametrize(
    ("files", "data", "dataset", "root", "options"),
    [
        (["annotations.json"], "", "coco_instances", "", {}),
        (["x.json"], "/x.json", "coco_instances", "", {"annotations": "x.json"}),
        (["annotations/x.json"], "/annotations/x.json", "coco_instances", "", {"annotations": "annotations/x.json"}),
        (["names.txt"], "", "label_maps", "", {}),
        (["manifest.json", "masks-00000.parquet"], "", "generated_masks", "", {}),
    ],
)
def test_the_data_is_known_by_what_lies_there(
    tmp_path: Path, files: list[str], data: str, dataset: str, root: str, options: dict[str, Any]
) -> None:
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("{}")
    found, read = _dataset(job(data=f"{tmp_path}/data{data}", checkpoint="/x"))
    assert (found, read.root, read.options) == (dataset, f"{tmp_path}/data", options)
    assert _dataset(job(data=f"{tmp_path}/data", checkpoint="/x", source="sa1b"))[0] == "sa1b"


def test_the_model_is_the_checkpoint_s_and_both_evaluations_ask_the_same(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "annotations.json").write_text("{}")
    one = job(data=tmp_path, checkpoint=checkpoint, **{"train.model.overrides.hidden_dim": 32})
    chain = _steps(one, tmp_path / "out")
    model = chain.train.model.own_settings()
    assert (model.num_levels, model.hidden_dim, chain.train.model.init) == (4, 32, str(checkpoint))
    assert chain.train.data.sample.prompts.num_levels == 4
    assert chain.train.data.plan.stages == (Stage({"coco_instances": 1.0}),)
    assert (chain.before.checkpoint, chain.before.data) == (str(checkpoint), chain.prepare.output)
    assert chain.before.questions == chain.after.questions
    assert chain.before.image_size == chain.after.image_size
    assert len({chain.before.output, chain.after.output, chain.train.run.storage}) == 3


def test_mistakes_are_told_by_their_setting_before_anything_is_written(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps({}))
    where = [f"data={tmp_path}", f"output={tmp_path}/out"]
    model = f"checkpoint={checkpoint}"
    for arguments, message in (
        ([model, "data=/nowhere", where[1]], "^data: /nowhere: no such folder"),
        ([*where, "checkpoint=/nowhere"], "^checkpoint: /nowhere/config.yaml: no such file, so that this is no checkp"),
        ([*where, f"checkpoint={tmp_path}"], f"no checkpoint; did you mean {checkpoint}"),
        ([*where, model, "source=coco"], r"source: \['coco'\] not among .* did you mean coco_instances"),
        ([*where, model, "options.val_shar=0.2"], "^options.val_shar: coco_instances has the options val_share"),
        (
            [*where, model, "train.optimizer.frozen=[backbon]"],
            "model.safetensors|frozen: nothing .* did you mean backb",
        ),
        (
            [model, where[0], f"output={tmp_path}"],
            f"^output: {tmp_path} holds .*, and no fine-tuning has written there",
        ),
        ([*where], "checkpoint: Field required"),
    ):
        with pytest.raises(ValueError, match=message):
            main(arguments)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_named(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "annotations.json").write_text("{}")
    SemanticSam(preset("debug")).save(tmp_path / "model")
    arguments = [f"data={tmp_path}", f"checkpoint={tmp_path}/model", f"output={tmp_path}/out"]
    with pytest.raises(ValueError, match=r"weight\(s\) do not fit this model"):
        main([*arguments, "train.model.overrides.hidden_dim=32"])
