"""The page that jobs.report makes of an evaluation: all of it, escaped, and of nothing else."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

from jobs.evaluate import MARKER
from jobs.evaluation_run import METRICS_FILE
from jobs.report import REPORT_FILE, ReportJob, main, run
from pipelines.evaluate.item_files import item_task, write_items, write_manifest
from semsam.data.schema import Record
from semsam.data.shards import Split
from semsam.evaluation.extremes import picture_name
from semsam.evaluation.items import ImageItem
from semsam.evaluation.questions import item_of
from tests.browser import CHROMIUM, Page, check_page, open_page
from tests.made_evaluation import ODD, VOCABULARIES, make_evaluation, write_answers

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text by the tag that it stands in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))


def report(evaluation: Path, **settings: int) -> str:
    return Path(run(replace(ReportJob(str(evaluation), resamples=20), **settings))).read_text()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def page(evaluation: Path) -> str:
    return report(evaluation)


def test_the_page_has_all_that_was_measured_and_says_what_was_not(evaluation: Path, page: str) -> None:
    for said in (
        *("mask", "panopticapi: mean over names", "COCO, masks of things", "blind 0.", "2027-01-15 08:00 UTC"),
        *("Best and worst images", "Numbers of each name", "objects365: things are annotated with boxes only"),
        *("sa1b: the dataset has no names", "objects365: nothing that it could be compared with is annotated"),
        *("train, 6 images", "resamples: 1000", "rows_per_task: 16"),
    ):
        assert said in page, said
    tags = Tags(page).tags
    assert sum(tag == "section" for tag, _ in tags) == len(VOCABULARIES)
    assert sum(tag == "img" for tag, _ in tags) >= 8
    assert ("table", {"class": "sorts"}) in tags
    assert report(evaluation) == page


def test_names_of_users_are_text(page: str) -> None:
    found = Tags(page)
    assert sum(tag == "script" for tag, _ in found.tags) == 1
    assert not any(tag in ("i", "b") for tag, _ in found.tags)
    assert any(text == ODD for _, text in found.texts)
    assert any(text == "/runs/<i>mine</i>" for _, text in found.texts)


def test_nothing_is_fetched(page: str) -> None:
    tags = Tags(page).tags
    for tag, attributes in tags:
        for name in ("src", "href", "data", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), (
                tag,
                attributes,
            )
    assert not re.search(r"url\(|@import|https?://", page)
    [policy] = [one["content"] for _, one in tags if one.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_intervals_of_names_come_on_request(evaluation: Path, page: str) -> None:
    cell = re.compile(r"<td>\d\.\d{3} <small>\d\.\d{3} to ")
    assert not cell.search(page)
    assert cell.search(report(evaluation, class_resamples=20))


def test_pictures_stand_where_they_belong_up_to_a_limit(tmp_path: Path) -> None:
    made = make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]})
    pictures = ["sa1b.png", picture_name("sa1b", "000002")]
    (made / "sa1b").mkdir()
    for name in pictures:
        (made / name).write_bytes(PNG)
    stored = orjson.loads((made / METRICS_FILE).read_bytes()) | {"pictures": pictures}
    (made / METRICS_FILE).write_bytes(orjson.dumps(stored))
    page = Tags(report(made))
    assert sum(attributes.get("alt") == "sa1b: sa1b.png" for _, attributes in page.tags) == 1
    [place] = {attributes["href"] for tag, attributes in page.tags if tag == "a" and "dataset-0-" in attributes["href"]}
    assert ("figure", {"id": place[1:]}) in page.tags
    assert any(re.match("000002: (best|worst) of", text) for tag, text in page.texts if tag == "figcaption")
    limited = report(made, max_picture_bytes=150)
    assert "Beyond the limit of 150 bytes for all pictures:" in limited
    assert "sa1b sa1b.png (108 bytes)" in limited
    assert 'alt="sa1b: 000002"' in limited


def test_an_evaluation_of_no_images_says_so(tmp_path: Path) -> None:
    page = report(make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]}, num_images=0))
    assert "Split train: no images were measured." in page
    assert "sa1b: no images were measured" in page
    assert "0.000" not in page


def test_without_blind_guesses_there_are_numbers_all_the_same(tmp_path: Path) -> None:
    made = make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]}, blind=False)
    page = report(made, resamples=0)
    assert "<small>blind" not in page
    assert " to " not in "".join(text for tag, text in Tags(page).texts if tag == "small")
    write_answers(Split(f"{tmp_path}/shards/sa1b/train"), made / "blind" / "sa1b", num_images=3)
    assert f"no blind baseline: the guesses in {made}/blind/sa1b are of other images" in report(made)


def test_what_is_neither_evaluation_nor_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^folder: {tmp_path}/none: no such folder"):
        main([f"{tmp_path}/none"])
    with pytest.raises(ValueError, match=f"^folder: {tmp_path} has neither evaluation.yaml, .* folder of a run$"):
        main([str(tmp_path)])
    made = make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]})
    with pytest.raises(ValueError, match=f"^folder: {tmp_path} has neither .* a run; there are evaluation in it$"):
        main([str(tmp_path)])
    (made / "items" / "sa1b" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=f"^{made}/items/sa1b/manifest.json: no such file: no evaluation has come to"):
        main([str(made)])
    for text, fault in (
        ("blind: {", ""),
        ("data: x", "not the settings of an evaluation: it has no blind, checkpoint"),
    ):
        (made / MARKER).write_text(text)
        with pytest.raises(ValueError, match=f"^{made}/{MARKER}: {fault}"):
            main([str(made)])


def test_answers_of_two_models_are_not_one_evaluation(tmp_path: Path) -> None:
    made = make_evaluation(tmp_path, {name: VOCABULARIES[name] for name in ("sa1b", "objects365")}, blind=False)
    write_answers(Split(f"{tmp_path}/shards/sa1b/train"), made / "items" / "sa1b", model="other")
    with pytest.raises(ValueError, match=f"^folder: {made}/items has answers of several models .*sa1b: other"):
        main([str(made)])


def test_files_of_others_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]})
    (tmp_path / "mine.html").write_text("<p>a holiday</p>")
    with pytest.raises(ValueError, match=f"^output: {tmp_path}/mine.html is no report; name another file"):
        main([str(made), f"output={tmp_path}/mine.html"])
    for _ in range(2):
        main([str(made), "resamples=0"])
    assert capsys.readouterr().out.endswith(f"report in {made}/{REPORT_FILE}\n")


def test_items_that_cannot_be_measured_are_named_with_their_folder(tmp_path: Path) -> None:
    made = make_evaluation(tmp_path, {"sa1b": VOCABULARIES["sa1b"]})
    split = Split(f"{tmp_path}/shards/sa1b/train")
    task = item_task(split, range(2), 2, f"{made}/items/sa1b", {"model": "m"})

    def unasked(record: Record) -> ImageItem:
        return item_of(record)

    write_manifest(task, split, [write_items(task, split, 0, unasked)[0]])
    with pytest.raises(ValueError, match=f"^{made}/items/sa1b: 000000: no prompts were put to this image"):
        main([str(made)])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_browser_shows_it_without_a_complaint_and_asks_nobody(evaluation: Path, tmp_path: Path) -> None:
    report(evaluation, class_resamples=20)
    asyncio.run(_look(evaluation / REPORT_FILE, tmp_path))


async def _look(file: Path, folder: Path) -> None:
    async with open_page(file.as_uri(), folder / "profile") as page:
        await check_page(page, file, folder)
        light = await page.run("getComputedStyle(document.body).backgroundColor")
        await page.prefer("dark")
        assert await page.run("getComputedStyle(document.body).backgroundColor") != light
        await _check_sorting(page)
        assert page.complaints == []
        # The page's own script alone may run, whatever else were in it.
        await page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'found = 1'}))")
        assert await page.run("typeof found") == "undefined"


async def _check_sorting(page: Page) -> None:
    await page.run("table = [...document.querySelectorAll('table.sorts')].find(one => one.rows.length > 2)")
    await page.run("table.closest('details').open = true")
    column = "[...table.tBodies[0].rows].map(row => row.cells[{0}].textContent)"
    last = await page.run("table.rows[0].cells.length - 1")
    for place, order in ((last, -1), (last, 1), (0, 1), (0, -1)):
        await page.run(f"table.rows[0].cells[{place}].querySelector('button').click()")
        shown = await page.run(column.format(place))
        values = [float(one.split()[0]) for one in shown] if place else shown
        assert values == sorted(values, reverse=order < 0)
        said = await page.run(f"table.rows[0].cells[{place}].getAttribute('aria-sort')")
        assert said == ("ascending" if order > 0 else "descending")
    assert await page.run("document.querySelectorAll('[aria-sort]').length") == 1
