"""
A connection to our HTTP servers that cannot be held by saying nothing.

uvicorn bounds how many connections there are and waits for ever for the request on each: whoever
opens that many and keeps still shuts everybody else out (slow-loris). So a whole request has to
come in time, one network address holds a part of the connections only, and when there is no more
room, whoever has owed a request for longest has to go.
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
    _since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if its network address has not too many."""
        super().connection_made(transport)
        host = self.client[0] if self.client is not None else ""
        if host not in OWN_HOSTS and self._held_by(host) > PER_HOST:
            transport.abort()
            return
        self._expect_request()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is owed any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next request, or the end."""
        super().on_response_complete()
        self._expect_request()

    @property
    def _all(self) -> set[BoundedProtocol]:
        return cast("set[BoundedProtocol]", self.connections)

    def _held_by(self, host: str) -> int:
        return sum(one.client is not None and one.client[0] == host for one in self._all)

    def _make_room(self) -> None:
        while self.limit_concurrency and len(self._all) >= self.limit_concurrency:
            owing = [one for one in self._all if one is not self and one._owes()]
            if not owing:
                return  # all are being answered; uvicorn says 503
            oldest = min(owing, key=lambda one: one._since_s)
            self._all.discard(oldest)
            oldest.transport.abort()

    def _expect_request(self) -> None:
        self._expect_nothing()
        self._since_s = self.loop.time()
        self._owed = self.loop.call_later(REQUEST_WAIT_S, self._waited)

    def _expect_nothing(self) -> None:
        if self._owed is not None:
            self._owed.cancel()

    def _owes(self) -> bool:
        """Is its request not whole? One that is being answered owes nothing."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def _waited(self) -> None:
        if self._owes():
            self.transport.abort()
