"""HTTP beside a node: a listener, uvicorn without signal handlers, a file that says where."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog
import uvicorn
from starlette.types import ASGIApp

from wire.errors import ConfigError

URL_FILE = "http.url"
"""In the chain folder while the API is served: its address, for `ledger peers`."""
MAX_CONNECTIONS = 64
STOP_WAIT_S = 2.0

log = structlog.get_logger(component="ledger")


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def parse_address(text: str) -> tuple[str, int]:
    """
    HOST:PORT, :PORT or PORT; the loopback interface when no host is named.

    Raises:
        ConfigError: neither.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdecimal() or int(port) > 65_535:
        raise ConfigError(f"--http {text}: expected HOST:PORT, like 127.0.0.1:8334")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """True for names of the loopback interface."""
    return host in ("localhost", "::1") or host.startswith("127.")


def listen(host: str, port: int) -> socket.socket:
    """
    A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: not possible there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ConfigError(
            f"--http: cannot listen on {host}:{port}: {reason}; give another port"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listener can be called."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket, folder: Path) -> AsyncIterator[None]:
    """Serve an application while the block runs; what goes wrong in it does not end the block."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=5,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    task.add_done_callback(_tell)
    url_file = folder / URL_FILE
    url_file.write_text(url_of(listener) + "\n", encoding="ascii")
    log.info("serving", url=url_of(listener))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            url_file.unlink()
        server.should_exit = True
        server.force_exit = True
        await asyncio.wait([task], timeout=STOP_WAIT_S)
        listener.close()


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the HTTP API stopped; the node goes on", reason=str(error))
