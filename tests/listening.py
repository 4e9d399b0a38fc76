"""The application of jobs.serve on a port of this process, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from pipelines.serve.app import build_app
from pipelines.serve.service import Service


@contextmanager
def listening(service: Service) -> Iterator[httpx.Client]:
    """A client of a server in a thread of this process, over HTTP."""
    server = uvicorn.Server(uvicorn.Config(build_app(service), port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
