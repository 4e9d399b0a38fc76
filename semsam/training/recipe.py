"""The settings of a training that mean the same wherever it runs."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from semsam.config import Count, Positive, PositiveShare, Seed, config_values, parse_config, parse_yaml, settings
from semsam.data.plan import PlanSettings
from semsam.data.reader import ReaderSettings
from semsam.data.training_sample import SampleSettings
from semsam.data.vocabularies import Withheld
from semsam.losses.criterion import CriterionSettings
from semsam.model.presets import ModelSettings, preset
from semsam.model.semantic_sam import CONFIG_FILE
from semsam.model.text_encoder import TextSettings
from semsam.setting_kinds import Like
from semsam.storage import Folder
from semsam.training.optimizer import OptimizerSettings
from semsam.training.step import Precision

_TEXT_WEIGHTS = "text_encoder.network"


@settings
class DataSettings:
    """What to train on: the datasets that the plan's stages name, as jobs.prepare left them under `root`."""

    root: str = "outputs/shards"
    split: str = "train"
    plan: PlanSettings = field(default_factory=PlanSettings)
    sample: SampleSettings = field(default_factory=SampleSettings)
    withheld: dict[str, Withheld] = field(default_factory=dict)  # By dataset: names that are never taught.
    reader: ReaderSettings = field(default_factory=ReaderSettings)

    def datasets(self) -> tuple[str, ...]:
        """The names of all datasets that any stage uses, sorted."""
        return tuple(sorted({name for stage in self.plan.stages for name in stage.weights}))


@settings
class ModelChoice:
    """A preset of the model, and what is to be different in it (nested, as in `ModelSettings`)."""

    preset: str = "swin_tiny"
    overrides: Annotated[dict[str, Any], Like(ModelSettings)] = field(default_factory=dict)
    # A folder with the weights to begin with: a checkpoint, or what `SemanticSam.save` wrote; local or s3://.  The text
    # encoder's settings (its tokenizer above all) come along with its weights: only others have to be said here.
    init: str | None = None
    # Names (`text_encoder`, say) below which weights begin at random and those in the folder are dropped; all others
    # must fit.
    anew: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.own_settings()
        if self.anew and self.init is None:
            raise ValueError("anew: without init everything begins anew")

    def own_settings(self) -> ModelSettings:
        """The preset with the overrides, whatever `init` says; `ValueError` for an unknown preset or setting."""
        return self._changed(self.overrides)

    def resolve(self) -> ModelSettings:
        """The model's settings, for which `config.yaml` in `init` is read.

        Raises `ValueError` for an `init` that cannot be read, and for an override of the text encoder that its weights
        there contradict; where the tokenizer's files lie now is none.
        """
        if self.init is None or is_below(_TEXT_WEIGHTS, self.anew):
            return self.own_settings()
        theirs, ours = _initial_text(self.init), self.own_settings().text
        overrides = self.overrides.get("text", {})
        for name in overrides:
            is_here, is_there = getattr(ours, name), getattr(theirs, name)
            if is_here != is_there and not (name == "tokenizer" and is_here and is_there):
                raise ValueError(
                    f"model.overrides.text.{name} is {is_here}, but {is_there} in {self.init}, whose text encoder is "
                    "taken over; leave it out, or begin that one anew (model.anew: [text_encoder])"
                )
        return self._changed(self.overrides | {"text": config_values(theirs) | overrides})

    def _changed(self, changes: dict[str, Any]) -> ModelSettings:
        return parse_config(ModelSettings, merged(config_values(preset(self.preset)), changes), where="overrides")


@settings
class TrainingSettings:
    """The run itself.  `zero_stage` None is plain PyTorch, without DeepSpeed.

    Weights, gradients and the optimizer's state are fp32 everywhere; `precision` bf16 computes the model under autocast
    and the losses in fp32, in the same way with and without DeepSpeed.
    """

    steps: Positive = 300_000
    global_batch: Positive = 64
    accumulation: Positive = 1
    zero_stage: Literal[0, 1, 2, 3] | None = 2
    precision: Precision = "bf16"
    # Whether the text encoder learns: null trains one that begins at random (byte_ngrams) and freezes CLIP's.
    text: Literal["frozen", "trained"] | None = None
    # Rounds of prompts: in every one but the first, each region is clicked where the last answer was wrong
    # (see semsam.training.next_clicks); model.overrides.further_clicks needs more than one.
    click_rounds: Positive = 1
    seed: Seed = 0
    ema_decay: Annotated[PositiveShare, Field(lt=1)] | None = (
        None  # Of an average of the weights, which is then what a checkpoint is used with.
    )
    checkpoint_every: Positive = 1000
    keep_last: Positive = 3
    keep_every: Positive | None = None  # Checkpoints at multiples of this many steps are made, and stay for ever.
    log_every: Positive = 20
    # Samples that are left out, each an empty one in its place, so that all others stay in theirs: by dataset and id
    # (coco_panoptic/000000123456), or by dataset and row where it cannot be read (coco_panoptic:7).
    skip_samples: tuple[str, ...] = ()
    # Steps of the run whose loss or gradient may be not finite; they update nothing, and one more ends the run.
    max_skipped_steps: Count = 0


@settings
class Recipe:
    """Everything that decides which numbers a training computes."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelChoice = field(default_factory=ModelChoice)
    criterion: CriterionSettings = field(default_factory=CriterionSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        levels, targets = self.model.own_settings().num_levels, self.data.sample.prompts.num_levels
        if levels != targets:
            raise ValueError(
                f"data.sample.prompts.num_levels is {targets}, but the model of section `model` has {levels} levels"
            )
        if self.model.own_settings().further_clicks and self.training.click_rounds == 1:
            raise ValueError(
                "training.click_rounds: 1 teaches no further clicks, which the model of section `model` has; "
                "take 2 or more, or model.overrides.further_clicks: false"
            )
        for key in self.training.skip_samples:
            named = re.fullmatch(r"([^/:]+)(/.+|:\d+)", key)
            if named is None:
                raise ValueError(f"training.skip_samples: {key!r} is neither <dataset>/<sample id> nor <dataset>:<row>")
            if named[1] not in self.data.datasets():
                raise ValueError(f"training.skip_samples: {key}: no stage of data.plan uses a dataset {named[1]!r}")

    def text_is_trained(self) -> bool:
        """Whether the text encoder's weights are to change."""
        if self.training.text is None:
            return self.model.resolve().text.kind == "byte_ngrams"
        return self.training.text == "trained"

    def in_parts(self) -> Recipe:
        """This recipe without what a job adds to it."""
        return Recipe(**{one.name: getattr(self, one.name) for one in dataclasses.fields(Recipe)})


def merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested values with some of them changed."""
    result = dict(values)
    for key, change in changes.items():
        below = result.get(key)
        result[key] = merged(below, change) if isinstance(below, dict) and isinstance(change, dict) else change
    return result


def is_below(weight: str, names: tuple[str, ...]) -> bool:
    """Whether a weight, or module, is one of those named or a part of one."""
    return any(weight == name or weight.startswith(f"{name}.") for name in names)


def _initial_text(init: str) -> TextSettings:
    """The settings of the text encoder in a folder to begin with."""
    where = f"{init}/{CONFIG_FILE}"
    sections = parse_yaml(Folder(init).read(CONFIG_FILE), f"model.init: {where}")
    try:
        text = sections["model"]["text"]
    except (KeyError, TypeError):
        raise ValueError(f"model.init: {where}: no section model.text") from None
    return parse_config(TextSettings, text, f"model.init: {where}, model.text")
