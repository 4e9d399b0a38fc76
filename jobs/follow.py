"""An evaluation beside a training: every new checkpoint once, until the run is complete; the best one is marked."""

from __future__ import annotations

import time
from collections.abc import Callable

from semsam.storage import Folder
from semsam.training.checkpoint import checkpoint_folder, checkpoint_steps, load_state
from semsam.training.followed import FOLLOWED_FILE, Followed, read_followed

POLL = 5.0  # Seconds between looks at the run's folder,
SAY_EVERY = 300.0  # and between lines that say that nothing new is there.


def follow(run: Folder, metric: str, evaluate: Callable[[Folder, int], dict[str, float]]) -> Followed:
    """Evaluate the checkpoints of a run as they come, the last one included; what is marked goes on from before.

    `evaluate` gives an evaluation's numbers.  A checkpoint that is deleted meanwhile is said and left out.  Raises
    `ValueError` where the numbers lack `metric`, and for a run that was marked by another one.
    """
    followed = read_followed(run) or Followed(metric)
    if followed.metric != metric:
        raise ValueError(
            f"{run.path}/{FOLLOWED_FILE}: the best was chosen by {followed.metric}, not by {metric} (best_by); "
            "go on with that, or remove the file"
        )
    said = time.monotonic()
    while True:
        followed.write(run)
        new = [step for step in checkpoint_steps(run) if str(step) not in followed.values]
        for step in new:
            followed = followed.with_value(step, _value(run, step, metric, evaluate))
            followed.write(run)
            print(f"{run.path}: the best by {metric} is checkpoint-{followed.best}", flush=True)
        if _is_complete(run, followed):
            return followed
        if new or time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            print(f"{run.path}: waiting for a checkpoint", flush=True)
        time.sleep(POLL)


def _value(run: Folder, step: int, metric: str, evaluate: Callable[[Folder, int], dict[str, float]]) -> float | None:
    folder = checkpoint_folder(run, step)
    try:
        numbers = evaluate(folder, step)
    except (ValueError, RuntimeError):
        if step in checkpoint_steps(run):
            raise
        print(f"{folder.path}: deleted before it was evaluated", flush=True)
        return None
    if metric not in numbers:
        raise ValueError(f"best_by: {metric!r} was not measured; there are {', '.join(sorted(numbers))}")
    return numbers[metric]


def _is_complete(run: Folder, followed: Followed) -> bool:
    """Whether the last of the run's steps has a checkpoint, which has been evaluated."""
    steps = checkpoint_steps(run)
    if not steps or str(steps[-1]) not in followed.values:
        return False
    return load_state(checkpoint_folder(run, steps[-1])).num_steps <= steps[-1]
