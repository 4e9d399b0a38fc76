"""What a job needs that is not installed everywhere: looked for as it starts, before it imports or does anything."""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib.util import find_spec

# The libraries of an extra in pyproject.toml, and the jobs that cannot do without.
_EXTRAS = {
    "evaluation": (
        ("hotcoco", "matplotlib", "vernier"),
        ("jobs.compare", "jobs.evaluate", "jobs.finetune", "jobs.quickstart", "jobs.report"),
    ),
    "serve": (("fastapi", "starlette", "uvicorn"), ("jobs.serve",)),
}


def check_extras(job: str | None) -> None:
    """End the process with a line that says what to install, if the job of that name lacks a library.

    `SystemExit`, for what a job imports would raise its own error before anybody could catch it.
    """
    for extra, (libraries, jobs) in _EXTRAS.items():
        missing = [name for name in libraries if not _is_there(name)] if job in jobs else []
        if missing:
            raise SystemExit(
                f"error: {job} needs {', '.join(missing)} of the extra [{extra}], which is not installed here; in this "
                f"project's folder: pip install -c infra/constraints.txt -e '.[{extra}]'"
            )


def started_job() -> str | None:
    """The module that `python -m` runs in this process; None where it runs something else."""
    return getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)


def _is_there(library: str) -> bool:
    with suppress(ImportError, ValueError):  # Of what looks for modules, and of one that is half there.
        return find_spec(library) is not None
    return False
