"""Fixtures of analytics: a made-up day, folded up to the evening."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from support.console_preview import Preview


@pytest.fixture
def evening(tmp_path: Path) -> Iterator[Preview]:
    """The made-up feeder at 19:24 of its day."""
    preview = Preview(19.4, tmp_path)
    yield preview
    preview.store.close()


@pytest.fixture(scope="module")
def whole_day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preview]:
    """The made-up feeder after its day has been settled."""
    preview = Preview(24.9, tmp_path_factory.mktemp("day"))
    yield preview
    preview.store.close()


@contextmanager
def serving(app: object) -> Iterator[str]:
    """A real HTTP server for an application, on a free port; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline_s = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline_s:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(5)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real console that shows the made-up evening."""
    preview = Preview(19.4, tmp_path_factory.mktemp("console"))
    with serving(preview.app()) as url:
        yield url
    preview.store.close()


@pytest.fixture
def serve() -> object:
    """`serving`, for tests that build their own application."""
    return serving
