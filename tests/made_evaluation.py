"""The output folder of an evaluation, made without a model or a cluster: blind guesses stand for its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from jobs.evaluate import MARKER, EvaluateJob
from jobs.evaluation_run import METRICS_FILE
from pipelines.evaluate.item_files import item_task, write_items, write_manifest
from semsam.config import dump_config
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Kind, Record
from semsam.data.shards import Split
from semsam.evaluation.baselines import BaselineFit, blind_item
from semsam.evaluation.items import ImageItem
from semsam.evaluation.questions import Questions
from tests.painted_shards import write_painted_shards

LEVELS = 3
ODD = '<script>alert("$x")</script> & co'  # A name that would be a script in a page, and half a formula in a figure.
VOCABULARIES = {
    "coco_panoptic": Vocabulary((ODD, "sky-other-merged"), (), (True, False)),
    "objects365": Vocabulary(("crate",), (), (True,)),
    "pascal_part": Vocabulary(("car",), ("wheel", ODD), (True,), ((0, 0), (0, 1))),
    "sa1b": Vocabulary(()),
}


def make_evaluation(
    folder: Path, vocabularies: Mapping[str, Vocabulary] = VOCABULARIES, num_images: int = 6, blind: bool = True
) -> Path:
    """`<folder>/evaluation`, of the first `num_images` of six painted images in each dataset."""
    shards = write_painted_shards(folder / "shards", 6, dict(vocabularies))
    output = folder / "evaluation"
    for dataset in vocabularies:
        split = Split(f"{shards}/{dataset}/train")
        write_answers(split, output / "items" / dataset, num_images)
        if blind:
            write_answers(split, output / "blind" / dataset, num_images)
    job = EvaluateJob(data=str(shards), output=str(output), checkpoint="/runs/<i>mine</i>", split="train")
    (output / MARKER).write_text(dump_config(job))
    numbers = {"time": 1.8e9, "metrics": {}, "intervals": {}, "pictures": []}
    (output / METRICS_FILE).write_bytes(orjson.dumps(numbers))
    return output


def write_answers(split: Split, folder: Path, num_images: int = 6, model: str = "0123456789abcdef") -> None:
    """Items of the first images."""
    fit = BaselineFit()
    for row in range(6):
        fit.merge(BaselineFit.of(split.record(row)))
    guesses, vocabulary = fit.compute(LEVELS), split.manifest.vocabulary
    task = item_task(split, range(num_images), 4, str(folder), {"model": model})

    def answer(record: Record) -> ImageItem:
        return _without_overlaps(blind_item(record, guesses, Questions(), vocabulary, LEVELS))

    write_manifest(task, split, [write_items(task, split, i, answer)[0] for i in range(len(task.rows))])


def _without_overlaps(item: ImageItem) -> ImageItem:
    """Painted segments lie over one another, which no panoptic truth does: the first alone stays one."""
    first, others = item.regions[:1], item.regions[1:]
    kinds = [Kind.INSTANCE if one.kind is Kind.PANOPTIC else one.kind for one in others]
    return replace(item, regions=(*first, *(one._replace(kind=kind) for one, kind in zip(others, kinds, strict=True))))
