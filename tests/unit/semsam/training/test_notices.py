"""When workers look for notices, and what they make of them."""

from __future__ import annotations

import threading
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
    run.ask_to_save()
    RunFolder(tmp_path / "run", "another").ask_to_save()
    wishes = [wish_after_a_look(notices, clock) for _ in range(4)]
    assert wishes == [Wish.ASK, Wish.SAVE, Wish.ASK, Wish.ASK]
    assert notices.wish() is Wish.NOTHING  # Not yet again.
    notices.agree(Wish.SAVE)
    assert notices.look() == "a checkpoint is wanted"


def test_storage_that_does_not_answer_holds_up_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, answered, asked = Clock(monkeypatch), threading.Event(), []

    def is_asked_to_save() -> bool:
        asked.append(1)
        answered.wait(30)
        raise OSError("no answer")

    notices = Notices(lambda: "", is_asked_to_save)
    for _ in range(3):  # Asked once as long as there is no answer.
        assert notices.wish() is Wish.ASK
        clock.now += module.LOOK_EVERY
    assert len(asked) == 1
    answered.set()
    assert [wish_after_a_look(notices, clock) for _ in range(2)] == [Wish.ASK, Wish.ASK]


def wish_after_a_look(notices: Notices, clock: Clock) -> Wish:
    clock.now += module.LOOK_EVERY
    wish = notices.wish()
    for thread in threading.enumerate():
        if thread.name == "notices":
            thread.join()
    return wish


def test_a_folder_in_nobodys_hands_is_asked_for_nothing(tmp_path: Path) -> None:
    assert not RunFolder(tmp_path).is_asked_to_save()
