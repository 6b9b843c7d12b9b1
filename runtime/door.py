"""
The CSM-DB's door, from outside: sealed requests over HTTPS, and what is public there.

For a home that the broker does not know yet (or no more), for services, and for brokers that fetch
the list of revoked keys. The requests are those of `runtime.csmdb_client`; TLS only says that the
door is the CSM-DB's, whose authority we were given a certificate of.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from runtime.ports import BusDownError, Handler, Message
from runtime.tls import trusting
from wire import topics
from wire.canonical import decode
from wire.errors import CertificateError, ConfigError, MalformedError
from wire.keys import KEY_BYTES, from_text, to_text

TIMEOUT_S = 10.0
MAX_BODY_BYTES = 4 * 1024 * 1024


class DoorDownError(ConnectionError):
    """Nobody answers at the door, or not as one would there."""


class Door:
    """
    An open way to the door.

    Args:
        url: `https://host:port`
        ca: the authority's certificate; a file, or a context that trusts it

    Raises:
        ConfigError: not such an address, or not a certificate.
    """

    def __init__(self, url: str, ca: Path | ssl.SSLContext) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ConfigError(f"{url}: expected the CSM-DB's door, https://HOST:PORT")
        self._host, self._port = parts.hostname, parts.port or 443
        self._context = trusting(ca) if isinstance(ca, Path) else ca

    def fetch(self, path: str, body: bytes | None = None) -> bytes:
        """
        Ask for a path; blocks. With a body, POST it.

        Raises:
            DoorDownError: no answer, or a refusal.
        """
        line = http.client.HTTPSConnection(
            self._host, self._port, timeout=TIMEOUT_S, context=self._context
        )
        try:
            line.request("GET" if body is None else "POST", path, body)
            answer = line.getresponse()
            raw = answer.read(MAX_BODY_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise DoorDownError(f"{self._host}:{self._port}: {error}") from None
        finally:
            line.close()
        if answer.status != 200 or len(raw) > MAX_BODY_BYTES:
            raise DoorDownError(f"{self._host}:{self._port}{path}: HTTP {answer.status}")
        return raw


class DoorBus:
    """
    The door as the lane of a `runtime.csmdb_client`: a request goes in, its answer comes out.

    It knows the two topics of its asker and no others; nothing comes unasked.
    """

    def __init__(self, door: Door, market: str, identity: str) -> None:
        self._door, self._identity = door, identity
        self._asked = topics.build(market, topics.CSMDB_REQ, identity)
        self._answered = topics.build(market, topics.CSMDB_RSP, identity)
        self._handlers: list[Handler] = []

    def subscribe(self, topic_filter: str, handler: Handler) -> None:
        """Hand answers to a handler."""
        assert topic_filter == self._answered, "the door has no other topic"
        self._handlers.append(handler)

    async def publish(self, topic: str, payload: bytes) -> None:
        """
        Take a request in; its answer has been handled when this returns.

        Raises:
            BusDownError: nobody answers at the door.
        """
        assert topic == self._asked, "the door has no other topic"
        try:
            raw = await asyncio.to_thread(self._door.fetch, f"/requests/{self._identity}", payload)
        except DoorDownError as error:
            raise BusDownError(str(error)) from None
        for handler in self._handlers:
            await handler(Message(self._answered, raw, False))


def csmdb_box_at(door: Door, issuing_key: bytes) -> bytes:
    """
    The key that requests are sealed to, as the door tells it; blocks.

    Raises:
        DoorDownError: no answer. WireError: not a CSM-DB's answer, or another's.
    """
    facts = decode(door.fetch("/facts"))
    if not isinstance(facts, dict) or type(facts.get("boxKey")) is not str:
        raise MalformedError("not a CSM-DB's door")
    if facts.get("issuingKey") != to_text(issuing_key):
        raise CertificateError("the door is another CSM-DB's")
    return from_text(facts["boxKey"], KEY_BYTES)
