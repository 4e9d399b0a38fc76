"""What ends a training for good, and how all its workers come to know of it.

A worker that raises on its own is started again by Ray, which mends a machine that failed and nothing else.  So what no
second try would mend is noted first and told to all workers, who then end together with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from semsam.storage import is_lasting
from semsam.training.engine import Worker


class TrainingFault(ValueError):  # noqa: N818
    """What makes going on useless, and trying again too; all workers raise it together."""


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """Add what no second try would mend to `faults`; anything else is raised."""
    try:
        yield
    except TrainingFault:
        raise
    except ValueError as error:
        faults.append(str(error))
    except OSError as error:
        if not is_lasting(error):
            raise
        faults.append(str(error))


def tell(worker: Worker, faults: list[str], advice: str = "") -> None:
    """Raise `TrainingFault` on all workers, who all call this, if any of them has noted something.

    `advice`, the same on all workers, is how to go on.
    """
    told = [text for text in worker.gather("\n".join(faults)) if text]
    if told:
        raise TrainingFault("\n".join(dict.fromkeys(told)) + advice)


@contextmanager
def together(worker: Worker) -> Iterator[None]:
    """Raise on all workers what `noting` would note on any; all of them run the block."""
    faults: list[str] = []
    with noting(faults):
        yield
    tell(worker, faults)
