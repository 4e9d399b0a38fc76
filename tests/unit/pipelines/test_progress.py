"""Progress says how far, how fast and how long still."""

from __future__ import annotations

import io

import pytest

from pipelines.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_one_line_per_interval_where_there_is_no_terminal(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress("prepare", 1000, interval=10.0, stream=stream)
    for _ in range(20):
        clock[0] += 1.0
        progress.add(25)
    assert stream.getvalue().splitlines() == [
        "prepare: 250/1000 images, 25.0 images/s, 30 s left",
        "prepare: 500/1000 images, 25.0 images/s, 20 s left",
    ]
    progress.close()
    assert len(stream.getvalue().splitlines()) == 3


def test_a_terminal_shows_one_line_that_is_rewritten(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress("prepare", 4, stream=stream)
    for _ in range(4):
        clock[0] += 0.3
        progress.add(1)
    progress.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().split("\r\x1b[K")[-1] == "prepare: 4/4 images, 3.3 images/s\n"


@pytest.mark.parametrize(
    ("seconds", "left"), [(2.0, "18 s left"), (20.0, "3 min 00 s left"), (1000.0, "2 h 30 min left")]
)
def test_what_was_found_done_says_nothing_of_the_speed(clock: list[float], seconds: float, left: str) -> None:
    progress = Progress("prepare", 1000, stream=io.StringIO())
    progress.add(800, found=True)
    clock[0] += seconds
    progress.add(20)
    assert progress.line(clock[0]) == (f"prepare: 820/1000 images, {20 / seconds:.1f} images/s, 800 found done, {left}")


@pytest.mark.parametrize(("actors", "end"), [(0, "images/s"), (1, "images/s, 1 actor"), (3, "images/s, 3 actors")])
def test_actors_are_counted_where_there_are_any(clock: list[float], actors: int, end: str) -> None:
    progress = Progress("evaluate", 4, stream=io.StringIO())
    progress.note_actors(actors)
    assert progress.line(clock[0]).endswith(f" {end}")


def test_nothing_to_do_divides_by_nothing(clock: list[float]) -> None:
    progress = Progress("prepare", 0, stream=io.StringIO())
    assert progress.line(clock[0]) == "prepare: 0/0 images, 0.0 images/s"
