"""How every job meets Ray, reports its faults and ends: the one place that knows whether there is a cluster to join."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# Read when Ray is imported.  `uv run` would otherwise ship the folder a second time, beside what we set below.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# A training worker's lines reach the driver already; Ray Train's own copy of them would show each twice.
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
# Ray's core keeps its remarks of this process to itself, of which every pool of actors brings one.  `putenv`, so that
# Ray's other processes, which get `os.environ`, log as ever.
if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
    os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
if not sys.stdout.isatty():
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # No colours in a file.

import psutil
import ray
import ray.data

from jobs.address import join
from jobs.resources import Workers, cpus_here, refuse_here, refuse_there, wait_for
from semsam.storage import S3, Folder, check_answers, existing_folder, normal_path

ROOT = Path(__file__).parents[1]
# Set by `ray job submit` for the command it starts: the runtime environment of the job is already chosen then.
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
# What Ray says where another try may help: it was too slow, or somebody else was faster to take the dashboard's port.
_COULD_NOT_START = ("timed out during startup", "already occupied")


@contextmanager
def connect(*workers: Workers, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """A Ray connection for the length of a `with` block, with room for each of `workers`.

    Joins the connection that this process already has, so that jobs can be chained; else the cluster that it was
    submitted to or that `RAY_ADDRESS` names; else starts one on this machine and ends it with the block.  `num_cpus`
    (by default what the machine has and the workers need) and `dashboard` are for that last case: Ray Train asks the
    dashboard's process whether its controller lives.

    Raises `ValueError` for an address where no cluster answers within seconds, and for workers that find no room there
    (see `jobs.resources`).
    """
    if ray.is_initialized():
        _wait_for_all(workers)
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with _quiet_core():
        if _is_submitted():
            ray.init(logging_level=logging.ERROR)
        elif not has_its_own():
            # A checkout need not be installed on the other machines: they get this one's files.
            join(_address(), runtime_env={"working_dir": str(ROOT)})
        else:
            refuse_here(workers)
            # Nobody announces that this machine will be taken away, so nobody need watch for it.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            _start(num_cpus or cpus_here(workers), dashboard)
    # Ray has put two of its own over it: one of Python, which ends without a word, one of C++, which dumps a stack.
    if threading.current_thread() is threading.main_thread():  # Elsewhere neither Ray nor anybody may.
        signal.signal(signal.SIGTERM, on_sigterm or signal.SIG_DFL)
    try:
        _quiet_logs()
        _wait_for_all(workers)
        yield
    finally:
        ray.shutdown()


def has_its_own() -> bool:
    """Whether a job of this process starts a cluster for itself."""
    return not _is_submitted() and not _address()


def _start(num_cpus: int, dashboard: bool) -> None:
    """Start a cluster on this machine, more than once where it is too busy for the half minute that Ray waits."""
    ours = psutil.Process()
    for tries_left in reversed(range(3)):
        port, others = _free_port(), ours.children()
        # Ray Train asks the dashboard whether its controller lives; else it looks for any cluster of the machine.
        known = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"} if dashboard else {}
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                dashboard_port=port,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": _with_root(os.environ.get("PYTHONPATH", "")), **known}},
            )
            return
        except Exception as error:  # Of no class of its own.
            if not any(said in str(error) for said in _COULD_NOT_START) or not tries_left:
                raise
            _end_processes([one for one in ours.children() if one not in others])
            print("Ray did not start in time: the machine is busy; trying again", flush=True)


def _end_processes(processes: Sequence[psutil.Process]) -> None:
    """End what a start that failed has left; Ray itself does so no sooner than this process ends."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def joined(*workers: Workers) -> Iterator[None]:
    """The cluster that is to be joined, if any, for the length of a `with` block around a whole job.

    Raises `ValueError` as `connect` does, for an address and for workers that can never run, before the job looks at
    anything else; whether there is room for them now is for `connect` to say.
    """
    if not (ray.is_initialized() or _is_submitted() or _address()):
        refuse_here(workers)
        yield
        return
    with connect():
        for one in workers:
            refuse_there(one)
        yield


def stable_path(path: str, setting: str) -> str:
    """The path in its normal form (`semsam.storage`), which means the same to this process and to its workers.

    One on S3 is looked at, so that a job which cannot reach it, or may not, ends before it begins.

    Raises `ValueError`, beginning with the setting, for what is no path, and for a relative one in a submitted job:
    there it would point into the cluster's temporary copy of the working directory, which is deleted after the job.
    """
    if _is_submitted() and not path.startswith((S3, "/", "~")):
        raise ValueError(f"{setting}: {path!r} is relative; a submitted job needs an absolute path or s3://")
    try:
        place = normal_path(path)
        check_answers(place)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    return place


def readable_folder(path: str, setting: str, neighbours: Sequence[str] = ()) -> Folder:
    """The folder at a path, whose files are to be read (see `semsam.storage.existing_folder`).

    Raises `ValueError`, beginning with the setting, for one that does not exist, and as `stable_path` does.
    """
    place = stable_path(path, setting)
    try:
        return existing_folder(place, neighbours)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None


def main_exit(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Run a job's `main` and end the process: status 0 if it came through, else 1 with the reason on the last lines.

    What a user can mend (`ValueError`, with the path, key or field) is shown without a traceback.
    """
    received = signal.SIGINT

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = signal.SIGTERM
        raise KeyboardInterrupt  # Ray makes this very class of any of its kind.

    signal.signal(signal.SIGTERM, terminate)
    try:
        main(arguments)
    except KeyboardInterrupt:
        _end(128 + received, "interrupted" if received == signal.SIGINT else "ended by SIGTERM")
    except ValueError as error:
        _end(1, f"error: {error}")
    except Exception as error:
        traceback.print_exc()
        _end(1, f"error: {type(error).__name__}: {error}")
    _end(0)


def _end(status: int, message: str = "") -> None:
    sys.stdout.flush()
    if message:
        print(message, file=sys.stderr, flush=True)
    sys.exit(status)


def _wait_for_all(workers: Sequence[Workers]) -> None:
    for one in workers:
        wait_for(one)


def _address() -> str:
    """The cluster that the environment names; empty where a job is to start its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return "" if address == "local" else address


def _is_submitted() -> bool:
    return _SUBMITTED in os.environ


def _with_root(python_path: str) -> str:
    return os.pathsep.join([str(ROOT), *(part for part in python_path.split(os.pathsep) if part)])


@contextmanager
def _quiet_core() -> Iterator[None]:
    """Nothing reaches this process's stderr: Ray's core would say there at which level it is going to be quiet.

    What goes wrong comes as an exception all the same.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _quiet_logs() -> None:
    """Keep Ray's account of its own workings out of a job's output; the session's log files still have it."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
