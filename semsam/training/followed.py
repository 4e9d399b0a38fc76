"""What an evaluation that stands beside a training tells its clean-up: `evaluated.json` in the run's folder.

The best checkpoint stays, and so do those that are still to be evaluated while somebody is at it.  The training reads
the file and never waits for it.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

from semsam.data.sealed import seal, unseal_as
from semsam.storage import Folder

FOLLOWED_FILE = "evaluated.json"
STALE = 3600.0  # Seconds after the last sign of the evaluation, after which checkpoints no longer wait for it.


@dataclass(frozen=True)
class Followed:
    """Which checkpoints of a run were evaluated, by the number that the best is chosen by."""

    metric: str
    # By step; None: the checkpoint had gone before it could be evaluated.  Text, for JSON has no other keys.
    values: dict[str, float | None] = field(default_factory=dict)
    time: float = 0.0  # Unix seconds of the last sign of life.

    @property
    def best(self) -> int | None:
        """The step with the highest number, the earliest of equal ones; None where nothing was evaluated."""
        known = {int(step): value for step, value in self.values.items() if value is not None}
        return min(known, key=lambda step: (-known[step], step)) if known else None

    def with_value(self, step: int, value: float | None) -> Followed:
        """The same after one more checkpoint."""
        return dataclasses.replace(self, values={**self.values, str(step): value})

    def write(self, run: Folder) -> None:
        """Tell the training, with a sign of life."""
        run.write(FOLLOWED_FILE, seal(dataclasses.asdict(dataclasses.replace(self, time=time.time()))))

    def kept(self, steps: list[int]) -> set[int]:
        """Those of these checkpoints that are not to be deleted."""
        waiting = {step for step in steps if str(step) not in self.values} if time.time() - self.time < STALE else set()
        return waiting | ({self.best} if self.best is not None else set())


def read_followed(run: Folder) -> Followed | None:
    """What is known of a run's checkpoints; None where nobody has evaluated any.

    Raises `ValueError` for a damaged file.
    """
    data = run.read_if_there(FOLLOWED_FILE)
    return None if data is None else unseal_as(Followed, data, f"{run.path}/{FOLLOWED_FILE}", "what was evaluated")
