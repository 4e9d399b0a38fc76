"""What a job would need: `--dry-run` prints it, after all settings, and nothing is started, read or written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semsam.config import dump_config

if TYPE_CHECKING:
    from jobs.resources import Workers


@dataclass(frozen=True)
class Needs:
    """The processes that a job runs beside its own, what it reads, and what it writes."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    workers: tuple[Workers, ...] = ()
    tracking: str | None = None  # Where its numbers go as well.

    @staticmethod
    def of(
        reads: Iterable[str | None],
        writes: Iterable[str | None],
        *workers: Workers,
        tracking: str | None = None,
    ) -> Needs:
        """The same, of what is named at all."""
        return Needs(tuple(one for one in reads if one), tuple(one for one in writes if one), tuple(workers), tracking)


def dry_run(job: Any, needs: Needs) -> str:
    """All settings of a job as a config file of it, with what it needs as comments."""
    lines = [f"# {one} ({one.count_setting}, {one.cpus_setting}, {one.gpus_setting})" for one in needs.workers]
    lines = lines or ["# this process alone"]
    lines += [f"# reads {path}" for path in needs.reads] + [f"# writes {path}" for path in needs.writes]
    if needs.tracking:
        lines.append(f"# tells {needs.tracking}")
    return dump_config(job) + "\n".join(lines)
