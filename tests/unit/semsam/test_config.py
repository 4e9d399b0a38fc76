import re
from dataclasses import field
from pathlib import Path

import pytest

from semsam.config import ConfigError, Positive, Share, config_values, dump_config, load_config, parse_config, settings


@settings
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate must not be negative")


@settings
class Outer:
    steps: Positive
    inner: Inner = field(default_factory=Inner)
    by_name: dict[str, Inner] = field(default_factory=dict)
    ids: tuple[int | str, ...] | None = None
    shares: dict[str, Share] = field(default_factory=dict)


def test_yaml_and_overrides_give_the_resolved_settings(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("steps: 3\nby_name: {x: {rate: 2}}\n")
    config = load_config(Outer, str(path), ["inner.rate=1e-4", "inner.names=[a, b]", "steps=4"])
    assert config == Outer(4, Inner(1e-4, ("a", "b")), {"x": Inner(2.0)})


def test_dumped_settings_read_back_equal(tmp_path: Path) -> None:
    config = Outer(4, Inner(1e-4, ("a", "b")), {"x": Inner(2.0)})
    path = tmp_path / "b.yaml"
    path.write_text(dump_config(config))
    assert load_config(Outer, str(path)) == config
    assert parse_config(Outer, config_values(config), "values") == config


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps=1", "inner.speed=2"], "inner.speed: unknown setting"),
        (["steps=1", "by_name.x.rat=2"], "by_name.x.rat: unknown setting"),
        (["steps=one"], "steps: "),
        ([], "steps: "),
        (["steps=1", "inner.rate=-1"], "inner: rate must not be negative"),
        (["steps=1", "steps.more=2"], "steps.more: steps is not a section"),
        (["steps=["], "override 'steps=[': not YAML"),
        (["steps={a: 1, a: 2}"], "a is given twice"),
        (["steps=yes"], "steps: expected a number, not True"),
        (["steps=1", "inner.rate=.nan"], "inner.rate: must be a finite number, not nan"),
        (["steps=1", "inner.rate=1e400"], "inner.rate: must be a finite number"),
        (["steps=1", "by_name.x.rate=.inf"], "by_name.x.rate: must be a finite number, not inf"),
        (["steps=1", "shares.x=-.inf"], "shares.x: must be a finite number, not -inf"),
        (["steps=1", "shares.x=2"], "shares.x: must be less than or equal to 1, not 2"),
        (["steps=1", "ids=[x, [3]]"], "\n  ids.1: must be a valid"),
        (["steps=0"], "steps: must be greater than or equal to 1, not 0"),
        (["steps"], "an override is section.field=value"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(Outer, None, overrides)


def test_a_group_of_settings_made_in_python_is_checked_too() -> None:
    with pytest.raises(ValueError, match="steps"):
        Outer(steps=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"- 1\n", "expected sections, found list"),
        (b"steps\n", "expected sections, found str"),
        (b"a: [\n", "not YAML"),
        (b"\tsteps: 1\n", "not YAML"),
        (b"a: 1\n b: 2\n", "not YAML"),
        (b"steps: 1\ninner: {rate: 1}\nsteps: 2\n", "not YAML: steps is given twice"),
        (b"steps: 1\ninner: {rate: 1, 'rate': 2}\n", "not YAML: rate is given twice"),
        (b"a: &x [1]\nb: [*x, *x]\n", "not YAML: alias *x"),
        (b"steps: \xff\n", "not YAML"),
        (b"steps: \x00\n", "not YAML"),
        ("steps: 1".encode("utf-16")[:-1], "not YAML"),
        (b"a: 2024-13-45\n", "not YAML"),
        (b"a: !!bool perhaps\n", "not YAML"),
        (b"a: !!timestamp x\n", "not YAML"),
        (b"a: !!python/object:os.system x\n", "not YAML"),
        (b"a: " + b"9" * 5000 + b"\n", "not YAML"),
        (b"? [a]\n: 1\n", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"steps: 1\n---\nsteps: 2\n", "not YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=f"c.yaml: {re.escape(expected)}"):
        load_config(Outer, str(path))


def test_a_folder_in_a_file_s_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: Is a directory"):
        load_config(Outer, str(tmp_path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        load_config(Outer, str(tmp_path / "none.yaml"))
