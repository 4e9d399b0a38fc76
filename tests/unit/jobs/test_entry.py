"""`semsam <job> ...` is `python -m jobs.<job> ...`."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.__main__ import jobs, overview
from tests.conftest import ROOT


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=folder, env=environment
    )


def test_every_job_has_a_line() -> None:
    known = jobs()
    runnable = {path.stem for path in (ROOT / "jobs").glob("*.py") if "def main(" in path.read_text()}
    assert known.keys() == runnable
    for name, about in known.items():
        assert len(about) > 15
        assert "`" not in about
        assert f"  {name:<12}{about}\n" in overview()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_without_a_job_the_jobs_are_listed(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = start(tmp_path, "-m", "jobs", *arguments)
    assert (ended.returncode, ended.stdout) == (0, overview() + "\n")


def test_an_unknown_job_is_said_in_a_line(tmp_path: Path) -> None:
    ended = start(tmp_path, "-m", "jobs", "trian")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: no job 'trian', one of ")
    assert ended.stderr.endswith("; did you mean train?\n")


def test_a_job_runs_as_by_its_module(tmp_path: Path) -> None:
    for arguments in (("--help",), ("folder=nowhere",)):
        one, other = (
            start(tmp_path, "-m", "jobs", "verify", *arguments),
            start(tmp_path, "-m", "jobs.verify", *arguments),
        )
        assert (one.returncode, one.stdout, one.stderr) == (other.returncode, other.stdout, other.stderr)


def test_the_command_is_installed_with_the_project() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"semsam": "jobs.__main__:entry"}
