"""A training begins with the weights that its recipe names, and says what it left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.training.engine import Worker
from semsam.training.folder import Folder
from semsam.training.initial_weights import start_from
from semsam.training.recipe import ModelChoice, Recipe
from semsam.training.same_run import checkpoint_config
from semsam.training.train import train

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="module")
def settings(make_recipe: MakeRecipe) -> ModelSettings:
    return make_recipe().model.resolve()


@pytest.fixture(scope="module")
def folder(settings: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    SemanticSam(settings).save(path)
    return str(path)


def changed(folder: str, model: SemanticSam) -> set[str]:
    """The names of the folder's weights that are not the model's."""
    own, saved = model.state_dict(), SemanticSam.load(folder).state_dict()
    return {name for name, weight in saved.items() if not torch.equal(weight, own[name])}


def test_all_weights_are_taken(folder: str, settings: ModelSettings) -> None:
    model = SemanticSam(settings)
    said = start_from(model, ModelChoice(init=folder))
    assert said == f"beginning with {len(model.state_dict())} weights from {folder}"
    assert changed(folder, model) == set()


def test_what_begins_anew_is_said_and_nothing_else_may_differ(folder: str, settings: ModelSettings) -> None:
    heads = [f"mask_decoder.heads.{kind}.projection" for kind in ("objects", "parts")]
    model = SemanticSam(dataclasses.replace(settings, text=dataclasses.replace(settings.text, dim=24)))
    with pytest.raises(ValueError, match=r"weight\(s\) do not fit") as refused:
        start_from(model, ModelChoice(init=folder))
    assert all(f"{head}.weight: [16, 32] instead of [24, 32]" in str(refused.value) for head in heads)
    said = start_from(model, ModelChoice(init=folder, anew=("text_encoder", *heads)))
    assert said.count("text_encoder.network.output.weight") == 2  # Dropped, and begun anew.
    begun = {name for name in model.state_dict() if name.startswith(("text_encoder.", *heads))}
    assert said.partition("begun anew: ")[2].split(", ") == [name for name in model.state_dict() if name in begun]
    assert changed(folder, model) == begun


def test_a_name_of_nothing_is_refused(folder: str, settings: ModelSettings) -> None:
    with pytest.raises(ValueError, match=r"model.anew: nothing is called text_encode, "):
        start_from(SemanticSam(settings), ModelChoice(init=folder, anew=("text_encode",)))
    with pytest.raises(ValueError, match=r"nowhere/model.safetensors: no such file"):
        start_from(SemanticSam(settings), ModelChoice(init="/nowhere"))
    with pytest.raises(ValueError, match="without init everything begins anew"):
        ModelChoice(anew=("backbone",))


def test_a_training_begins_with_them(
    make_recipe: MakeRecipe, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = make_recipe(steps=1, text="frozen")
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, init=folder))
    worker = Worker(0, 1, torch.device("cpu"))
    train(recipe, checkpoint_config(recipe, {}), Folder(str(tmp_path)), worker, "test", None)
    assert f"weights from {folder}" in capsys.readouterr().out
    learned = {name.split(".")[0] for name in changed(folder, SemanticSam.load(tmp_path / "checkpoint-1"))}
    assert "backbone" in learned
    assert "text_encoder" not in learned
