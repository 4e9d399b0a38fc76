"""What the documents tell somebody to type would be understood, what they name is there, what they quote is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.infra_files import commands_in, read_command
from tests.links import ROOT, documents, missing

DOCUMENTS = [path for path in documents() if path.name != "CHANGELOG.md"]
COMMANDS = [(str(path.relative_to(ROOT)), job, arguments) for path in DOCUMENTS for job, arguments in commands_in(path)]


@pytest.mark.parametrize(
    ("place", "job", "arguments"), COMMANDS, ids=[f"{place}-{job}-{n}" for n, (place, job, _) in enumerate(COMMANDS)]
)
def test_a_job_understands_its_command_line(place: str, job: str, arguments: list[str]) -> None:
    assert read_command(job, arguments) is not None


def test_the_readme_has_an_example_for_each_job() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("[a-z]*.py") if "if __name__" in path.read_text()}
    shown = {job for place, job, _ in COMMANDS if place == "README.md"}
    assert jobs - shown == {"quickstart"}  # `make quickstart` is the front door itself.


def test_what_is_named_and_not_there_is_found(tmp_path: Path) -> None:
    (tmp_path / "here.md").write_text("# A heading\n")
    text = "[a](here.md) [b](here.md#a-heading) ![c](gone.png) [d](here.md#gone) [e](https://x.y) `semsam/gone.py`"
    assert list(missing(text, tmp_path / "one.md")) == ["gone.png", "here.md#gone", "semsam/gone.py"]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path: Path) -> None:
    assert list(missing(path.read_text(), path)) == []


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    table = (ROOT / "jobs" / "README.md").read_text().partition("## When it says no")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    code = " ".join(
        path.read_text() for room in ("jobs", "semsam", "pipelines") for path in (ROOT / room).rglob("*.py")
    )
    said = re.sub(r'"\s*f?"', "", code)  # Strings that go on in another line.
    assert len(quoted) > 10
    assert [message for message in quoted if message not in said] == []


def test_every_target_that_is_named_is_one_of_make() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        spans = re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", path.read_text(), re.MULTILINE)
        assert {one or other for one, other in spans} <= targets, path
