"""A folder of the Hub's layout gives back the model that was saved, and says what is wrong with any other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from semsam.model.model_folder import from_pretrained, save_pretrained
from semsam.model.presets import PRESETS
from semsam.model.semantic_sam import SemanticSam


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(SemanticSam.untrained("debug", 3), tmp_path / "model", "random weights")
    return tmp_path / "model"


def test_a_saved_model_comes_back(saved: Path) -> None:
    assert {one.name for one in saved.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    model, expected = from_pretrained(saved), SemanticSam.untrained("debug", 3)
    assert model.settings == expected.settings
    assert not model.training
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    with safetensors.safe_open(saved / "model.safetensors", "pt") as stored:
        assert stored.metadata() == {"format": "pt"}


def test_settings_that_are_no_preset_come_back(tmp_path: Path) -> None:
    settings = replace(PRESETS["debug"], further_clicks=True)
    save_pretrained(SemanticSam(settings), tmp_path)
    assert from_pretrained(tmp_path).settings == settings
    card = (tmp_path / "README.md").read_text()
    assert "several clicks, a box, the last mask" in card
    assert "none of the presets" in card


def test_the_card_says_what_the_model_is(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: semsam\n")
    count = sum(tensor.numel() for tensor in SemanticSam.untrained("debug").state_dict().values())
    for said in ("the preset `debug`", f"{count:,} numbers", "one click or one box", "random weights"):
        assert said in card


def test_nothing_is_overwritten(saved: Path) -> None:
    with pytest.raises(ValueError, match="model already holds 'config.json'"):
        save_pretrained(SemanticSam.untrained("debug"), saved)


def test_what_is_wrong_with_a_folder_is_said(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder of save_pretrained"):
        from_pretrained(tmp_path / "nowhere")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="config.json: model_type 'bert': not a model of this project"):
        from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: "):
        from_pretrained(saved)
    config["settings"]["num_levels"] = 3
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model.safetensors: .* do not fit this model"):
        from_pretrained(saved)
