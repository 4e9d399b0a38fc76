"""Makes the pictures of the READMEs anew, from a quickstart: one click with the masks of its six levels, and MLflow.

    make pictures    # or: python -m tests.readme_pictures <folder of a quickstart> <MLflow's database> <folder>

The clicks are on three held-out images of different objects, of those that are answered best: they show what an answer
looks like.  How good answers are on average is in the quickstart's table, and the worst of them are in its report.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from semsam.data.images import decode_jpeg, encode_jpeg
from semsam.data.schema import Record
from semsam.data.shards import open_split
from semsam.evaluation.pictures import click_row, grid
from semsam.evaluation.questions import AskedRegions
from semsam.predictor import ImageSize, Predictor
from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_steps
from tests.browser import CHROMIUM, open_page
from tests.mlflow_server import start_server

DATASETS = ("pascal_part", "paco")  # Those with parts in objects.
OBJECTS = ["car", "dog", "chair", "boat", "bicycle", "bottle"]  # What somebody might type.
PARTS = ["wheel", "window", "leg", "seat", "head", "body", "ear"]
IMAGE_SIZE = ImageSize(short_side=128, max_long_side=192)  # As the quickstart trains.
LEAST_AREA = 250  # Pixels: smaller regions cannot be seen in a picture of this size.


@dataclass(frozen=True)
class Click:
    """A click on a part of something, and how well everything under it is answered."""

    score: float  # Mean over the regions under the click of the best level's IoU.
    record: Record
    xy: tuple[int, int]
    region: Bool[np.ndarray, "h w"]  # The smallest one.
    names: tuple[str, str]


def clicks(predictor: Predictor, data: str, dataset: str) -> Iterator[Click]:
    """A click on every part that can be seen in a split's images; the predictor is left with the last image."""
    split = open_split(data, dataset, "val")
    vocabulary = split.manifest.vocabulary
    for index in range(len(split)):
        record = split.record(index)
        predictor.set_image(decode_jpeg(record.image))
        asked = AskedRegions.of(record)
        for column, (x, y) in asked.innermost_clicks().items():
            region, mask = asked.regions[column], asked.atoms.mask(column)
            under = [
                asked.atoms.mask(int(other)) for other in np.flatnonzero(asked.under(np.array([[x, y]], np.int32))[0])
            ]
            if region.part_category is None or region.object_category is None or len(under) < 2:
                continue
            if mask.sum() < LEAST_AREA or mask.sum() > min(other.sum() for other in under):
                continue
            levels = predictor.predict(points_xy=[[x + 0.5, y + 0.5]]).masks[0]
            best = [max((level & other).sum() / (level | other).sum() for level in levels) for other in under]
            names = (vocabulary.objects[region.object_category], vocabulary.parts[region.part_category])
            yield Click(float(np.mean(best)), record, (x, y), mask, names)


def one_click(output: Path) -> bytes:
    """The picture of clicks as a JPEG, from the last checkpoint of a quickstart's training."""
    run = output / "runs" / "toy"
    checkpoint = run / f"checkpoint-{checkpoint_steps(Folder(run))[-1]}"
    predictor = Predictor.load(checkpoint, image_size=IMAGE_SIZE)
    predictor.set_vocabulary(OBJECTS, PARTS)
    found = [click for dataset in DATASETS for click in clicks(predictor, str(output / "shards"), dataset)]
    best = dict[str, Click]()
    for click in sorted(found, key=lambda one: -one.score):
        best.setdefault(click.names[0], click)
    rows = []
    for click in list(best.values())[:3]:
        image = decode_jpeg(click.record.image)
        predictor.set_image(image)
        rows.append(click_row(predictor, image, click.xy, click.region, ("a click", " ".join(click.names))))
    return encode_jpeg(grid(rows))


async def photograph(url: str, ready: str, file: Path) -> None:
    """Save what a page looks like once an expression in it is true."""
    with tempfile.TemporaryDirectory() as profile:
        async with open_page(url, Path(profile)) as page:
            await page.resize(2000, 620)
            await page.wait_for(ready)
            await asyncio.sleep(2)  # Its table is laid out after that.
            await page.screenshot(file)


def mlflow_runs(database: Path, folder: Path) -> None:
    """The list of runs in MLflow's own page."""
    from mlflow import MlflowClient

    [experiment] = [one for one in MlflowClient(f"sqlite:///{database}").search_experiments() if one.name != "Default"]
    with tempfile.TemporaryDirectory() as logs:
        server, uri = start_server(f"sqlite:///{database}", Path(logs))
        try:
            url = f"{uri}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
            shown = "document.body.innerText.includes('toy-untrained')"
            asyncio.run(photograph(url, shown, folder / "mlflow_runs.png"))
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


if __name__ == "__main__":
    output, database, folder = (Path(argument).absolute() for argument in sys.argv[1:])
    (folder / "one_click.jpg").write_bytes(one_click(output))
    if CHROMIUM is None:
        print("no Chromium here: mlflow_runs.png stays as it is")
    else:
        mlflow_runs(database, folder)
    print(f"drawn to {folder}")
