"""A part is made once, by its sidecar; what ends its worker again and again is found, named and left out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.parts import (
    MAX_DEATHS,
    MAX_TRIES,
    Attempt,
    Part,
    PartFile,
    answer,
    check_all_there,
    check_is_ours,
    find_part,
    make_part,
    read_sidecar,
    remove_strangers,
    sidecar_name,
)
from semsam.data.sealed import seal
from semsam.storage import Folder


@dataclass(frozen=True)
class Report:
    items: tuple[str, ...]
    left_out: tuple[str, ...]


class Death(BaseException):
    """Stands for the end of a process: nothing after it runs."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


def make(
    folder: Folder, items: Sequence[str] = "abcd", deadly: str = "", group: int = 1, **options: bool
) -> tuple[Part[Report], bool]:
    """A part of the items; whoever works on a deadly one dies."""

    def work(attempt: Attempt) -> tuple[list[PartFile], Report]:
        if deadly == "start":
            raise Death
        left = [item for item in items if item not in attempt.left_out]
        step = 1 if attempt.are_suspect(left) else group
        for start in range(0, len(left), step):
            some = left[start : start + step]
            with attempt.working_on(*some):
                if any(item in deadly for item in some):
                    raise Death
        data = "".join(left).encode()
        folder.write("part-0.txt", data)
        return [PartFile.of("part-0.txt", data)], Report(tuple(left), tuple(sorted(attempt.left_out)))

    return make_part(folder, "part-0", "made-from", Report, work, **options)


def tries_until_made(folder: Folder, **work: object) -> tuple[int, Part[Report]]:
    for tries in range(1, 30):
        try:
            return tries, make(folder, **work)[0]  # type: ignore[arg-type]
        except Death:
            continue
    raise AssertionError("never made")


def test_a_part_is_made_once(folder: Folder) -> None:
    part, found = make(folder)
    assert not found
    assert part.report == Report(("a", "b", "c", "d"), ())
    assert folder.names() == ["part-0.json", "part-0.txt"]
    assert make(folder, deadly="abcd") == (part, True)
    assert make(folder, redo=True) == (part, False)


@pytest.mark.parametrize("damage", [b"abc", None])
def test_a_part_that_lacks_a_file_or_some_of_it_is_made_anew(folder: Folder, damage: bytes | None) -> None:
    part, _ = make(folder)
    folder.remove("part-0.txt") if damage is None else folder.write("part-0.txt", damage)
    assert make(folder) == (part, False)
    assert folder.read("part-0.txt") == b"abcd"


def test_other_bytes_of_the_same_number_are_seen_where_all_are_read(folder: Folder) -> None:
    part, _ = make(folder)
    folder.write("part-0.txt", b"abcx")
    assert make(folder) == (part, True)
    assert make(folder, verify=True) == (part, False)
    assert folder.read("part-0.txt") == b"abcd"


def test_a_sidecar_of_another_part_vouches_for_none(folder: Folder) -> None:
    make(folder)
    assert find_part(folder, "part-0", "something else", Report) is None
    folder.write(sidecar_name("part-1"), folder.read(sidecar_name("part-0")))
    assert find_part(folder, "part-1", "made-from", Report) is None


def test_a_flipped_bit_of_a_sidecar_is_refused_by_name(folder: Folder) -> None:
    make(folder)
    data = folder.read("part-0.json")
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :]
        if changed.split() != data.split():
            with pytest.raises(ValueError, match=r"^x/part-0\.json: "):
                read_sidecar(changed, "x/part-0.json", Report)
            folder.write("part-0.json", changed)
            assert find_part(folder, "part-0", "made-from", Report) is None


@pytest.mark.parametrize("name", ["../x.parquet", "/etc/passwd", "a/b", "", ".x"])
def test_a_sidecar_that_names_a_file_elsewhere_is_refused(folder: Folder, name: str) -> None:
    part, _ = make(folder)
    forged = dataclasses.replace(part, files=(PartFile(name, 4, ""),))
    with pytest.raises(ValueError, match="plain names"):
        read_sidecar(seal(dataclasses.asdict(forged)), "part-0.json", Report)


def test_an_item_that_ends_its_worker_is_left_out_and_named(folder: Folder) -> None:
    tries, part = tries_until_made(folder, deadly="c")
    assert part.report == Report(("a", "b", "d"), ("c",))
    assert tries == 1 + MAX_DEATHS + 1  # Once without knowing where, and then with notes.
    assert folder.names() == ["part-0.json", "part-0.txt"]


def test_any_number_of_deadly_items_is_found(folder: Folder) -> None:
    _, part = tries_until_made(folder, items="abcdefgh", deadly="begh")
    assert part.report == Report(("a", "c", "d", "f"), ("b", "e", "g", "h"))


def test_a_worker_that_dies_once_costs_nothing(folder: Folder) -> None:
    with pytest.raises(Death):
        make(folder, deadly="c")
    assert make(folder)[0].report == Report(("a", "b", "c", "d"), ())


def test_of_items_in_work_together_the_deadly_one_is_found(folder: Folder) -> None:
    _, part = tries_until_made(folder, items="abcdefgh", deadly="f", group=3)
    assert part.report == Report(tuple("abcdegh"), ("f",))


def test_a_worker_that_dies_of_no_item_is_not_tried_for_ever(folder: Folder) -> None:
    for _ in range(MAX_TRIES):
        with pytest.raises(Death):
            make(folder, deadly="start")
    with pytest.raises(RuntimeError, match=rf"{folder.path}/part-0: its worker died {MAX_TRIES} times"):
        make(folder, deadly="start")
    assert make(folder)[0].report.left_out == ()


def test_a_damaged_note_counts_as_a_try(folder: Folder) -> None:
    folder.write("part-0.attempt", b"{")
    assert make(folder)[0].report.left_out == ()


def test_a_vanished_file_is_noticed_before_anything_vouches_for_it(folder: Folder) -> None:
    part, _ = make(folder)
    check_all_there(folder, [part])
    folder.write("part-0.txt", b"abc")
    with pytest.raises(ValueError, match=r"part-0\.txt: has 3 bytes, not 4 since it was made; run the same command"):
        check_all_there(folder, [part])
    folder.remove("part-0.txt")
    with pytest.raises(ValueError, match=r"part-0\.txt: vanished since it was made"):
        check_all_there(folder, [part])


def test_files_of_an_earlier_run_are_removed_and_nothing_else(folder: Folder) -> None:
    part, _ = make(folder)
    for name in ("part-1.txt", "part-1.json", "part-7.attempt", "mine.txt"):
        folder.write(name, b"x")
    remove_strangers(folder, re.compile(r"part-\d+\.(txt|json|attempt)"), [part])
    assert folder.names() == ["mine.txt", "part-0.json", "part-0.txt"]


@pytest.mark.parametrize("name", ["part-1.txt", "part-1.json", "part-2.attempt", "manifest.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b'{"name": "an app"}'])
def test_files_of_others_with_names_like_ours_are_refused_by_name(folder: Folder, name: str, data: bytes) -> None:
    ours, vouching = re.compile(r"part-\d+\.(txt|json|attempt)"), re.compile(r"part-\d+\.(json|attempt)|manifest.json")
    folder.write("mine.txt", b"x")
    check_is_ours(folder, ours, vouching)
    folder.write(name, data)
    with pytest.raises(ValueError, match=f"^output: {folder.path} holds '{name}', which this job has not written"):
        check_is_ours(folder, ours, vouching)
    make(folder)
    check_is_ours(folder, ours, vouching)


def test_a_part_that_was_only_begun_is_known_as_ours(folder: Folder) -> None:
    with pytest.raises(Death):
        make(folder, deadly="a")
    folder.write("part-0.txt", b"half")
    check_is_ours(folder, re.compile(r"part-\d+\.(txt|json|attempt)"), re.compile(r"part-\d+\.(json|attempt)"))


def test_what_a_task_raises_comes_back_in_its_answer() -> None:
    def fails() -> tuple[Part[Report], bool]:
        raise KeyError("height")

    row = answer("ade20k/val, part-0", {"position": 3}, fails).to_pylist()[0]
    assert (row["position"], row["error"]) == (3, "ade20k/val, part-0: KeyError: 'height'")
    assert "fails()" in row["trace"] or "raise KeyError" in row["trace"]
