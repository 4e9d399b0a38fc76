from dataclasses import field
from pathlib import Path

import pytest

from semsam.config import ConfigError, config_values, dump_config, load_config, parse_config, settings


@settings
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError("rate must not be negative")


@settings
class Outer:
    steps: int
    inner: Inner = field(default_factory=Inner)
    by_name: dict[str, Inner] = field(default_factory=dict)


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
        (["steps"], "an override is section.field=value"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(")):
        load_config(Outer, None, overrides)


@pytest.mark.parametrize(("text", "expected"), [("- 1\n", "expected sections"), ("a: [\n", "not YAML")])
def test_a_broken_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"c.yaml: {expected}"):
        load_config(Outer, str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: No such file"):
        load_config(Outer, str(tmp_path / "none.yaml"))
