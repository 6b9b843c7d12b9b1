"""What every page and API of ours adds to its answers, and how one is served beside a service."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from errno import EADDRNOTAVAIL
from pathlib import Path

import structlog
import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.http_protocol import BoundedProtocol
from wire.errors import ConfigError

MAX_CONNECTIONS = 64
STOP_WAIT_S = 1.0

log = structlog.get_logger(component="http")


class SecurityHeaders:
    """
    Sets headers on every answer that has not set its own.

    Args:
        headers: names and values
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, adding to the answer's head."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                head = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    head.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class _Server(uvicorn.Server):
    """Uvicorn without its own signal handlers: the process has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


def listen(host: str, port: int, where: str, where_host: str = "") -> socket.socket:
    """
    A listening socket; port 0 takes a free one.

    Args:
        where: of the port, for the error: the option or key that the operator wrote
        where_host: of the host, where it is another one

    Raises:
        ConfigError: not possible there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError | socket.gaierror) or error.errno == EADDRNOTAVAIL:
            raise ConfigError(
                f"{where_host or where}: cannot listen on {host!r}: {reason};"
                " give an address of this machine"
            ) from None
        raise ConfigError(
            f"{where}: cannot listen on {host}:{port}: {reason}; give another port"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a listener can be called."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@asynccontextmanager
async def serving(
    app: ASGIApp, listener: socket.socket, url_file: Path, tls: tuple[Path, Path] | None = None
) -> AsyncIterator[str]:
    """
    Serve an application while the block runs; what goes wrong in it does not end the block.

    Args:
        listener: closed at the end
        url_file: says where it is served, while it is
        tls: files of certificate and key, for HTTPS
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", http=BoundedProtocol,
        limit_concurrency=MAX_CONNECTIONS, timeout_keep_alive=5,
        ssl_certfile=tls[0] if tls is not None else None,
        ssl_keyfile=tls[1] if tls is not None else None,
    )  # fmt: skip
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    task.add_done_callback(_tell)
    url = url_of(listener)
    if tls is not None:
        url = url.replace("http", "https", 1)
    url_file.write_text(url + "\n", encoding="ascii")  # noqa: ASYNC240 (one line, at start)
    log.info("serving", url=url)
    try:
        yield url
    finally:
        with contextlib.suppress(OSError):
            url_file.unlink()  # noqa: ASYNC240
        server.should_exit = True
        server.force_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=STOP_WAIT_S)
        listener.close()


def _tell(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("HTTP stopped; the service goes on", reason=str(error))
