"""The page that jobs.report makes of a training: its losses, and what its evaluations have found."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs.report import REPORT_FILE, ReportJob, main, run
from semsam.storage import Folder
from semsam.tracking.tracker import TrackingSettings
from semsam.training.followed import FOLLOWED_FILE, Followed
from semsam.training.train_log import LOG_FILE
from tests.browser import CHROMIUM, check_page, open_page
from tests.evaluation_output import METRICS, write_evaluation, write_log, write_training

METRIC = "one_click/miou_max"


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A run of 20 steps that nobody has evaluated."""
    folder = tmp_path / "seven"
    write_training(folder, TrackingSettings(uri="sqlite:////nowhere"))
    write_log(folder)
    return folder


def evaluate(training: Path, output: Path, step: int, **values: object) -> None:
    write_evaluation(output, TrackingSettings(uri="sqlite:////nowhere"), training, step, **values)
    (output / "evaluation.yaml").write_text("{}")


def report(training: Path, *evaluations: Path) -> str:
    return Path(run(ReportJob(str(training), tuple(map(str, evaluations))))).read_text()


def test_a_run_without_evaluations_has_its_losses_and_says_so(training: Path) -> None:
    page = report(training)
    for said in (
        *("Training: seven", "2027-01-15 08:00 to 2027-01-15 08:00 UTC", "coco_panoptic 160", "zero_stage: 2"),
        "No evaluation of a checkpoint of this run was found.",
    ):
        assert said in page, said
    assert page.count("<img ") == 1
    assert report(training) == page


@pytest.mark.parametrize("log", [b"", b'{"step":0,"loss":1.0,"time":1}\n'])
def test_a_run_that_has_just_begun_says_so(training: Path, log: bytes) -> None:
    (training / LOG_FILE).write_bytes(log)
    page = report(training)
    assert "The log has no steps yet." in page
    assert "<img " not in page


def test_evaluations_stand_side_by_side_and_the_best_is_marked(training: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation & more"
    for step, value in ((10, 0.25), (20, 0.125)):
        evaluate(training, output / f"checkpoint-{step}", step, metrics=METRICS | {"masks/paco/ap": value})
    (output / "checkpoint-20" / REPORT_FILE).write_text("its page")
    marked = Followed(METRIC).with_value(5, None).with_value(10, 0.75).with_value(15, 0.5).with_value(20, 0.625)
    marked.write(Folder(training))
    page = report(training, output)
    assert "step 10 \u2605 best" in page
    assert page.count("\u2605") == 1
    assert "By one_click/miou_max over all datasets the best is that of step 10." in page
    assert '<td class="best">0.750</td>' in page
    assert '<td class="best">0.250<small>0.200 to 0.300</small></td>' in page
    assert "<small>paco</small>" in page
    assert "baseline" not in page
    assert '<a href="../evaluation%20%26%20more/checkpoint-20/report.html">step 20</a>' in page
    assert "step 5: the checkpoint was deleted before it was evaluated" in page
    assert "step 15: its evaluation lies elsewhere; name the folder: evaluations=[...]" in page
    assert page.count("<img ") == 2


def test_evaluations_below_the_run_are_found_and_those_of_others_left_out(
    training: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(training, training / "evaluations" / "a", 10)
    evaluate(tmp_path / "other", training / "evaluations" / "b", 10)
    evaluate(training, training / "evaluations" / "c", 20)
    (training / "evaluations" / "c" / "metrics.json").unlink()
    page = report(training)
    assert "<small>a</small>" in page
    assert "<small>b</small>" not in page
    assert "Nobody has marked the best checkpoint" in page
    said = capsys.readouterr().out
    assert f"{training}/evaluations/b: not of a checkpoint of this run; left out" in said
    assert f"{training}/evaluations/c: not evaluated to its end; left out" in said
    report(training, training / "evaluations")
    assert page.count("step 10<small>") == 1  # Named twice, shown once.


def test_a_number_that_an_evaluation_lacks_is_a_dash_with_its_reason(training: Path, tmp_path: Path) -> None:
    evaluate(training, tmp_path / "e" / "1", 10)
    lacking = {name: None if "one_click" in name else value for name, value in METRICS.items()}
    reason = "it has <no> masks"
    evaluate(training, tmp_path / "e" / "2", 20, metrics=lacking, absent={"one_click/coco_panoptic": reason})
    evaluate(training, tmp_path / "e" / "3", 20, metrics={}, intervals={})
    page = report(training, tmp_path / "e")
    assert '<td title="it has &lt;no&gt; masks" class="absent">\u2013</td>' in page
    assert page.count("\u2013</td>") == 3


def test_a_run_all_of_whose_evaluations_are_empty_has_no_numbers(training: Path, tmp_path: Path) -> None:
    evaluate(training, tmp_path / "e", 10, metrics={}, intervals={})
    page = report(training, tmp_path / "e")
    assert "step 10" in page
    assert "<td" not in page


def test_what_is_damaged_or_missing_is_named(training: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^evaluations: {tmp_path}/none: no such folder"):
        main([str(training), f"evaluations=[{tmp_path}/none]"])
    evaluate(training, tmp_path / "e", 10)
    (tmp_path / "e" / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=f"^{tmp_path}/e/metrics.json: not JSON"):
        report(training, tmp_path / "e")
    (training / FOLLOWED_FILE).write_text("{}")
    with pytest.raises(ValueError, match=f"^{training}/{FOLLOWED_FILE}: damaged"):
        report(training)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_browser_shows_it_without_a_complaint_and_asks_nobody(training: Path, tmp_path: Path) -> None:
    for step in (10, 20):
        evaluate(training, tmp_path / "e" / str(step), step)
    report(training, tmp_path / "e")
    asyncio.run(_look(training / REPORT_FILE, tmp_path))


async def _look(file: Path, folder: Path) -> None:
    async with open_page(file.as_uri(), folder / "profile") as page:
        await check_page(page, file, folder)
        assert page.complaints == []
