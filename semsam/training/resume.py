"""Whether going on from a checkpoint would still be the same run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml

from semsam.config import ConfigError, config_values, parse_config, parse_yaml
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import CONFIG_FILE
from semsam.storage import Folder
from semsam.training.checkpoint import RunState
from semsam.training.recipe import ModelChoice, Recipe

# Settings, or whole sections, that decide where and how fast a run computes and not what.
MAY_CHANGE = (
    "data.root",
    "data.reader",
    "model.activation_checkpointing",
    "training.zero_stage",
    "training.accumulation",
    "training.checkpoint_every",
    "training.keep_last",
    "training.keep_every",
    "training.log_every",
    # What would have ended the run may be left out of it.
    "training.skip_samples",
    "training.max_skipped_steps",
)
MAX_NAMED = 8
_MISSING = "not set"


def checkpoint_config(recipe: Recipe, job: dict[str, Any], names: dict[str, Any]) -> str:
    """The text of a checkpoint's config.yaml.

    It has the resolved model, the recipe with the job's settings beside it, and the names that are taught.
    """
    sections = {"model": config_values(recipe.model.resolve()), "job": config_values(recipe) | job, "names": names}
    return yaml.safe_dump(sections, sort_keys=False)


def trained_names(checkpoint: Folder) -> dict[str, Any] | None:
    """What `TrainingData.names` gave when a checkpoint was made; None where that is not known."""
    data = checkpoint.read_if_there(CONFIG_FILE)
    sections = None if data is None else parse_yaml(data, f"{checkpoint.path}/{CONFIG_FILE}")
    names: dict[str, Any] | None = sections.get("names") if isinstance(sections, dict) else None
    return names


def resumed(recipe: Recipe, checkpoint: Folder) -> Recipe:
    """The recipe as a checkpoint's training goes on with it: without `model.init`, which has done its part.

    The text encoder, whose settings may have come from there, has those of the checkpoint where the recipe does not say
    otherwise.
    """
    theirs, choice = _sections(checkpoint)[1].text, recipe.model
    text = config_values(theirs) | choice.overrides.get("text", {})
    return dataclasses.replace(recipe, model=ModelChoice(choice.preset, choice.overrides | {"text": text}))


def check_same_run(folder: Folder, found: RunState, expected: RunState, recipe: Recipe) -> None:
    """Raise `ValueError`, naming the checkpoint and what differs, where going on would not be the same run."""
    if found.vocabulary_digest != expected.vocabulary_digest:
        raise ValueError(
            f"{folder.path}: this checkpoint was trained with another vocabulary "
            f"({found.vocabulary_digest[:12]}, the data has {expected.vocabulary_digest[:12]}); "
            "choose another run.name, or the data that it was trained on"
        )
    differing = _differences(_deciding_values(folder), _values(resumed(recipe, folder)))
    states = [{name: getattr(s, name) for name in ("manifest_digests", "schema_version")} for s in (found, expected)]
    differing += _differences(*states)
    if differing:
        named = differing[:MAX_NAMED]
        if len(differing) > MAX_NAMED:
            named.append(f"and {len(differing) - MAX_NAMED} more")
        lines = "\n  ".join(named)
        raise ValueError(f"{folder.path}: another training; choose another run.name, or its settings:\n  {lines}")


def _deciding_values(folder: Folder) -> dict[str, Any]:
    """The settings that a checkpoint was trained with, those that it does not know yet at their defaults."""
    recipe, model = _sections(folder)
    return config_values(recipe) | {"model": config_values(model)}


def _sections(folder: Folder) -> tuple[Recipe, ModelSettings]:
    """What a checkpoint's config.yaml holds; of the recipe without the model."""
    where = f"{folder.path}/{CONFIG_FILE}"
    sections = parse_yaml(folder.read(CONFIG_FILE), where)
    try:
        names = {field.name for field in dataclasses.fields(Recipe)} - {"model"}
        job = parse_config(Recipe, {k: v for k, v in sections["job"].items() if k in names}, where)
        return job, parse_config(ModelSettings, sections["model"], where)
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        raise ValueError(f"{where}: not the settings of a training that this version can go on with: {error}") from None


def _values(recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings with the model's own ones in place of the choice that stood for them."""
    return config_values(recipe) | {"model": config_values(recipe.model.resolve())}


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    there, here = dict(_leaves(theirs)), dict(_leaves(ours))
    return [
        f"{name} is {there.get(name, _MISSING)} there and {here.get(name, _MISSING)} here"
        for name in dict.fromkeys([*here, *there])
        if there.get(name, _MISSING) != here.get(name, _MISSING)
        and not any(name == free or name.startswith(f"{free}.") for free in MAY_CHANGE)
    ]


def _leaves(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings under dotted names; a list of numbers or words is one of them."""
    if isinstance(values, dict):
        named = list(values.items())
    elif isinstance(values, list) and any(isinstance(one, dict) for one in values):
        named = list(enumerate(values))
    else:
        yield name, values
        return
    for key, value in named:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))
