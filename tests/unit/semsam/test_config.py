import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from semsam.config import (
    ConfigError,
    Gpus,
    Positive,
    Share,
    config_values,
    dump_config,
    load_config,
    parse_config,
    settings,
)
from semsam.setting_kinds import Like


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


@settings
class Texts:
    folder: str = "x"
    init: str | None = "x"
    name: Annotated[str, "any"] = "x"
    form: Literal["on", "off"] = "on"
    names: tuple[str, ...] = ()
    exclude: tuple[str | int, ...] | str = ()
    roots: dict[str, str] = field(default_factory=dict)
    inner: dict[str, Inner] = field(default_factory=dict)
    changes: Annotated[dict[str, Any], Like(Inner)] = field(default_factory=dict)


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


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("folder=/x/run #3", "folder", "/x/run #3"),
        ("folder=007", "folder", "007"),
        ("folder=1e3", "folder", "1e3"),
        ("folder=no", "folder", "no"),
        ("folder=~", "folder", "~"),
        ("folder={a}: [b", "folder", "{a}: [b"),
        ("folder='a' \"b\"", "folder", "'a' \"b\""),
        ("folder=2024-01-01", "folder", "2024-01-01"),
        ("folder=a=b", "folder", "a=b"),
        ("init=@x: y", "init", "@x: y"),
        ("init=null", "init", None),
        ("init=", "init", None),
        ("name=0x10", "name", "0x10"),
        ("form=off", "form", "off"),
        ("names=[007, on, 'a #b']", "names", ("007", "on", "a #b")),
        ("exclude=/x/ids #3", "exclude", "/x/ids #3"),
        ("exclude=[a", "exclude", "[a"),
        ("exclude=007", "exclude", "007"),
        ("exclude=[7, b]", "exclude", (7, "b")),
        ("roots.007=1_000", "roots", {"007": "1_000"}),
        ("roots={007: 1_000, on: off}", "roots", {"007": "1_000", "on": "off"}),
        ("inner.007.names=[1]", "inner", {"007": Inner(names=("1",))}),
        ("changes.names=[007]", "changes", {"names": ["007"]}),
    ],
)
def test_what_is_text_stays_as_it_was_written(override: str, name: str, expected: Any) -> None:
    assert getattr(load_config(Texts, None, [override]), name) == expected


def test_words_for_texts_in_a_file_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("folder: 007\ninit: null\nform: off\nnames: [1e3, no]\nroots: {1: 2}\ninner: {3: {names: [4]}}\n")
    assert load_config(Texts, str(path)) == Texts(
        "007", None, form="off", names=("1e3", "no"), roots={"1": "2"}, inner={"3": Inner(names=("4",))}
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["steps=1", "inner.rat=2"], "inner.rat: unknown setting; did you mean rate?"),
        (["steps=1", "innner.rate=2"], "innner: unknown setting; did you mean inner?"),
        (["steps=1", "by_name.x.naems=[]"], "by_name.x.naems: unknown setting; did you mean names?"),
        (["steps=1", "rate=2"], "rate: unknown setting; did you mean inner.rate?"),
        (["step=1"], "step: unknown setting; did you mean steps?"),
    ],
)
def test_an_unknown_setting_comes_with_the_likeliest_known_one(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expected)):
        load_config(Outer, None, overrides)


@pytest.mark.parametrize("text", [b"steps: 1\nname: caf\xe9\n", b"steps: [1,\n2\n"])
def test_what_is_no_yaml_is_told_in_one_line_that_begins_with_its_path(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, str(path))
    assert str(caught.value).startswith(f"{path}: not YAML: ")
    assert "\n" not in str(caught.value)


def test_gpus_are_shares_of_one_or_whole() -> None:
    @settings
    class Actors:
        gpus: Gpus = 0.0

    assert [Actors(value).gpus for value in (0, 0.25, 1, 4)] == [0, 0.25, 1, 4]
    for wrong in (1.5, -1, 1e-9, True):
        with pytest.raises(ConfigError, match="gpus"):
            Actors(gpus=wrong)
