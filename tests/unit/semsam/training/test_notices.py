"""When workers look for notices, and what they make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from semsam.training import notices as module
from semsam.training.attempt import RunFolder
from semsam.training.notices import Notices, Wish


class Clock:
    """What the time is, as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def test_it_is_asked_now_and_then_and_only_where_all_agreed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(monkeypatch), iter(["worker 1 goes", ""])
    notices = Notices(lambda: next(said), every=5.0)
    assert notices.look() == ""  # Nobody has agreed on anything yet.
    assert notices.wish() is Wish.ASK
    assert notices.wish() is Wish.NOTHING
    notices.agree(Wish.ASK)
    assert notices.look() == "worker 1 goes"
    notices.agree(Wish.NOTHING)
    assert notices.look() == ""
    clock.now += 5
    assert notices.wish() is Wish.ASK
    notices.agree(Wish.ASK)
    assert notices.look() == ""


def test_without_anybody_who_gives_notice_nobody_is_asked() -> None:
    assert Notices().wish() is Wish.NOTHING


def test_a_checkpoint_that_is_asked_for_is_wanted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, run = Clock(monkeypatch), RunFolder(tmp_path / "run", "mine")
    notices = Notices(lambda: "", run.is_asked_to_save)
    assert notices.wish() is Wish.ASK
    run.ask_to_save()
    RunFolder(tmp_path / "run", "another").ask_to_save()
    assert notices.wish() is Wish.NOTHING  # Not yet.
    clock.now += module.LOOK_EVERY
    assert notices.wish() is Wish.SAVE
    notices.agree(Wish.SAVE)
    assert notices.look() == "a checkpoint is wanted"
    clock.now += module.LOOK_EVERY
    assert notices.wish() is Wish.ASK


def test_a_folder_in_nobodys_hands_is_asked_for_nothing(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).is_asked_to_save()
