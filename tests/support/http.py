"""A real HTTP server for an application, and a client that shows everything of an answer."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from support.patience import PATIENCE_S


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def get(url: str, method: str = "GET", **headers: str) -> Reply:
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return _reply(answer.status, answer)
    except urllib.error.HTTPError as error:
        return _reply(error.code, error)


def _reply(status: int, answer: Any) -> Reply:
    return Reply(status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())


@contextmanager
def serving(app: object) -> Iterator[str]:
    """Serve on a free port in a thread; gives the address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + PATIENCE_S
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5)
