"""
A connection to our HTTP servers that cannot be held by saying nothing.

uvicorn bounds how many connections there are and waits for ever for the request on each: whoever
opens that many and keeps still shuts everybody else out (slow-loris). So a whole request has to
come in time, and one network address holds a part of the connections only.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_WAIT_S = 20.0
"""From the connection, or the answer before, until a request with its body is there."""
PER_HOST = 16
"""Connections of one network address; a browser opens six."""
OWN_HOSTS = frozenset({"127.0.0.1", "::1"})
"""A proxy on this machine speaks for many."""


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a wait that ends and a share for each network address."""

    _owed: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if its network address has not too many."""
        super().connection_made(transport)
        host = self.client[0] if self.client is not None else ""
        if host not in OWN_HOSTS and self._held_by(host) > PER_HOST:
            transport.abort()
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is owed any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request, or the end."""
        super().on_response_complete()
        self._expect_request()

    def _held_by(self, host: str) -> int:
        others = cast("set[H11Protocol]", self.connections)
        return sum(one.client is not None and one.client[0] == host for one in others)

    def _expect_request(self) -> None:
        self._expect_nothing()
        self._owed = self.loop.call_later(REQUEST_WAIT_S, self._waited)

    def _expect_nothing(self) -> None:
        if self._owed is not None:
            self._owed.cancel()

    def _waited(self) -> None:
        """End a connection whose request is not whole; one that is being answered goes on."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            self.transport.abort()
