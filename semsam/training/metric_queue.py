"""A training's numbers on their way to MLflow: sent by a thread, so that no step waits for a server."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np

from semsam.tracking.server import RefusedError, within
from semsam.tracking.system_metrics import SystemMetrics
from semsam.tracking.tracker import Point, Tracker

# An entry of the log with this key ends an interval: so many entries, it included, make one point in MLflow.
MEAN_OF = "mean_of"
TIME = "time"
SAMPLES_SEEN = "samples_seen"
# Points that wait at most; later ones are sent at the end, from the log.  And how many are looked at in one go.
MAX_WAITING = 10_000
AT_ONCE = 100
# Seconds between attempts while MLflow fails, and that the end of a run waits for it.
RETRY_EVERY = 15.0
CLOSE_WITHIN = 30.0
# Seconds for what is no number, which may go to another place: MLflow's store of files.
DESCRIBE_WITHIN = 20.0
# Seconds after which a server that hung has done what an earlier attempt had asked of it.
SETTLE = 2.0


def point(interval: Sequence[Mapping[str, Any]]) -> Point:
    """The means of some entries of the log, and how many samples have been seen, at the last one's time."""
    last = interval[-1]
    names = [name for name in last if name not in ("step", SAMPLES_SEEN, TIME, MEAN_OF)]
    values = {f"train/{name}": float(np.mean([one[name] for one in interval])) for name in names}
    seen = {f"{SAMPLES_SEEN}/{name}": float(count) for name, count in last[SAMPLES_SEEN].items()}
    return Point(last["step"] + 1, last[TIME], values | seen)


def points(log: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """What MLflow is to have of a log: a function of the log alone, whoever sends it."""
    interval: list[Mapping[str, Any]] = []
    for entry in log:
        interval.append(entry)
        if MEAN_OF in entry:
            yield point(interval[-entry[MEAN_OF] :])
            interval = []


class MetricQueue:
    """Sends points to an MLflow run, each once, and never holds up who puts them here.

    MLflow itself is asked which point it has last: points go there in their order, and each as a whole.  What is
    not known to have arrived is sent again with the same time, which makes it the same row there.  So neither an
    outage nor a killed process loses or doubles anything: the next attempt, or `jobs.track`, begins with the points
    of the log that come after MLflow's last.

    `open_run` gives the run and `logged` the points of the log, both on the thread, and `describe` sends what is no
    number: once numbers go through, and if that fails once more in the end.  `rest` is the command that sends what is
    left then.
    """

    def __init__(
        self,
        open_run: Callable[[], Tracker],
        logged: Callable[[], Iterable[Point]],
        describe: Callable[[Tracker], None],
        rest: str,
    ) -> None:
        with suppress(ImportError):  # Said by the thread.
            import mlflow  # noqa: F401  Takes seconds of a core: on the thread, the first steps would wait for them.

        self._open_run = open_run
        self._logged = logged
        self._describe = describe
        self._rest = rest
        self._system = SystemMetrics()
        self._waiting: deque[Point] = deque()
        self._behind = True  # Whether the log has points that an earlier attempt may not have sent.
        self._overflowed = False  # Then the log alone has what came since.
        self._tracker: Tracker | None = None
        self._last = -1  # The step of the last point that MLflow has.
        self._failing = False
        self._described: bool | None = None  # None: not tried yet.
        self._over = False  # Nothing more will be sent, and that was said where something is left.
        self._status: str | None = None  # What the run ended as, once no more points come.
        self._wake, self._closing = threading.Event(), threading.Event()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, one: Point) -> None:
        """Stand in line."""
        self._overflowed = self._overflowed or len(self._waiting) >= MAX_WAITING
        if not self._overflowed:
            self._waiting.append(one)
        self._wake.set()

    def close(self, status: str) -> None:
        """Send what is left and end the MLflow run, within half a minute; else say in one line how to."""
        self._status = status
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_WITHIN)
        if not self._over:
            print(
                f"warning: MLflow lacks a part of this run; to send it, once MLflow answers: {self._rest}", flush=True
            )

    def _run(self) -> None:
        while not self._over:
            self._wake.wait()
            self._wake.clear()
            status = self._status
            try:
                self._send(status)
            except RefusedError as error:
                print(f"warning: {error}; the training goes on, its log has all; then: {self._rest}", flush=True)
                self._over = True
            except Exception as error:  # Whatever it is, it must not be the end of a training.
                if status is not None:
                    self._system.stop()
                    return
                self._tracker = None  # To ask again what MLflow has.
                if not self._failing:
                    print(f"warning: {error}; the training goes on, its log has all", flush=True)
                self._failing = True
                self._closing.wait(RETRY_EVERY)
                self._wake.set()
            else:
                if self._failing:
                    print("MLflow answers again", flush=True)
                self._failing = False
                if status is not None:
                    return

    def _send(self, status: str | None) -> None:
        """Send all there is, and then what the run ended as."""
        if self._tracker is None:
            tracker = self._open_run()
            if self._failing:
                time.sleep(SETTLE)
                tracker = self._open_run()
            tracker.set_status("RUNNING")
            self._tracker, self._last = tracker, tracker.last_step
        if self._behind or (status is not None and self._overflowed):
            self._last = send_points(self._tracker, self._logged(), self._last)
            self._behind = False
        while self._waiting:
            ready = [self._waiting[place] for place in range(min(AT_ONCE, len(self._waiting)))]
            self._last = send_points(self._tracker, ready, self._last)
            for _ in ready:
                self._waiting.popleft()
        if status is None:
            self._system.keep_on(self._tracker)
            if self._described is None:
                self._described = self._try_to_describe(self._tracker)
            return
        self._tracker.set_status(status)
        self._system.stop()
        self._over = bool(self._described) or self._try_to_describe(self._tracker)

    def _try_to_describe(self, tracker: Tracker) -> bool:
        """Whether MLflow has now what is no number; if not, its run is as good without."""
        try:
            within(DESCRIBE_WITHIN, lambda: self._describe(tracker))
        except Exception:  # Said in the end, if it is still so.
            return False
        return True


def send_points(tracker: Tracker, some: Iterable[Point], last: int) -> int:
    """Send the points after the step `last`; the step of the last one then."""
    later = (one for one in some if one.step > last)
    while batch := list(islice(later, AT_ONCE)):
        tracker.log_points(batch)
        last = batch[-1].step
    return last
