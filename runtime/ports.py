"""
The ports: what a shell needs from the world, as small protocols.

A pure core takes time and randomness as arguments. Its shell gets them from here, so that the same
shell can run against real sockets and disks, or against the simulator's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Market time (UTC) and process time. Market time may run faster than real time."""

    def now_ms(self) -> int:
        """Market time: UTC milliseconds since the Unix epoch."""
        ...

    def wall_ms(self) -> int:
        """Real UTC milliseconds, for what meets the real world (token freshness)."""
        ...

    @property
    def speed(self) -> float:
        """Market seconds per real second, now."""
        ...

    def monotonic_s(self) -> float:
        """Real seconds that never go back, for timeouts."""
        ...

    def real_seconds_until(self, market_ms: int) -> float:
        """Real seconds from now until market time `market_ms` (0 when it has passed)."""
        ...

    async def sleep_until(self, market_ms: int) -> None:
        """Return once market time has reached `market_ms`."""
        ...


class Rng(Protocol):
    """Randomness for identifiers, jitter and keys."""

    def bytes(self, size: int) -> bytes:
        """`size` random bytes (fit for keys in the real version)."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high), for jitter."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """Something that came in from the bus."""

    topic: str
    payload: bytes
    retained: bool = False


Handler = Callable[[Message], Awaitable[None]]
"""Takes one message. When it returns, the message is acknowledged; when it raises, the error is
logged and counted, and the message is acknowledged too (a poisonous message must not come back
for ever). A handler that must not lose a message stores it before it returns."""


class Bus(Protocol):
    """One connection ("lane") to the broker, under one identity."""

    async def start(self) -> None:
        """Connect in the background, and go on reconnecting until `stop`."""
        ...

    async def stop(self) -> None:
        """Send what is queued (bounded wait), disconnect."""
        ...

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """
        Return once connected and subscribed.

        Raises:
            TimeoutError: not within `timeout_s`.
        """
        ...

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Subscribe now and after every reconnect; handlers run one message at a time, in order."""
        ...

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """
        Hand a message to the connection.

        Returns once the broker has acknowledged it (QoS 1) or it is sent (QoS 0).

        Raises:
            BusDownError: not connected, or the connection was lost before the acknowledgement.
        """
        ...

    def publish_soon(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Hand a message to the connection without waiting; dropped when not connected."""
        ...

    @property
    def connected(self) -> bool:
        """True while the connection stands."""
        ...


class BusDownError(ConnectionError):
    """There is no connection to the broker (temporary)."""


class Store(Protocol):
    """A small ordered key-value store with transactions."""

    def atomic(self) -> AbstractContextManager[None]:
        """All writes inside happen, or none does; durable when the block ends."""
        ...

    def get(self, key: str) -> bytes | None:
        """The value of `key`, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Set `key` (inside `atomic`)."""
        ...

    def delete(self, key: str) -> None:
        """Remove `key` if it is there (inside `atomic`)."""
        ...

    def scan(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """All keys that begin with `prefix`, in order."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...
