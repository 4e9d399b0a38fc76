"""Make one HTML file of an evaluation or a run: `python -m jobs.report <its folder> [output=<file>.html]`.

    python -m jobs.report outputs/quickstart/trained output=report.html
    python -m jobs.report outputs/runs/seven evaluations=[outputs/evaluation]

Of an evaluation numbers are computed from what it has kept of each image, which takes about as long as it took there.
Of a run the page has the losses, and the numbers that evaluations of its checkpoints have stored, with links to the
pages of these.  A page needs no network and no other file: tables, intervals, figures and pictures are in it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import orjson

from jobs.arguments import read_arguments
from jobs.cluster import main_exit, readable_folder, stable_path
from jobs.evaluate import ITEMS, MARKER
from jobs.evaluation_run import METRICS_FILE
from jobs.needs import Needs
from jobs.run_report import REPORT_FILE, run_report
from pipelines.evaluate.item_files import MANIFEST_NAME, ItemManifest, read_manifest
from pipelines.evaluate.measuring import measured
from semsam.config import Count, parse_yaml, settings
from semsam.data.images import encode_jpeg
from semsam.evaluation.dataset_numbers import DatasetNumbers
from semsam.evaluation.dataset_report import DatasetReport
from semsam.evaluation.figures import figures_of
from semsam.evaluation.report_frame import GENERATOR
from semsam.evaluation.report_page import report_page
from semsam.storage import Folder
from semsam.tracking.tracked_run import read_run_id
from semsam.training.train_log import LOG_FILE

_NEEDED = frozenset({"blind", "checkpoint", "data", "datasets", "preset", "run_name", "split"})
_BEGINNING = 500  # Bytes of a page in which it says what has made it.


@settings
class ReportJob:
    """What to show, and where."""

    folder: str  # The output folder of jobs.evaluate, or that of a run.
    evaluations: tuple[str, ...] = ()  # Of a run: where to look for evaluations of it beside its own folder.
    output: str | None = None  # A file; None: report.html in that folder.
    resamples: Count = 1000  # For the 95% intervals of the headline numbers, over images; 0: none.
    class_resamples: Count = 0  # For those of every name; 0: none.
    max_picture_bytes: Count = 50_000_000  # Of all pictures together; the page is a third larger.


def run(job: ReportJob) -> str:
    """Write the page; its path.

    Raises `ValueError` for what is neither a complete evaluation nor a run, and for a file of others.
    """
    folder = readable_folder(job.folder, "folder")
    path = stable_path(job.output, "output") if job.output is not None else f"{folder.path}/{REPORT_FILE}"
    is_evaluation = _is_evaluation(folder)
    where, _, name = path.rpartition("/")
    _check_output(Folder(where or "/"), name)
    if is_evaluation:
        page = _evaluation_page(job, folder)
    else:
        places = [folder, *(readable_folder(one, "evaluations") for one in job.evaluations)]
        page = run_report(folder, places, path)
    Folder(where or "/").write(name, page.encode())
    return path


def _is_evaluation(folder: Folder) -> bool:
    """Whether it is an evaluation's folder, or else a run's; `ValueError` for one that is neither."""
    if folder.exists(MARKER):
        return True
    if folder.exists(LOG_FILE) or folder.read_appended(LOG_FILE):  # On S3 it may lie in pieces.
        return False
    below = [one.rpartition("/")[0] for one in folder.glob(f"**/{MARKER}") + folder.glob(f"**/{LOG_FILE}")]
    known = f"; there are {', '.join(sorted(below)[:3])} in it" if below else ""
    raise ValueError(
        f"folder: {folder.path} has neither {MARKER}, as the output of jobs.evaluate, nor {LOG_FILE}, as the folder of "
        f"a run{known}"
    )


def _evaluation_page(job: ReportJob, folder: Folder) -> str:
    config = _config(folder)
    manifests = {one: read_manifest(folder / f"{ITEMS}/{one}") for one in _datasets(folder, config)}
    _check_one_model(folder, manifests)
    stored = orjson.loads(folder.read_if_there(METRICS_FILE) or b"{}")
    datasets = []
    for dataset, manifest in manifests.items():
        print(f"{dataset}: {sum(part.report.num_images for part in manifest.parts)} images", flush=True)
        datasets.append(_dataset_report(job, folder, config, manifest, stored.get("pictures", [])))
    text = folder.read(MARKER).decode()
    facts = _facts(job, folder, config, manifests, stored.get("time"))
    return report_page(f"Evaluation: {config['run_name']}", facts, datasets, text, job.max_picture_bytes)


def _config(folder: Folder) -> dict[str, Any]:
    """The settings of the evaluation in a folder."""
    where = f"{folder.path}/{MARKER}"
    config: dict[str, Any] = parse_yaml(folder.read(MARKER), where)
    # One of another version may have other settings: those that the page needs are all it asks for.
    if missing := _NEEDED - config.keys() if isinstance(config, dict) else _NEEDED:
        raise ValueError(f"{where}: not the settings of an evaluation: it has no {', '.join(sorted(missing))}")
    return config


def _datasets(folder: Folder, config: Mapping[str, Any]) -> list[str]:
    names = config["datasets"] or (folder / ITEMS).folders()
    if not names:
        raise ValueError(f"folder: {folder.path}/items: no items: no evaluation has come to its end here")
    return list(names)


def _check_one_model(folder: Folder, manifests: Mapping[str, ItemManifest]) -> None:
    """Raise `ValueError` where an evaluation of another model was begun here, and not ended."""
    models = {dataset: manifest.asked["model"] for dataset, manifest in manifests.items()}
    if len(set(models.values())) > 1:
        said = ", ".join(f"{dataset}: {model[:12]}" for dataset, model in models.items())
        raise ValueError(f"folder: {folder.path}/items has answers of several models ({said}); evaluate again")


def _dataset_report(
    job: ReportJob, folder: Folder, config: Mapping[str, Any], manifest: ItemManifest, pictures: Sequence[str]
) -> DatasetReport:
    dataset = manifest.dataset
    remarks = [f"left out: {one.sample_id}: {one.reason} ({one.detail})" for one in manifest.left_out]
    numbers = measured(folder / f"{ITEMS}/{dataset}", manifest)
    guesses = Folder(f"{config['blind'] or f'{folder.path}/blind'}/{dataset}")
    blind = None
    if guesses.exists(MANIFEST_NAME):
        blind = measured(guesses, read_manifest(guesses), is_blind=True)
        if blind.sample_ids != numbers.sample_ids:
            remarks.append(f"no blind baseline: the guesses in {guesses.path} are of other images")
            blind = None
    whole, of_images = _pictures(folder, dataset, numbers, pictures)
    report = DatasetReport.of(dataset, manifest.split, numbers, blind, job.resamples, job.class_resamples)
    return replace(
        report,
        remarks=tuple(remarks),
        figures=figures_of(numbers),
        pictures=whole,
        pictures_of_images=of_images,
    )


def _pictures(
    folder: Folder, dataset: str, numbers: DatasetNumbers, names: Sequence[str]
) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The evaluation's pictures of a dataset by name, and of single images (see `picture_name`) by their ids."""
    whole, of_images, known = {}, {}, set(numbers.sample_ids)
    for name in names:
        first, _, rest = name.removesuffix(".png").partition("/")
        if first == dataset and unquote(rest) in known:
            of_images[unquote(rest)] = _as_photo(folder.read(name))
        elif first in (dataset, f"{dataset}-found"):
            whole[name] = _as_photo(folder.read(name))
    return whole, of_images


def _as_photo(png: bytes) -> bytes:
    """The picture as a JPEG, a tenth of the bytes; as it is where it is none that can be read."""
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    return png if picture is None else encode_jpeg(np.ascontiguousarray(picture[:, :, ::-1]), quality=85)


def _facts(
    job: ReportJob, folder: Folder, config: Mapping[str, Any], manifests: Mapping[str, ItemManifest], time: float | None
) -> dict[str, str]:
    """What ran."""
    model = next(iter(manifests.values())).asked["model"]
    run_id = read_run_id(folder)
    return {
        "checkpoint": config["checkpoint"] or f"none: random weights of {config['preset']}",
        "weights": model[:16],
        "data": f"{config['data']}, {config['split']}",
        "evaluated": "unknown" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC",
        "intervals": f"95%, {job.resamples} resamples of the images" if job.resamples else "none",
        "folder": folder.path,
    } | ({} if run_id is None else {"MLflow run": run_id})


def _check_output(folder: Folder, name: str) -> None:
    """Raise `ValueError` where the page would replace what is no report."""
    if not folder.exists(name):
        return
    beginning = folder.open(name).read_at(_BEGINNING, 0)
    if f'content="{GENERATOR}"'.encode() not in beginning:
        raise ValueError(f"output: {folder.path}/{name} is no report; name another file")


def needs(job: ReportJob) -> Needs:
    """What the job would need."""
    return Needs.of([job.folder, *job.evaluations], [job.output or f"{job.folder}/report.html"])


def main(arguments: Sequence[str]) -> None:
    """Make the page that a command line asks for; its last line says where it is."""
    print(f"report in {run(read_arguments(ReportJob, arguments, __doc__, first=('folder',), needs=needs))}")


if __name__ == "__main__":
    main_exit(main, sys.argv[1:])
