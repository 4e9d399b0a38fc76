"""A training begins with the weights that its recipe names, and says what it left out."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.training.attempt import RunFolder
from semsam.training.engine import Worker
from semsam.training.initial_weights import freeze, start_from
from semsam.training.optimizer import parameter_groups
from semsam.training.recipe import ModelChoice, Recipe
from semsam.training.train import make_step, train
from semsam.training.training_data import TrainingData

MakeRecipe = Callable[..., Recipe]
OTHER_SIZES = {"backbone": {"dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window": 4}, "hidden_dim": 32}


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
    assert said == f"beginning with {len(model.state_dict())} weights from {folder}; dropped: none; begun anew: none"
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
    train(recipe, {}, RunFolder(tmp_path), worker, "test", None)
    assert f"weights from {folder}" in capsys.readouterr().out
    learned = {name.split(".")[0] for name in changed(folder, SemanticSam.load(tmp_path / "checkpoint-1"))}
    assert "backbone" in learned
    assert "text_encoder" not in learned


@pytest.fixture(scope="module")
def named(folder: str, settings: ModelSettings, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The settings of a model whose text encoder has settings that no preset has."""
    path = tmp_path_factory.mktemp("named")
    text = dataclasses.replace(settings.text, num_heads=4, tokenizer="/clip", pretrained=True)
    values = yaml.safe_load((Path(folder) / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({"model": values["model"] | {"text": dataclasses.asdict(text)}}))
    return str(path)


@pytest.mark.parametrize("overrides", [{}, {"text": {"dim": 16, "pretrained": True}}])
def test_the_text_encoder_keeps_its_settings(named: str, overrides: dict[str, Any]) -> None:
    choice = ModelChoice("debug", OTHER_SIZES | overrides, init=named)
    text = choice.resolve().text
    assert (text.kind, text.dim, text.num_heads, text.tokenizer, text.pretrained) == (
        "byte_ngrams", 16, 4, "/clip", True,
    )  # fmt: skip
    assert choice.resolve().hidden_dim == 32


def test_a_tokenizer_may_have_moved(named: str) -> None:
    choice = ModelChoice("debug", {"text": {"tokenizer": "s3://models/clip"}}, init=named)
    assert choice.resolve().text.tokenizer == "s3://models/clip"
    assert choice.resolve().text.pretrained


@pytest.mark.parametrize("anew", ["text_encoder", "text_encoder.network"])
def test_a_text_encoder_that_begins_anew_has_the_recipe_s_settings(named: str, anew: str) -> None:
    choice = ModelChoice("debug", {"text": {"dim": 24}}, init=named, anew=("backbone", anew))
    assert choice.resolve() == choice.own_settings()
    assert choice.resolve().text.dim == 24
    assert ModelChoice("debug", init=named, anew=("text_encoder.network.output",)).resolve().text.dim == 16


@pytest.mark.parametrize(
    ("name", "value", "there"),
    [
        ("kind", "clip", "byte_ngrams"),
        ("dim", 24, "16"),
        ("num_heads", 8, "4"),
        ("pretrained", False, "True"),
        ("tokenizer", None, "/clip"),
    ],
)
def test_what_the_weights_contradict_is_refused(named: str, name: str, value: object, there: str) -> None:
    choice = ModelChoice("debug", {"text": {name: value}}, init=named)
    with pytest.raises(ValueError, match=rf"model\.overrides\.text\.{name} is {value}, but {there} in {named}"):
        choice.resolve()


def test_a_tokenizer_for_weights_that_know_none_is_refused(folder: str) -> None:
    choice = ModelChoice("debug", {"text": {"tokenizer": "/clip"}}, init=folder)
    with pytest.raises(ValueError, match=r"model\.overrides\.text\.tokenizer is /clip, but None in"):
        choice.resolve()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "config.yaml: no such file"),
        ("[", "config.yaml: not YAML"),
        ("job: {}", "config.yaml: no section model.text"),
        ("model: {hidden_dim: 32}", "config.yaml: no section model.text"),
        ("model: {text: {dimension: 3}}", r"config.yaml, model.text: .*\s+dimension: unknown setting"),
    ],
)
def test_a_folder_without_the_model_s_settings_is_named(tmp_path: Path, config: str | None, message: str) -> None:
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(ValueError, match=f"{tmp_path}/{message}"):
        ModelChoice("debug", init=str(tmp_path)).resolve()


@pytest.mark.parametrize("init", ["gone", "another", "left out"])
def test_going_on_needs_nothing_of_what_a_training_began_with(
    make_recipe: MakeRecipe, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture, init: str
) -> None:
    begun = Path(shutil.copytree(folder, tmp_path / "begun"))
    recipe, worker = make_recipe(steps=1), Worker(0, 1, torch.device("cpu"))
    sizes = {name: value for name, value in recipe.model.overrides.items() if name != "text"}
    recipe = dataclasses.replace(recipe, model=ModelChoice("debug", sizes, init=str(begun)))
    train(recipe, {}, RunFolder(tmp_path / "run"), worker, "x", None)
    assert "weights from" in capsys.readouterr().out
    if init == "gone":
        shutil.rmtree(begun)
    if init == "another":
        (begun / "config.yaml").write_text("model: {text: {dim: 24}}")
    if init == "left out":
        recipe = dataclasses.replace(recipe, model=ModelChoice("debug", sizes))
    train(recipe, {}, RunFolder(tmp_path / "run"), worker, "x", None)
    assert "going on after step 1" in capsys.readouterr().out
    assert SemanticSam.load(tmp_path / "run" / "checkpoint-1").settings == make_recipe().model.resolve()


def test_what_is_frozen_is_in_no_group_learns_nothing_and_stays_so_when_a_run_goes_on(
    make_recipe: MakeRecipe, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = make_recipe(steps=2, checkpoint_every=1, keep_last=2)
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, init=folder),
        optimizer=dataclasses.replace(recipe.optimizer, frozen=("backbone", "mask_decoder.heads")),
    )
    step = make_step(recipe, TrainingData.of(recipe).vocabulary)
    grouped = {id(one) for group in parameter_groups(step, recipe.optimizer) for one in group["params"]}
    names = {name.split(".")[0] for name, one in step.model.named_parameters() if id(one) in grouped}
    assert "backbone" not in names
    assert {"pixel_decoder", "mask_decoder"} <= names
    worker = Worker(0, 1, torch.device("cpu"))
    for _ in range(2):
        train(recipe, {}, RunFolder(tmp_path), worker, "test", None)
        done = SemanticSam.load(tmp_path / "checkpoint-2")
        learned = changed(folder, done)
        assert learned
        assert not any(name.startswith(("backbone.", "mask_decoder.heads.")) for name in learned)
        if (tmp_path / "whole").exists():
            assert changed(str(tmp_path / "whole"), done) == set()
        else:
            done.save(tmp_path / "whole")
            shutil.rmtree(tmp_path / "checkpoint-2")
    said = capsys.readouterr().out
    assert "; frozen: backbone, mask_decoder.heads" in said
    assert "going on after step 1" in said


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("backbon",), r"^optimizer.frozen: nothing in the model is called backbon; did you mean backbone\?"),
        (("",), r"^optimizer.frozen: nothing in the model is called"),
    ],
)
def test_a_name_to_freeze_that_is_none_is_refused(
    settings: ModelSettings, frozen: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(SemanticSam(settings), frozen)


def test_freezing_all_is_refused(settings: ModelSettings) -> None:
    model = SemanticSam(settings)
    names = tuple({name.partition(".")[0] for name, _ in model.named_parameters()})
    with pytest.raises(ValueError, match=r"^optimizer.frozen: below .* is all that could learn"):
        freeze(model, names)
