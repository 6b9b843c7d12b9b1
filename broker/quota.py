"""
How much each client may say: a bucket of messages and one of bytes, by what it has shown.

The buckets belong to the identity, not to the connection, so that connecting anew fills nothing.
Whoever has emptied one is not read from until it has something in it again: TCP holds the rest back
at its sender, nothing is lost, and nobody else waits. All that have shown no credential share one
more bucket, because anybody can make identities; so do all addresses that are not at work
(`wire.presence`), because a home may hold grants for many days.

Time passes by the real or by the market's clock, whichever is faster, so that a market that runs
faster than real time has quotas that do. Pure. See docs/concepts/limits.md.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from wire.topics import Peer

MAX_CLIENTS = 50_000
CONNECT_COST = 5
"""Of CONNECT, in messages: signatures are checked."""
FILTER_COST = 5
"""Of a topic filter in SUBSCRIBE or UNSUBSCRIBE: all routes are found anew."""
RETAINED_BYTES_MAX = 16 * 1024
"""Of a message that a home leaves behind."""
_HOME_ROLES = frozenset({"consumer", "producer", "prosumer"})


@dataclass(frozen=True, slots=True)
class Rates:
    """What a client may say for ever, and at once."""

    messages_per_s: float
    messages_burst: float
    bytes_per_s: float
    bytes_burst: float


ADDRESS = Rates(4, 100, 2 * 1024, 128 * 1024)
"""A trading address; a home has 16 at work at a time. It sends a few transactions per slot."""
HOME = Rates(20, 400, 64 * 1024, 2 * 1024 * 1024)
"""A home's own lane: readings of some days without a connection, requests."""
SERVICE = Rates(2_000, 20_000, 16 * 1024 * 1024, 256 * 1024 * 1024)
"""Validators and the operator's services."""
STRANGER = Rates(2, 40, 16 * 1024, 256 * 1024)
"""A client without a credential: it may ask to be enrolled."""
STRANGERS = Rates(100, 2_000, 1024 * 1024, 16 * 1024 * 1024)
"""All of them together."""
RESTING = Rates(50, 1_000, 64 * 1024, 2 * 1024 * 1024)
"""All addresses together that are not at work."""
_ALL_STRANGERS, _ALL_RESTING = "", "resting"
"""No identity has such a name."""


def is_service(peer: Peer) -> bool:
    """True for those with a role that no home has."""
    return bool(peer.roles - _HOME_ROLES - {"address"})


def rates_of(peer: Peer) -> Rates:
    """What a peer may say."""
    if not peer.roles:
        return STRANGER
    if is_service(peer):
        return SERVICE
    return ADDRESS if "address" in peer.roles else HOME


class Quota:
    """
    The buckets of all clients; the longest silent is forgotten first.

    Args:
        limited: False: everybody may say what they like (benchmarks)
    """

    def __init__(self, *, limited: bool = True) -> None:
        self._limited = limited
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def charge(
        self,
        peer: Peer,
        messages: float,
        size_bytes: int,
        real_s: float,
        market_s: float,
        *,
        resting: bool = False,
    ) -> float:
        """
        Take from a peer's buckets, below zero if need be.

        Args:
            messages: number of messages, or what costs as much
            size_bytes: of them together
            real_s, market_s: now, by the monotonic and the market's clock
            resting: an address that is not at work

        Returns:
            Seconds for which nothing more should be read from it; 0 while there is something left.
        """
        if not self._limited:
            return 0.0
        wait_s = self._take(peer.id, rates_of(peer), messages, size_bytes, real_s, market_s)
        if resting or not peer.roles:
            name, rates = (_ALL_RESTING, RESTING) if resting else (_ALL_STRANGERS, STRANGERS)
            shared_s = self._take(name, rates, messages, size_bytes, real_s, market_s)
            wait_s = max(wait_s, shared_s)
        return wait_s

    def debt_s(self, name: str, real_s: float, market_s: float) -> float:
        """Seconds for which an identity's own buckets are below zero; 0 if they are not."""
        bucket = self._buckets.get(name)
        if bucket is None:
            return 0.0
        bucket.fill(real_s, market_s)
        return bucket.debt_s

    def _take(
        self, name: str, rates: Rates, messages: float, size: int, real_s: float, market_s: float
    ) -> float:
        bucket = self._buckets.pop(name, None)
        if bucket is None:
            bucket = _Bucket(rates, rates.messages_burst, rates.bytes_burst, real_s, market_s)
        bucket.rates = rates
        bucket.fill(real_s, market_s)
        bucket.messages -= messages
        bucket.bytes -= size
        self._buckets[name] = bucket
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return bucket.debt_s


@dataclass(slots=True)
class _Bucket:
    rates: Rates
    messages: float
    bytes: float
    real_s: float
    market_s: float

    @property
    def debt_s(self) -> float:
        """How long it takes until neither is below zero."""
        rates = self.rates
        return max(0.0, -self.messages / rates.messages_per_s, -self.bytes / rates.bytes_per_s)

    def fill(self, real_s: float, market_s: float) -> None:
        """What has come back since it was last looked at, and not more than fits."""
        rates = self.rates
        passed_s = max(0.0, real_s - self.real_s, market_s - self.market_s)
        self.real_s, self.market_s = real_s, market_s
        self.messages = min(rates.messages_burst, self.messages + passed_s * rates.messages_per_s)
        self.bytes = min(rates.bytes_burst, self.bytes + passed_s * rates.bytes_per_s)
