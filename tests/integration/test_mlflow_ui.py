"""What a reviewer sees in MLflow's own pages: a training, its evaluations below it, their numbers, models, pictures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.evaluate import ITEMS
from jobs.track import Target, TrackJob
from jobs.track import run as track
from pipelines.evaluate.item_files import read_manifest
from pipelines.evaluate.measuring import measured
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.figures import figures_of
from semsam.evaluation.number_table import flat, headline_intervals
from semsam.storage import Folder
from semsam.tracking.tracker import TrackingSettings
from tests.browser import CHROMIUM, Page, open_page
from tests.evaluation_output import FILES, write_evaluation, write_log, write_training
from tests.made_evaluation import make_evaluation
from tests.mlflow_server import start_server

STEPS = (10, 20)
# Of MLflow's own pages, whatever they show.
OWN_COMPLAINTS = ("users/current", "ResizeObserver loop", "AG Grid")
TRAINING_PAGES = "workflowType=machine_learning"  # The other face of MLflow is for language models.


@dataclass(frozen=True)
class Tracked:
    """Where it is to be seen."""

    uri: str
    experiment: str
    training: str  # Ids of MLflow's runs.
    evaluations: tuple[str, ...]
    model: str

    def url(self, place: str, query: str = TRAINING_PAGES) -> str:
        return f"{self.uri}/#/experiments/{self.experiment}/{place}?{query}"


@pytest.fixture
def tracked(tmp_path: Path) -> Iterator[Tracked]:
    """A training, evaluations of two of its checkpoints and what others have published, on a server."""
    from mlflow import MlflowClient

    database = f"sqlite:///{tmp_path}/mlflow.db"
    server, uri = start_server(database, tmp_path)
    try:
        tracking, run = TrackingSettings(uri=uri), tmp_path / "seven"
        write_training(run, tracking)
        write_log(run)
        training = track(TrackJob(folder=str(run))).run_id
        numbers = measured_numbers(tmp_path)
        evaluations = tuple(evaluated(tmp_path / f"step-{step}", tracking, run, step, numbers) for step in STEPS)
        track(TrackJob(published=True, tracking=Target(uri=uri)))
        client = MlflowClient(database)
        experiment = client.get_run(training).info.experiment_id
        [model, _] = client.search_logged_models([experiment], order_by=[{"field_name": "creation_time"}])
        yield Tracked(uri, experiment, training, evaluations, model.model_id)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def measured_numbers(folder: Path) -> dict[str, DatasetNumbers]:
    made = make_evaluation(folder)
    places = {path.name: Folder(path) for path in (made / ITEMS).iterdir()}
    return {name: measured(place, read_manifest(place)) for name, place in sorted(places.items())}


def evaluated(
    output: Path, tracking: TrackingSettings, training: Path, step: int, numbers: dict[str, DatasetNumbers]
) -> str:
    figures = {
        f"figures/{name}/{kind}.png": picture
        for name, one in numbers.items()
        for kind, picture in figures_of(one).items()
    }
    values = {"metrics": flat(numbers), "intervals": headline_intervals(numbers, 20)}
    write_evaluation(output, tracking, training, step, **values, figures=[*FILES["figures"], *figures])
    for name, picture in figures.items():
        Folder(output).write(name, picture)
    return track(TrackJob(folder=str(output))).run_id


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")  # MLflow's own.
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_reviewer_finds_everything_in_mlflows_own_pages(tracked: Tracked, tmp_path: Path) -> None:
    asyncio.run(_look(tracked, tmp_path))


async def _look(tracked: Tracked, folder: Path) -> None:
    async with open_page(tracked.uri, folder / "profile") as page:
        await page.resize(1600, 1000)
        # Else a panel of MLflow's opens by itself over a quarter of the window.
        await page.run("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        await _runs(page, tracked, folder)
        await _training(page, tracked, folder)
        await _pictures(page, folder)
        await _evaluation(page, tracked, folder)
        await _models(page, tracked, folder)
        faults = [one for one in page.complaints if "'error'" in one or "exceptionDetails" in one]
        assert [one for one in faults if not any(own in one for own in OWN_COMPLAINTS)] == []
        assert {one for one in page.requests if not one.startswith((tracked.uri, "data:", "blob:"))} == set()


async def _runs(page: Page, tracked: Tracked, folder: Path) -> None:
    """The training first, its evaluations below it, published models last; few columns."""
    await page.go(tracked.url("runs"))
    link = "[...document.querySelectorAll('.ag-row a')].find(one => one.textContent === 'seven')"
    await page.wait_for(f"Boolean({link})")
    assert await _names(page) == ["seven", *await _published(page)]
    await page.run(f"{link}.closest('.ag-cell').querySelector('button').click()")
    await page.wait_for("document.body.innerText.includes('step 20: evaluation')")
    names = await _names(page)
    assert names[:3] == ["seven", "step 20: evaluation", "step 10: evaluation"]
    assert names[3] == "SAM-B (published)"
    await page.screenshot(folder / "runs.png")
    await page.run(f"({_button('Columns')}).click()")
    settings = _leaf(r"/^Parameters \(\d+\)$/")
    await page.wait_for(f"Boolean({settings})")
    count = int((await page.run(f"({settings}).textContent"))[12:-1])
    assert 5 <= count <= 10
    await page.run(f"({settings}).click()")
    columns = "document.querySelectorAll('.ag-header-cell[col-id^=params]').length"
    assert 0 < await page.wait_for(columns) <= count
    await page.screenshot(folder / "columns.png")


async def _training(page: Page, tracked: Tracked, folder: Path) -> None:
    """What ran, what was measured of it, and curves over its steps."""
    await page.go(tracked.url(f"runs/{tracked.training}"))
    await _see(page, "Training of seven on coco_panoptic", "step 20: evaluation", "jobs.train", "seven-step-20")
    await page.screenshot(folder / "training.png")
    await page.go(tracked.url(f"runs/{tracked.training}/model-metrics"))
    await _see(page, "one_click/coco_panoptic", "panoptic/coco_panoptic", "train/click", "pictures")
    await page.wait_for("document.querySelectorAll('.js-plotly-plot').length > 0")
    await page.screenshot(folder / "curves.png")


async def _pictures(page: Page, folder: Path) -> None:
    """A picture of each step, by its slider."""
    title = _leaf(r"/^pictures\/coco_panoptic$/")
    # Charts are drawn where they are seen.
    await page.run(f"({_leaf('/^pictures$/')}).scrollIntoView()")
    await page.wait_for(f"Boolean({title})")
    card = f"((one) => {{ while (!one.querySelector('[role=slider]')) one = one.parentElement; return one; }})({title})"
    drawn = f"[...{card}.querySelectorAll('img')].filter(one => one.naturalWidth > 0).map(one => one.src).join()"
    sources: list[str] = []
    for step in STEPS:
        await page.run(f"{card}.querySelector('[role=slider]').focus()")
        await page.press("ArrowRight")
        await page.wait_for(f"{card}.querySelector('[role=slider]').getAttribute('aria-valuenow') === '{step}'")
        sources.append(await page.wait_for(f"[{drawn}].find(one => one && !{json.dumps(sources)}.includes(one))"))
        await page.screenshot(folder / f"pictures-{step}.png")


async def _evaluation(page: Page, tracked: Tracked, folder: Path) -> None:
    """Its numbers, each with the model that it is of; what it was; where it belongs."""
    await page.go(tracked.url(f"runs/{tracked.evaluations[1]}"))
    await _see(
        page, "step 20: evaluation", "Parent run", "What ran.", "jobs.evaluate", "one_click/coco_panoptic/miou_max"
    )
    await _see(page, "seven-step-20", "coco_panoptic/val")
    await page.screenshot(folder / "evaluation.png")


async def _models(page: Page, tracked: Tracked, folder: Path) -> None:
    """A model for each checkpoint, with numbers that name their data."""
    await page.go(tracked.url("models"))
    await _see(page, "seven-step-10", "seven-step-20", "Ready")
    await page.screenshot(folder / "models.png")
    await page.go(tracked.url(f"models/{tracked.model}"))
    await _see(page, "Weights after step", "They stay where they are", "one_click/coco_panoptic/miou_max", "sha256")
    await page.screenshot(folder / "model.png")


async def _see(page: Page, *texts: str) -> None:
    for text in texts:
        await page.wait_for(f"document.body.innerText.includes({json.dumps(text)})")


async def _names(page: Page) -> Any:
    """The runs of the list from top to bottom."""
    rows = "[...document.querySelectorAll('.ag-row')].filter(row => row.querySelector('a[href*=\"/runs/\"]'))"
    in_order = f"{rows}.sort((a, b) => a.getAttribute('row-index') - b.getAttribute('row-index'))"
    return await page.run(f"{in_order}.map(row => row.querySelector('a[href*=\"/runs/\"]').textContent)")


async def _published(page: Page) -> list[str]:
    return [name for name in await _names(page) if name.endswith("(published)")]


def _leaf(pattern: str) -> str:
    """The element whose whole text fits."""
    return f"[...document.querySelectorAll('*')].find(one => !one.children.length && {pattern}.test(one.textContent))"


def _button(text: str) -> str:
    return f"[...document.querySelectorAll('button')].find(one => one.textContent.trim() === {json.dumps(text)})"
