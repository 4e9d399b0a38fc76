"""From one's own images to a fine-tuned, evaluated model: `python -m jobs.finetune [<config.yaml>] [a.b=value ...]`.

    python -m jobs.finetune data=/data/mugs checkpoint=outputs/quickstart/runs/toy/checkpoint-720 output=outputs/mugs

The data is a folder with a COCO json (or that json), or one with label PNGs, or what jobs.generate wrote: see
coco_instances, label_maps and generated_masks in pipelines/sources.  It becomes shards, of which the val split, or a
share of the images where there is none, is held out; the checkpoint is evaluated on that, trained on the rest, and
evaluated again; the two are compared image by image.  The same command goes on where a killed one stopped.
"""

from __future__ import annotations

import posixpath
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from jobs import compare, evaluate, train
from jobs.arguments import read_arguments
from jobs.chain import Chain, Chained, OwnFolder, run_chain
from jobs.checkpoints import model_settings
from jobs.cluster import main_exit, readable_folder, stable_path
from jobs.compare import CompareJob, Difference
from jobs.evaluate import EvaluateJob
from jobs.needs import Needs
from jobs.prepare import DatasetSettings, PrepareJob
from jobs.train import TrainJob
from pipelines.sources import check_datasets, coco_instances, generated_masks, label_maps
from semsam.config import Share, config_values, settings
from semsam.data.plan import Stage
from semsam.evaluation.number_table import table as number_table
from semsam.model.semantic_sam import SemanticSam
from semsam.storage import Folder
from semsam.training.initial_weights import freeze, start_from
from semsam.training.recipe import ModelChoice, merged

FOLDER = OwnFolder("finetune", "fine-tuning")
DEFAULT_CONFIG = Path(__file__).parent / "configs" / "finetune.yaml"


@settings
class FinetuneJob:
    """What to learn from, what to begin with, and the sections of the jobs, but for their data and folders.

    The model is the checkpoint's (`train.model.overrides` change it); what it is trained and evaluated on is `data`.
    """

    data: str  # A folder, or the json of a COCO dataset.
    checkpoint: str  # The weights to begin with, local or s3://.
    output: str = "outputs/finetune"  # On this machine.
    source: str | None = None  # Which of pipelines/sources reads the data; None: what it looks like.
    options: dict[str, Any] = field(default_factory=dict)  # Of that source, such as val_share.
    neighbours: tuple[str, ...] = ()  # Other folders that the images may lie in.
    max_rejected: Share = 0.05  # The share of the images, and of the regions, that may be unusable.
    train: TrainJob = field(default_factory=TrainJob)
    evaluate: EvaluateJob = field(default_factory=EvaluateJob)

    def __post_init__(self) -> None:
        if self.source is not None:
            check_datasets("source", [self.source])


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning gives back, beside its files."""

    chained: Chained
    weights: str  # Which weights were taken, dropped, begun anew and frozen, in words.
    differences: list[Difference]  # Of the evaluation after to that before.


def run(job: FinetuneJob) -> Finetuned:
    """Shards, the checkpoint's evaluation, training, evaluation, comparison.

    Raises `ValueError`, before anything is written, for data, a checkpoint or an output that cannot be used.
    """
    output = FOLDER.find(job.output)
    chain = _steps(job, output)
    weights = _look_at_weights(chain.train)
    print(weights, flush=True)
    chained = run_chain(chain, output, lambda: FOLDER.mark(output, "goes on with what it wrote"))
    pair = CompareJob(before=chain.before.output, after=chain.after.output, resamples=job.evaluate.resamples or 1000)
    result = Finetuned(chained, weights, compare.run(pair))
    (output / "summary.json").write_bytes(orjson.dumps(figures(result), option=orjson.OPT_INDENT_2))
    return result


def figures(result: Finetuned) -> dict[str, dict[str, float | bool]]:
    """Each number before and after, with the 95% interval of the difference."""
    return {
        one.name: {
            "before": one.before,
            "after": one.after,
            "difference_low": one.interval.low,
            "difference_high": one.interval.high,
            "is_sure": one.is_sure,
        }
        for one in result.differences
    }


def report(result: Finetuned) -> str:
    """What a fine-tuning ends with."""
    done = result.chained
    sure = sum(one.is_sure for one in result.differences)
    return "\n".join(
        [
            number_table(done.after.metrics, done.before.metrics, done.after.intervals),
            "\nthe same images before and after, in pairs:",
            compare.table([replace(one, moved=()) for one in result.differences]),
            f"\n{sure} of {len(result.differences)} numbers differ by more than their interval (*)",
            result.weights,
            f"loss {done.training.first_loss:.2f} -> {done.training.last_loss:.2f} in {done.training.steps} steps",
            f"pictures of held-out images: {done.after.pictures}/*.png",
            f"checkpoint: {done.training.checkpoint}",
        ]
    )


def _steps(job: FinetuneJob, output: Path) -> Chain:
    """The jobs, each with its folders below `output`."""
    shards, runs = str(output / "shards"), str(output / "runs")
    checkpoint = stable_path(job.checkpoint, "checkpoint")
    dataset, read = _dataset(job)
    model, data = model_settings(checkpoint), job.train.data
    prompts = replace(data.sample.prompts, num_levels=model.num_levels)
    values = config_values(model)
    del values["text"]  # Which a training takes from `init` itself.
    own = job.train.model
    evaluation = replace(
        job.evaluate, data=shards, datasets=(dataset,), blind=str(output / "blind"), checkpoint=checkpoint
    )
    return Chain(
        prepare=PrepareJob(datasets={dataset: read}, output=shards),
        before=replace(
            evaluation, output=str(output / "before"), run_name=f"{job.evaluate.run_name}-before", pictures=0
        ),
        train=replace(
            job.train,
            data=replace(
                data,
                root=shards,
                plan=replace(data.plan, stages=(Stage({dataset: 1.0}),)),
                sample=replace(data.sample, prompts=prompts),
            ),
            model=ModelChoice(own.preset, merged(values, own.overrides), checkpoint, own.anew),
            run=replace(job.train.run, storage=runs),
        ),
        after=replace(evaluation, output=str(output / "after")),
    )


def _dataset(job: FinetuneJob) -> tuple[str, DatasetSettings]:
    """Which source reads the data, and how.  Raises `ValueError` for what is neither a folder nor a json."""
    path, options = stable_path(job.data, "data"), dict(job.options)
    if path.lower().endswith(".json"):
        path, name = posixpath.split(path)
        if posixpath.basename(path) == "annotations":  # As COCO has it, beside the folders of images.
            path, name = posixpath.dirname(path), f"annotations/{name}"
        options = {"annotations": name} | options
    dataset = job.source or _looks_like(readable_folder(path, "data"))
    read = DatasetSettings(root=path, options=options, neighbours=job.neighbours, max_rejected=job.max_rejected)
    try:
        read.source(dataset)
    except ValueError as error:
        raise ValueError(f"options.{error}") from None
    return dataset, read


def _looks_like(folder: Folder) -> str:
    if folder.exists(generated_masks.MANIFEST) and folder.glob("masks-*"):
        return generated_masks.SOURCE.dataset
    if any(folder.exists(name) for name in label_maps.NAMES):
        return label_maps.SOURCE.dataset
    return coco_instances.SOURCE.dataset


def _look_at_weights(job: TrainJob) -> str:
    """What the training will begin with, in words.  Raises `ValueError` for weights that do not fit."""
    model = SemanticSam(job.model.resolve())
    freeze(model, job.optimizer.frozen)
    said = start_from(model, job.model)
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    return f"{said}; frozen: {f'{frozen} weights below ' + ', '.join(job.optimizer.frozen) if frozen else 'none'}"


def needs(job: FinetuneJob) -> Needs:
    """What the job would need."""
    told = job.train.tracking.uri if job.train.tracking.enabled else None
    read = [job.data, *job.neighbours, job.checkpoint]
    return Needs.of(read, [job.output], train.workers(job.train), evaluate.workers(job.evaluate), tracking=told)


def main(arguments: Sequence[str]) -> None:
    """Run the job that a command line asks for; its last lines are the results and where they lie."""
    started = time.monotonic()
    job = read_arguments(FinetuneJob, arguments, __doc__, str(DEFAULT_CONFIG), needs=needs)
    result = run(job)
    print(f"\n{report(result)}")
    print(f"took {time.monotonic() - started:.0f} s; everything is in {job.output}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
