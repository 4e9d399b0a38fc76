"""What answers at an address of MLflow: looked at quickly, asked without minutes of waiting, quoted in one line."""

from __future__ import annotations

import http.client
import logging
import os
import re
import socket
import sqlite3
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from typing import Any, TypeVar

from semsam.tracking.address import complete_address, mask_secrets, sqlite_path

T = TypeVar("T")

# Seconds that the first look may take, and then a server to say what it knows of an experiment.
ANSWER_WITHIN = 8.0
OPEN_WITHIN = 10.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Answers that asking again would not change.
_REFUSALS = (
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "BAD_REQUEST",
)


class TrackingError(ValueError):
    """MLflow cannot be had, or had not just now; the message names the setting and the address."""


class RefusedError(TrackingError):
    """What asking again would not mend: a run that was deleted, an id that is none."""


def is_refusal(error: Exception) -> bool:
    """Whether MLflow would say the same again."""
    return getattr(error, "error_code", None) in _REFUSALS


@contextmanager
def named_errors(uri: str) -> Iterator[None]:
    """What goes wrong as one line that names the address, without what of it is secret."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        kind = RefusedError if is_refusal(error) else TrackingError
        raise kind(f"tracking.uri: MLflow at {uri}: {mask_secrets(_reason(error), uri)}") from None


def _reason(error: BaseException) -> str:
    """What an error says in one line: of a connection, what the system said, without three libraries' words around."""
    first = error
    while before := _before(first):
        first = before
    text = str(first if isinstance(first, OSError) else error) or type(error).__name__
    return re.sub(r"\s+", " ", text)[:300]


def _before(error: BaseException) -> BaseException | None:
    wrapped = error.args[-1] if error.args and isinstance(error.args[-1], BaseException) else None
    return error.__cause__ or wrapped or (None if error.__suppress_context__ else error.__context__)


def client_for(uri: str) -> Any:
    """MLflow's client, told not to wait for minutes and not to say where it sends what."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=client_address(uri))


def client_address(uri: str) -> str:
    """The address as MLflow's own classes are to have it; user and password of a server go to its variables."""
    for library in ("mlflow", "urllib3.connectionpool"):  # What goes wrong is said once, by who asked.
        logging.getLogger(library).setLevel(logging.ERROR)
    address = complete_address(uri)
    if uri.startswith("http") and address != uri:
        # Where MLflow looks for them; in the address they would stand in what it prints.
        user, _, password = address.partition("://")[2].rpartition("@")[0].partition(":")
        for name, secret in (("USERNAME", user), ("PASSWORD", password)):
            if secret:
                os.environ[f"MLFLOW_TRACKING_{name}"] = urllib.parse.unquote(secret)
        address = uri
    return address


def within(seconds: float | None, action: Callable[[], T]) -> T:
    """What `action` returns, given up after a while: it may hang where no timeout of a library reaches."""
    if seconds is None:
        return action()
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None


def probe(uri: str) -> None:
    """Raise `OSError` where nothing answers there within seconds: MLflow's own client would go on asking for minutes.

    A server is asked for an experiment, a database's port is opened, and so is the file of an `sqlite:///` address.
    """
    scheme = uri.partition("://")[0]
    if scheme == "sqlite":
        _probe_file(sqlite_path(uri))
    elif scheme in ("http", "https"):
        _probe_server(uri)
    elif port := _PORTS.get(scheme.partition("+")[0]):
        parts = urllib.parse.urlsplit(uri)
        if parts.hostname and "," not in parts.hostname:  # Of several hosts any may answer.
            socket.create_connection((parts.hostname, parts.port or port), ANSWER_WITHIN).close()


def _probe_server(uri: str) -> None:
    question = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    try:
        with urllib.request.urlopen(question, timeout=ANSWER_WITHIN) as answer:
            status, text = answer.status, answer.read(100_000)
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read(100_000)
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):  # Whom to trust is MLflow's own client's to know.
            return
        raise OSError(f"no answer: {error.reason}") from None
    except TimeoutError:
        raise OSError(f"no answer within {ANSWER_WITHIN:.0f} s") from None
    except http.client.HTTPException as error:
        raise OSError(f"not a web server: {type(error).__name__}") from None
    is_mlflow = status not in (200, 404) or b'"experiment"' in text or b'"error_code"' in text
    if status >= 500 or not is_mlflow:
        raise OSError(f"it answers {status}" + ("" if is_mlflow else ", and not as MLflow does"))


def _probe_file(path: str) -> None:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder)
    try:
        with closing(sqlite3.connect(path, timeout=ANSWER_WITHIN, isolation_level=None)) as database:
            database.execute("begin immediate")
            database.execute("rollback")
    except sqlite3.Error as error:
        raise OSError(str(error)) from None
