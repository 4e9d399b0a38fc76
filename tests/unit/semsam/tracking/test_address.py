"""Addresses of MLflow: what of them is shown and stored, and which are refused, at once."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from semsam.config import dump_config
from semsam.tracking import address
from semsam.tracking import server as mlflow_server
from semsam.tracking.address import check_address, complete_address, environment_for, mask_secrets, without_secrets
from semsam.tracking.server import TrackingError
from semsam.tracking.tracker import TrackingSettings, open_experiment, tracking_uri
from tests.mlflow_stand_in import MlflowStandIn


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("https://user:secret@host/mlflow", "https://host/mlflow"),
        ("https://secret@host", "https://host"),
        ("https://user:sec@re/t@host:5000", "https://host:5000"),
        ("https://host/mlflow?token=secret&a=b", "https://host/mlflow?a=b"),
        ("postgresql://user:secret@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql+psycopg2://db:5/mlflow?user=u&password=secret", "postgresql+psycopg2://db:5/mlflow?user=u"),
        ("mysql+pymysql://user:se/c?r#et@db/mlflow", "mysql+pymysql://db/mlflow"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dsecret", "mssql+pyodbc:///"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_user_and_password_are_used_and_not_shown(given: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_complete", {})
    settings = TrackingSettings(uri=given)
    assert settings.uri == shown
    assert tracking_uri(settings) == shown
    assert given == shown or given not in dump_config(settings) + repr(settings)
    assert complete_address(shown) == given
    assert environment_for(shown)["MLFLOW_TRACKING_URI"] == given
    assert without_secrets(shown) == shown


def test_the_environments_address_is_shown_without_its_secrets_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_complete", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@host")
    assert tracking_uri(TrackingSettings()) == "https://host"
    address._complete.clear()  # As in another process that has the variable.
    assert complete_address("https://host") == "https://user:secret@host"
    assert complete_address("https://other") == "https://other"


def test_what_libraries_say_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_complete", {})
    uri = without_secrets("https://user:s3cr%40t@host")
    said = "at https://user:s3cr%40t@host: no s3cr@t for user:s3cr%40t"
    assert mask_secrets(said, uri) == "at https://host: no *** for ***"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///mlflow.db", "is relative"),
        ("sqlite:///./a/mlflow.db", "is relative"),
        ("mlruns", "is relative"),
        ("file:./mlruns", "is relative"),
        ("sqlite://", "is in memory"),
        ("sqlite:///:memory:", "is in memory"),
        ("http://", "is no address of a server"),
        ("http://host:port", "is no address of a server"),
    ],
)
def test_what_cannot_be_one_store_is_refused(uri: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^tracking.uri: {uri} {reason}"):
        open_experiment(TrackingSettings(uri=uri))


@pytest.mark.parametrize("uri", ["sqlite:////a/b.db", "https://host", "postgresql://db/mlflow", "databricks", "/a/b"])
def test_what_can_be_is_not(uri: str) -> None:
    check_address(uri)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_a_server_that_is_not_there_is_named_at_once(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server, "ANSWER_WITHIN", 0.5)
    started = time.monotonic()
    for uri, reason in (
        (f"http://user:secret@127.0.0.1:{silent_port}", "no answer within"),
        ("http://127.0.0.1:9", "no answer: .*refused"),
        ("http://no-such-host.invalid", "no answer: "),
        ("postgresql://user:secret@127.0.0.1:9/db", "refused"),
    ):
        with pytest.raises(TrackingError, match=f"^tracking.uri: MLflow at .*: .*{reason}") as refused:
            open_experiment(TrackingSettings(uri=uri))
        assert "secret" not in str(refused.value)
        assert refused.value.__suppress_context__
    assert time.monotonic() - started < 10


def test_a_server_in_trouble_and_what_is_no_server_are_named() -> None:
    server = MlflowStandIn()
    server.mode = "fail"
    with pytest.raises(TrackingError, match=f"^tracking.uri: MLflow at {server.uri}: it answers 500"):
        open_experiment(TrackingSettings(uri=server.uri))
    server.stop()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet(words: bytes) -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(words)

        uri = f"http://127.0.0.1:{listening.getsockname()[1]}"
        page = b"Content-Length: 6\r\n\r\n<html>"
        for words, reason in (
            (b"SSH-2.0-OpenSSH\r\n", "not a web server"),
            (b"HTTP/1.1 200 OK\r\n" + page, "it answers 200, and not as MLflow does"),
            (b"HTTP/1.1 404 Not Found\r\n" + page, "it answers 404, and not as MLflow does"),
        ):
            threading.Thread(target=greet, args=(words,), daemon=True).start()
            with pytest.raises(TrackingError, match=f"MLflow at {uri}: {reason}"):
                open_experiment(TrackingSettings(uri=uri))


def test_a_deleted_experiment_is_named_with_what_restores_it() -> None:
    server = MlflowStandIn()
    server.experiment_stage = "deleted"
    with pytest.raises(TrackingError, match=f"^tracking.experiment: mine was deleted in MLflow at {server.uri}.* -x 1"):
        open_experiment(TrackingSettings(uri=server.uri, experiment="mine"))
    server.experiment_stage = "active"
    line = open_experiment(TrackingSettings(uri=server.uri, experiment="mine"))
    assert line == f"MLflow: experiment mine at {server.uri}"
    server.stop()


def test_a_database_file_that_cannot_be_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_server, "ANSWER_WITHIN", 0.2)
    (tmp_path / "text.db").write_text(
        "not a database, and longer than the header of one, which has a hundred bytes" * 2
    )
    (tmp_path / "file").touch()
    (tmp_path / "folder.db").mkdir()
    for name, reason in (("text.db", "not a database"), ("file/a.db", "file"), ("folder.db", "unable to open")):
        with pytest.raises(TrackingError, match=f"^tracking.uri: MLflow at sqlite:///{tmp_path}/{name}: .*{reason}"):
            open_experiment(TrackingSettings(uri=f"sqlite:///{tmp_path}/{name}"))
    with sqlite3.connect(tmp_path / "locked.db") as other:
        other.execute("create table a (b)")
        other.commit()
        other.execute("begin exclusive")
        with pytest.raises(TrackingError, match="locked"):
            open_experiment(TrackingSettings(uri=f"sqlite:///{tmp_path}/locked.db"))
    other.close()
