"""Whatever infra/ tells somebody to type would be understood, and whatever file it names is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from infra.kuberay import render
from jobs.arguments import read_arguments
from jobs.cluster import ROOT
from tests.infra_files import IN_IMAGES, INFRA, commands, files, manifests, name_of, read_command

COMMANDS = commands()
# A file, from the repository's root; labels of Kubernetes look alike, but end in no suffix.
PATH = re.compile(r"(?<![\w/:.~<-])((?:infra|jobs|pipelines|semsam|tests)/[\w./-]*\w\.\w+)")


@pytest.mark.parametrize(
    ("place", "job", "arguments"), COMMANDS, ids=[f"{place}-{job}-{n}" for n, (place, job, _) in enumerate(COMMANDS)]
)
def test_a_job_understands_its_command_line(place: str, job: str, arguments: list[str]) -> None:
    assert read_command(job, arguments) is not None


def test_a_command_line_that_no_job_understands_would_be_found() -> None:
    with pytest.raises(ValueError, match="training.stepz"):
        read_command("train", [f"{IN_IMAGES}jobs/configs/seven_swin_tiny.yaml", "training.stepz=3"])


def test_each_job_of_the_cluster_has_a_manifest_and_its_command_line_is_looked_at() -> None:
    named = {one["metadata"]["name"].removeprefix("semsam-") for _, one in manifests("RayJob")}
    needed = {"prepare", "train", "evaluate", "follow", "generate", "compare", "report", "track", "export", "verify"}
    assert named == needed
    entrypoints = [shlex.split(one["spec"]["entrypoint"]) for _, one in manifests("RayJob")]
    found = [arguments for place, _, arguments in COMMANDS if place.startswith("infra/kuberay/jobs/")]
    assert sorted(words[3:] for words in entrypoints) == sorted(found)


def test_a_submitted_job_has_paths_that_mean_the_same_everywhere() -> None:
    for _, one in manifests("RayJob"):
        for word in shlex.split(one["spec"]["entrypoint"])[3:]:
            value = word.partition("=")[2] or word
            assert "/" not in value or value.startswith(("s3://", "http://", IN_IMAGES)), word


def test_the_script_of_the_manifests_understands_its_command_lines() -> None:
    texts = "\n".join(path.read_text() for path in files(".md"))
    lines = re.findall(r"python infra/kuberay/render\.py (\w[^`\n&|]*)", texts)  # Not those with --help.
    assert lines
    for line in lines:
        assert read_arguments(render.Manifests, shlex.split(line), None)


@pytest.mark.parametrize("path", files(".md", ".yaml", ".sh", ".txt", ".Dockerfile", ".py"), ids=name_of)
def test_every_file_that_is_named_exists(path: Path) -> None:
    for name in PATH.findall(path.read_text()):
        assert (ROOT / name).exists(), name


def test_every_file_of_infra_has_a_word_in_its_readme() -> None:
    readme = (INFRA / "README.md").read_text()
    for path in set(files()) - {INFRA / "README.md"}:
        parts = [path.name, *(f"{parent.name}/" for parent in path.relative_to(INFRA).parents if parent.name)]
        assert any(part in readme for part in parts), name_of(path)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_nothing_that_looks_like_a_secret_is_written(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY|aws_secret_access_key\s*=\s*\w", text)
    assert not re.search(r"(?i)\b(password|token|secret)\s*[:=]\s*['\"]?[0-9a-f]{16,}", text)
