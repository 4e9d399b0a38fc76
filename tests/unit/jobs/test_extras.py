"""Without the libraries of an extra the jobs that need them end at once, in one line that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIBRARIES = ("hotcoco", "matplotlib", "vernier")
JOBS = ("evaluate", "compare", "report", "quickstart")
# Read by Python before anything else: as if the libraries were not installed.
HIDING = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def start(job: str, folder: Path, hidden: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(HIDING.format(hidden=hidden))
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
    )


@pytest.mark.parametrize("job", JOBS)
def test_a_job_without_its_extra_ends_in_one_line(job: str, tmp_path: Path) -> None:
    for arguments in ((), ("--help",), ("follow=true", "checkpoint=/runs/mine")):
        ended = start(job, tmp_path, LIBRARIES, *arguments)
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert ended.stderr == (
            f"error: jobs.{job} needs hotcoco, matplotlib, vernier of the extra [evaluation], which is not installed "
            "here; in this project's folder: pip install -c infra/constraints.txt -e '.[evaluation]'\n"
        )
    assert {one.name for one in tmp_path.iterdir()} <= {"sitecustomize.py", "__pycache__"}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_library_that_is_missing_is_named(library: str, tmp_path: Path) -> None:
    ended = start("evaluate", tmp_path, (library,), "--help")
    assert ended.stderr.startswith(f"error: jobs.evaluate needs {library} of the extra [evaluation], ")


@pytest.mark.slow
@pytest.mark.parametrize("job", ["train", "track", "prepare", "generate"])
def test_other_jobs_do_not_need_it(job: str, tmp_path: Path) -> None:
    ended = start(job, tmp_path, LIBRARIES, "--help")
    assert ended.returncode == 0, ended.stderr
    assert "Settings, each with its default" in ended.stdout
