"""Each line of the threat model names tests that there are; and what of it the whole code has to keep."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.cluster import ROOT
from tests.infra_files import INFRA

README = (INFRA / "README.md").read_text()
THREATS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in README.partition("| threat |")[2].splitlines()[2:]
    if line.startswith("|")
]
SOURCES = [path for folder in ("semsam", "pipelines", "jobs") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("threat", THREATS, ids=[threat[0][:60] for threat in THREATS])
def test_a_line_of_the_threat_model_names_tests_that_there_are(threat: list[str]) -> None:
    _, done, tests = threat
    named = re.findall(r"`(tests/[\w/.]+)::(\w+)`", tests)
    assert done
    assert named
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), name


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with what is called as it is written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_of_strangers_is_executed(path: Path) -> None:
    forbidden = {"eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    for name, call in calls(path):
        options = {one.arg: ast.unparse(one.value) for one in call.keywords}
        assert name not in forbidden
        assert name.partition(".")[0] not in {"pickle", "dill", "marshal", "shelve", "joblib"}
        assert options.get("shell") != "True"
        assert options.get("allow_pickle") != "True"
        if name == "torch.load":
            assert options["weights_only"] == "True"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_code_listens_on_loopback_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "0.0.0.0" not in node.value
    for name, call in calls(path):
        if name.endswith((".bind", "create_server")) and name != "deployment.bind":  # Which is Ray Serve's.
            assert "127.0.0.1" in ast.unparse(call)


def test_what_1000_steps_cost_is_what_its_arithmetic_gives() -> None:
    hours = dict(re.findall(r"^\| `(\w+\.yaml)` \|[^|]+\|[^|]+\| (\d+) h \|", README, re.MULTILINE))
    costs = re.findall(r"^\| `(\w+\.yaml)` \| (\d+) / 368.75 = ([\d.]+) \| ([\d.]+) \|", README, re.MULTILINE)
    prices = [float(one) for one in re.findall(r"(\d+\.\d\d) USD for", README)]
    assert {name for name, *_ in costs} == set(hours)
    for name, used, share, price in costs:
        assert used == hours[name]
        assert float(share) == pytest.approx(int(used) / 368.75, abs=5e-4)
        assert float(price) == pytest.approx(int(used) / 368.75 * sum(prices), abs=6e-3)
    assert (ROOT / "jobs" / "configs" / "seven_swin_tiny.yaml").read_text().count("steps: 368750") == 1
