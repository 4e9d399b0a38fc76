"""Jobs as processes, with what they print."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.ray_nodes import kill_session, of_session

ROOT = Path(__file__).parents[2]
PATIENCE = 600.0  # Seconds for a job on two cores.
# What no job's output has a line with: remarks of libraries about themselves.
NOISE = ("core_worker.cc", "Set ray log level", "PlacementGroupCleaner", " INFO mlflow")


@dataclass
class Running:
    """A job in a session of its own, which has its cluster too where it starts one."""

    process: subprocess.Popen[bytes]
    lines: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def said(self) -> str:
        """Its output so far."""
        return self.lines.read_text(errors="replace")

    def processes(self) -> list[int]:
        """Those that live."""
        return of_session(self.process.pid)

    def kill(self) -> None:
        """End all of them at once, if they have not ended."""
        kill_session(self.process.pid)
        self.process.wait()


def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Running:
    """Begin a job; its output goes to a file of its own.  Without an environment it starts a cluster of its own."""
    if environment is None:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment |= {"RAY_AUTH_MODE": "disabled"}
    with tempfile.NamedTemporaryFile("wb", suffix=".txt", delete=False) as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Running(process, Path(output.name))


def finish(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a job to its end and give its output; raises as `wait_for` does."""
    return wait_for(start(command, environment))


def wait_for(job: Running, is_disturbed: bool = False) -> str:
    """A job's output when it has ended well; else `RuntimeError`.

    Nothing may be in it that no user can read; where machines die under a job, Ray says what it likes.
    """
    try:
        status = job.process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"does not end in {PATIENCE:.0f} s:\n{job.said()}") from None
    finally:
        job.kill()
    text = job.said()
    if status:
        raise RuntimeError(f"ended with {status}:\n{text}")
    noise = [] if is_disturbed else noise_in(text)
    if noise:
        raise RuntimeError("has in its output what no user can read:\n" + "\n".join(noise))
    return text


def noise_in(text: str) -> list[str]:
    """The lines of an output that are not fit for reading."""
    return [line for line in text.splitlines() if any(one in line for one in NOISE)]
