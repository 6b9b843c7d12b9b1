"""
A read-only ear at somebody else's broker: the household's, with its own users and devices.

The market's bus (`runtime.bus`) does not fit there: its client id is its user name, its session
outlives it and would hand over what was queued while it was away, and its messages are owed an
answer. This subscriber has a client id of its own, a clean session, no last will and no way to
publish. It keeps the bus's link and with it the bounds on what a broker may send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from runtime.link import Incoming, Link
from runtime.ports import BusDownError, Message, Rng

BACKOFF_MIN_S = 0.5
BACKOFF_MAX_S = 10.0
OPEN_TIMEOUT_S = 10.0
KEEPALIVE_S = 20


class Listener:
    """
    Keeps a subscription standing until `close`.

    Args:
        topics: topic filters; nothing else is asked for
        on_message: takes each message; must not raise
        user, password: None where the broker lets anyone in
    """

    def __init__(
        self,
        host: str,
        port: int,
        topics: Sequence[str],
        on_message: Callable[[Message], None],
        rng: Rng,
        *,
        user: str | None = None,
        password: str | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._topics = list(topics)
        self._on_message = on_message
        self._rng = rng
        self._client_id = f"hearthgrid-{rng.bytes(4).hex()}"
        self._user, self._password = user, password
        self._task: asyncio.Task[None] | None = None
        self.trouble = "not connected yet"
        """Why nothing can be heard now; empty while connected and subscribed."""

    def start(self) -> None:
        """Connect in the background, and go on reconnecting."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Say goodbye."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        pause_s = BACKOFF_MIN_S
        while True:
            try:
                await self._stand()
            except Exception as error:  # whatever the broker does, we come back
                if not self.trouble:
                    pause_s = BACKOFF_MIN_S
                self.trouble = str(error) or type(error).__name__
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, BACKOFF_MAX_S)

    async def _stand(self) -> None:
        """Hold one connection; its loss is an OSError."""
        link = _ForeignLink(self._client_id, self._user, self._password, self._take)
        try:
            await link.open(self._host, self._port, None, OPEN_TIMEOUT_S)
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                refused = await link.subscribe(self._topics)
            if refused:
                raise BusDownError(f"the broker refuses the subscription to {refused[0]}")
            self.trouble = ""
            await asyncio.wait([link.lost])
            raise BusDownError(link.lost.result())
        finally:
            link.close()

    def _take(self, link: Link, incoming: Incoming) -> None:
        link.acknowledge(incoming)
        self._on_message(Message(incoming.topic, incoming.payload, incoming.retained))


class _ForeignLink(Link):
    """A link whose user is not its client id, and whose session ends with it."""

    def __init__(
        self,
        client_id: str,
        user: str | None,
        password: str | None,
        on_message: Callable[[Link, Incoming], None],
    ) -> None:
        super().__init__(client_id, "", None, KEEPALIVE_S, on_message)
        self._client.username_pw_set(user, password)
        self._client._clean_session = True  # paho takes it only when it is made
