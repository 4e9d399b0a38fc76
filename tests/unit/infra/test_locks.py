"""The two lists of exact versions agree, have all that the project asks for, and are what machines install."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from jobs.cluster import ROOT
from tests.infra_files import INFRA, files, name_of

CPU, CUDA = INFRA / "constraints.txt", INFRA / "constraints-cuda.txt"
OF_CUDA = re.compile(r"cuda-.+|nvidia-(?!ml-py$).+")  # nvidia-ml-py asks the driver, and needs nothing of CUDA.


def pins(path: Path) -> dict[str, str]:
    """Versions by name, with those of lists that are taken in by `-c`.  `ValueError` for any other line."""
    found: dict[str, str] = {}
    for line in path.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("-c "):
            new = pins(path.parent / line.removeprefix("-c "))
        elif match := re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line):
            new = {canonicalize_name(match[1]): match[2]}
        else:
            raise ValueError(f"{path.name}: {line!r} is no exact version")
        if twice := new.keys() & found.keys():
            raise ValueError(f"{path.name}: {sorted(twice)} twice")
        found |= new
    return found


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(one) for names in lists for one in names]


def test_the_lists_differ_in_what_torch_for_cuda_brings_and_in_nothing_else() -> None:
    cpu, cuda = pins(CPU), pins(CUDA)
    more = cuda.keys() - cpu.keys()
    assert {name: cuda[name] for name in cpu} == cpu
    assert more
    assert all(OF_CUDA.fullmatch(name) for name in more)
    assert not any(OF_CUDA.fullmatch(name) for name in cpu)
    assert {"nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= more


@pytest.mark.parametrize("path", [CPU, CUDA], ids=lambda path: path.name)
@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_direct_dependency_has_an_exact_version_that_it_allows(path: Path, requirement: Requirement) -> None:
    version = pins(path)[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)
    assert SpecifierSet(f"=={version}").contains(version)  # No wildcard.


def test_torch_has_no_local_version_so_that_each_machine_takes_its_own_build() -> None:
    assert "+" not in pins(CPU)["torch"]


def test_all_machines_of_a_cluster_have_one_python() -> None:
    said = [
        version
        for path in files(".Dockerfile", "setup.sh")
        for version in re.findall(r"^(?:ARG PYTHON|python)=(\S+)", path.read_text(), re.MULTILINE)
    ]
    assert len(said) == 4
    assert len(set(said)) == 1
    assert re.fullmatch(r"3\.\d+\.\d+", said[0])


@pytest.mark.parametrize("path", files(".Dockerfile"), ids=name_of)
def test_an_image_is_built_from_a_lock_file_and_runs_as_nobody_in_particular(path: Path) -> None:
    lines = path.read_text().replace("\\\n", " ").splitlines()
    copied = {source for line in lines if line.startswith("COPY") for source in line.removeprefix("COPY ").split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    lock = "infra/constraints-cuda.txt" if path.name == "gpu.Dockerfile" else "infra/constraints.txt"
    assert {lock, CPU.relative_to(ROOT).as_posix()} <= copied
    installs = [command for line in lines for command in re.findall(r"pip install[^&;]*", line)]
    assert installs
    assert all(f"-c {lock}" in command or f"-c {Path(lock).name}" in command for command in installs)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users[-1] == "1000"
    assert not any(line.startswith(("ADD", "VOLUME")) or "curl" in line for line in lines)


def test_a_machine_of_ray_up_installs_the_same_extras_as_the_images() -> None:
    extras = {
        match
        for path in files(".Dockerfile", "setup.sh")
        for match in re.findall(r"\[cluster[^\]]*\]", path.read_text())
    }
    assert len(extras) == 1
