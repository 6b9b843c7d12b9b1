"""
A persistent outbox for operations on the ledger: nothing is lost, nothing is done twice.

Operations enter under a key of the caller's (`fund/<address>`) and are remembered by it for ever,
so asking again after a crash changes nothing. They leave in bundles, one transaction in flight at a
time, under consecutive nonces:

    waiting ──► in flight (signed, stored, then sent; sent again until it is final) ──► done

Two versions of one bundle must never both be executed. So a transaction that expired unseen is
signed again under the *same* nonce, which only one version can use, and earlier versions are
remembered. The ledger is asked what became of them when an event may be lost: a version that was
executed ends the flight; only when none was and none ever can be (another transaction of ours, say
of a restored backup, has used the nonce) its operations leave again, under a new nonce.

An outbox that finds itself under another key than before lets go of what waited: it was for the
earlier address, whose nonces and whose affairs are none of the new one's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog

from runtime.ports import Bus, BusDownError, Clock, Rng, Store
from wire import topics
from wire.canonical import decode, encode
from wire.envelope import new_req_id
from wire.errors import Refusal
from wire.keys import SigningKey
from wire.slots import SlotGrid
from wire.transactions import MAX_OPERATIONS, Transaction, make_transaction, parse_transaction

RESEND_S = 3.0
SENDS_BEFORE_ASKING = 4
"""Sent so often without an event, a transaction may be final and its event lost."""
MAX_BUNDLE_BYTES = 48 * 1024
LIFE_SLOTS = 16
"""How long a transaction may wait for a block [slots]."""

NonceSource = Callable[[], Awaitable[int]]
"""Asks the ledger for the sender's next nonce."""
ReceiptSource = Callable[[Transaction], Awaitable[dict[str, Any]]]
"""Asks the ledger what became of a transaction: `{"code", "codes"}` when it was executed or never
can be (WRONG_NONCE), `{}` while it may be (`ledger.client.LedgerClient.receipt`)."""
Finished = Callable[[str, dict[str, Any], str], None]
"""Told the key, the operation and its code when a transaction is final."""

EARLIER = "flight/earlier/"
OTHER_SENDER = "OTHER_SENDER"
"""What became of an operation that waited when the sender changed."""
NEVER_EXECUTED = (Refusal.WRONG_NONCE.value, Refusal.EXPIRED.value)

log = structlog.get_logger(component="outbox")


@dataclass(slots=True)
class _Flight:
    transaction: Transaction
    keys: list[str]
    earlier: list[Transaction] = field(default_factory=list)
    """Expired versions of it, under the same nonce."""
    sent_s: float = float("-inf")
    """When it was last sent, in the event loop's time."""
    sends: int = 0
    """How often the newest version was sent since the ledger was asked about it last."""

    @property
    def versions(self) -> list[Transaction]:
        """Newest first."""
        return [self.transaction, *reversed(self.earlier)]


class OperationOutbox:
    """
    Sends one sender's operations.

    Args:
        store: opened on a file of its own (synchronous=FULL), or a part of one
        key: the sender's key; its id is the address
        next_nonce: asked once before the first transaction, and after WRONG_NONCE
        receipt: asked when an event may be lost
        beat: called whenever the sending loop comes round
        keys: where operations are remembered by their keys, in the same file as `store`, when
            several senders share them
        spread_s: what is found waiting at a start leaves within so long [market s]
        dated: the time that a transaction names in its date and `reqId`, of market time [ms]; by
            default the clocks' own
        on_done: told about every operation that became final, before that is written down (after a
            crash, or when it raises, it is told again)
    """

    def __init__(
        self,
        store: Store,
        key: SigningKey,
        market: str,
        chain_id: str,
        grid: SlotGrid,
        bus: Bus,
        clock: Clock,
        rng: Rng,
        next_nonce: NonceSource,
        receipt: ReceiptSource,
        on_done: Finished | None = None,
        *,
        beat: Callable[[], None] = lambda: None,
        keys: Store | None = None,
        spread_s: float = 0.0,
        dated: Callable[[int], int] | None = None,
    ) -> None:
        self._store, self._keys = store, keys or store
        self._key, self._chain_id, self._grid = key, chain_id, grid
        self._bus, self._clock, self._rng = bus, clock, rng
        self._next_nonce, self._receipt = next_nonce, receipt
        self._on_done = on_done
        self._beat = beat
        self._topic = topics.build(market, topics.TX, key.id)
        self._changed = asyncio.Event()
        self._take_over()
        self._flight = self._stored_flight()
        self._number = self._last_number()
        self._dated = dated
        self._not_before_s: dict[str, float] = {}
        """When what is kept back may leave, by key, in process time: a clock that is set back must
        keep nothing back."""
        self._keep_back([str(decode(raw)["key"]) for _, raw in self._store.scan("wait/")], spread_s)

    def add(self, operations: list[tuple[str, dict[str, Any]]], spread_s: float = 0.0) -> int:
        """
        Put operations in, each under its key, all of them durable when this returns.

        Args:
            spread_s: they leave together, at a random moment within so long [market s]

        Returns:
            How many were new; those whose key is known are left as they are.
        """
        fresh = [(key, op) for key, op in operations if self._keys.get("key/" + key) is None]
        if fresh:
            self._keep_back([key for key, _ in fresh], spread_s)
            with self._store.atomic():
                for key, operation in fresh:
                    self._number += 1
                    self._keys.put("key/" + key, b"waiting")
                    row = encode({"key": key, "operation": operation})
                    self._store.put(f"wait/{self._number:015d}", row)
            self._changed.set()
        return len(fresh)

    def state_of(self, key: str) -> str:
        """`waiting`, the code it became final with (`OK`, …), or empty: never heard of."""
        value = self._keys.get("key/" + key)
        return value.decode() if value is not None else ""

    @property
    def waiting(self) -> int:
        """Operations that are not final yet."""
        return sum(1 for _ in self._store.scan("wait/"))

    async def take_event(self, _height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events: looks for the fate of our transaction."""
        flight = self._flight
        if event.get("event") != "tx" or flight is None:
            return
        if any(event.get("txid") == version.txid.hex() for version in flight.versions):
            self._take_fate(flight, event)
            self._changed.set()

    async def run(self) -> None:
        """Send for ever; cancel to stop. What is not final stays for the next start."""
        while True:
            self._beat()
            try:
                if self._flight is None:
                    await self._depart()
                if self._flight is not None and self._resend_in_s() <= 0:
                    await self._send(self._flight)
            except (BusDownError, TimeoutError, ConnectionError) as error:
                log.debug("cannot send now", reason=str(error))
            except Exception:
                # a full disk, say: what is in here must go out when it is over
                log.exception("cannot send")
                await asyncio.sleep(RESEND_S)
            self._changed.clear()
            kept_s = self._kept_back_s()
            if self._flight is None and kept_s == 0.0:
                await asyncio.sleep(0.2)
                continue
            # not wait_for: before Python 3.12 it may swallow the cancellation that stops us
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._resend_in_s() if self._flight else kept_s):
                    await self._changed.wait()

    def _keep_back(self, keys: list[str], spread_s: float) -> None:
        """Let operations wait for a moment that nobody can foresee."""
        if spread_s > 0:
            wait_s = self._rng.uniform(0.0, spread_s) / self._clock.speed
            self._not_before_s |= dict.fromkeys(keys, self._clock.monotonic_s() + wait_s)

    def _is_kept_back(self, key: str) -> bool:
        moment_s = self._not_before_s.get(key)
        return moment_s is not None and self._clock.monotonic_s() < moment_s

    def _kept_back_s(self) -> float:
        """Real time until something may leave: 0 when it may now, a pause when nothing waits."""
        keys = [decode(raw)["key"] for _, raw in self._store.scan("wait/")]
        if not all(map(self._is_kept_back, keys)):
            return 0.0
        moments = [self._not_before_s[key] - self._clock.monotonic_s() for key in keys]
        return max(0.0, min([RESEND_S, *moments]))

    def abandon(self, code: str) -> None:
        """Send nothing any more: what waits has become final with a code of the caller's."""
        with self._store.atomic():
            self._forget_flight()
            for name, raw in list(self._store.scan("wait/")):
                self._store.delete(name)
                self._keys.put("key/" + decode(raw)["key"], code.encode())
        self._flight = None

    def _take_over(self) -> None:
        """Let go of an earlier sender's nonce and operations."""
        before = self._store.get("sender")
        if before == self._key.id.encode():
            return
        with self._store.atomic():
            self._store.put("sender", self._key.id.encode())
            if before is None:
                return
            self._forget_flight()
            self._store.delete("nonce")
            for name, raw in list(self._store.scan("wait/")):
                self._store.delete(name)
                self._keys.put("key/" + decode(raw)["key"], OTHER_SENDER.encode())
        log.warning("another sender: what waited for the earlier one is dropped")

    def _resend_in_s(self) -> float:
        """Real time until the flight is sent again: what is added meanwhile must not hasten it."""
        assert self._flight is not None
        return max(0.0, self._flight.sent_s + RESEND_S - asyncio.get_running_loop().time())

    async def _send(self, flight: _Flight) -> None:
        flight.sent_s = asyncio.get_running_loop().time()
        expired = self._grid.slot_at(self._clock.now_ms()) > flight.transaction.expires_slot + 1
        if expired or flight.sends >= SENDS_BEFORE_ASKING:
            await self._ask(flight)
            if self._flight is not flight:
                return
            flight.sends = 0
        if expired:
            self._sign_again(flight)
        await self._bus.publish(self._topic, flight.transaction.raw)
        flight.sends += 1

    async def _ask(self, flight: _Flight) -> None:
        """
        Ask the ledger what became of a flight's versions.

        "Never" is sound whichever validators are behind: one honest node among those that agree has
        seen the nonce pass, and in its state, at that height, the version had no receipt. So when
        every version is "never", none of them is in any block below, nor can be in one above.
        """
        for version in flight.versions:
            fate = await self._receipt(version)
            if self._flight is not flight:
                return  # its event has come meanwhile
            if not fate:
                return  # it may still be executed: go on sending
            if fate.get("code") not in NEVER_EXECUTED:
                self._land_as(flight, fate)
                return
        self._back_to_waiting()

    def _take_fate(self, flight: _Flight, event: dict[str, Any]) -> None:
        """A version of the flight is final."""
        if event.get("code", "OK") not in NEVER_EXECUTED:
            self._land_as(flight, event)
        elif not flight.earlier:
            self._back_to_waiting()
        else:
            # perhaps because an earlier version was executed, unseen by us: ask at once
            flight.sends, flight.sent_s = SENDS_BEFORE_ASKING, float("-inf")

    def _land_as(self, flight: _Flight, fate: dict[str, Any]) -> None:
        code, codes = str(fate.get("code", "OK")), fate.get("codes", [])
        if len(codes) == len(flight.keys):
            self._land(flight, [str(c) for c in codes])
        else:
            self._land(flight, [code] * len(flight.keys))

    async def _depart(self) -> None:
        """Bundle what is waiting, sign it, and store it before it is sent."""
        rows: list[dict[str, Any]] = []
        size = 0
        for _, raw in self._store.scan("wait/"):
            row = decode(raw)
            if self._is_kept_back(row["key"]):
                continue
            size += len(raw)
            if len(rows) == MAX_OPERATIONS or (rows and size > MAX_BUNDLE_BYTES):
                break
            rows.append(row)
        if not rows:
            return
        stored = self._store.get("nonce")
        nonce = int(stored) if stored is not None else await self._next_nonce()
        transaction = self._sign(nonce, [row["operation"] for row in rows])
        flight = _Flight(transaction, [row["key"] for row in rows])
        with self._store.atomic():
            self._store.put("nonce", str(nonce).encode())
            self._store.put("flight/keys", encode(flight.keys))
            self._store.put("flight/raw", transaction.raw)
        self._flight = flight

    def _sign_again(self, flight: _Flight) -> None:
        """Another version of a flight that expired, under the same nonce; stored before sent."""
        old = flight.transaction
        again = self._sign(old.nonce, list(old.operations))
        with self._store.atomic():
            self._store.put(f"{EARLIER}{len(flight.earlier):06d}", old.raw)
            self._store.put("flight/raw", again.raw)
        flight.earlier.append(old)
        flight.transaction = again

    def _sign(self, nonce: int, operations: list[dict[str, Any]]) -> Transaction:
        now_ms = self._clock.now_ms()
        dated_ms = now_ms if self._dated is None else self._dated(now_ms)
        asked_ms = self._clock.wall_ms() if self._dated is None else dated_ms
        return make_transaction(
            self._key,
            self._chain_id,
            nonce,
            self._grid.slot_at(now_ms) + LIFE_SLOTS,
            operations,
            new_req_id(asked_ms, self._rng.bytes(10)),
            dated_ms,
        )

    def _land(self, flight: _Flight, codes: list[str]) -> None:
        """Tell the caller how a flight ended, and write it down."""
        landed = dict(zip(flight.keys, codes, strict=True))
        if self._on_done is not None:
            operations = flight.transaction.operations
            for (key, code), operation in zip(landed.items(), operations, strict=True):
                self._on_done(key, operation, code)
        for key in landed:
            self._not_before_s.pop(key, None)
        with self._store.atomic():
            self._forget_flight()
            self._store.put("nonce", str(flight.transaction.nonce + 1).encode())
            for name, raw in list(self._store.scan("wait/")):
                key = decode(raw)["key"]
                if key in landed:
                    self._store.delete(name)
                    self._keys.put("key/" + key, landed[key].encode())
        self._flight = None

    def _back_to_waiting(self) -> None:
        """The flight will never land: sign its operations anew, under the ledger's nonce."""
        with self._store.atomic():
            self._forget_flight()
            self._store.delete("nonce")
        self._flight = None

    def _forget_flight(self) -> None:
        self._store.delete("flight/keys")
        self._store.delete("flight/raw")
        for name, _ in list(self._store.scan(EARLIER)):
            self._store.delete(name)

    def _stored_flight(self) -> _Flight | None:
        raw, keys = self._store.get("flight/raw"), self._store.get("flight/keys")
        if raw is None or keys is None:
            return None
        earlier = [parse_transaction(old) for _, old in self._store.scan(EARLIER)]
        return _Flight(parse_transaction(raw), decode(keys), earlier)

    def _last_number(self) -> int:
        last = 0
        for name, _ in self._store.scan("wait/"):
            last = max(last, int(name.removeprefix("wait/")))
        return last
