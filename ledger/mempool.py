"""
The mempool: transactions that wait for a block, and the bodies of those in proposals.

A transaction is parsed and its signature verified once, here; whoever gets it from here may rely on
that. Bounds: 10,000 transactions, 16 MiB, 256 of one sender. When it is full, whoever takes up the
most room gives up its last ones for a sender that would take up less; if that is the sender itself,
it is refused. So nobody can fill it for the others (docs/concepts/limits.md).

`take` gives each sender's transactions in nonce order without a gap. Senders take turns, also from
block to block: whoever had a transaction executed goes to the end of the line. The first turn is
for those that ask for no more than an equal part of the block (`Budget.share`), so that large
bundles of few senders keep nobody waiting; no sender has more than `SENDER_OPERATIONS` in a block,
so that a block is quick to execute unless many have something to say. One that has expired holds up
its sender's later ones only: they follow when it has been dropped and signed again.

Beside the pool stands a bounded cache of bodies that were fetched by id for somebody else's
proposal: a sender that signs two transactions with one nonce must not keep a node from checking a
block.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from sortedcontainers import SortedSet

from ledger.genesis import Genesis
from wire.envelope import check_signature
from wire.errors import (
    ExpiredError,
    Refusal,
    ReplayedError,
    TopicError,
    UnknownSenderError,
    WireError,
)
from wire.keys import Domain, is_id
from wire.transactions import Transaction, parse_transaction

MAX_TRANSACTIONS = 10_000
MAX_BYTES = 16 * 1024 * 1024
MAX_PER_SENDER = 256
MAX_FETCHED_BYTES = 16 * 1024 * 1024
SENDER_OPERATIONS = 128
"""Of one sender in a block that we propose; it has a turn in the next one again."""


class WrongNonceError(WireError):
    """A nonce that is used, taken by another waiting transaction, or too far ahead."""

    refusal: ClassVar[Refusal] = Refusal.WRONG_NONCE


class MempoolFullError(WireError):
    """There is no room; try again later."""

    refusal: ClassVar[Refusal] = Refusal.MEMPOOL_FULL


class RateLimitedError(WireError):
    """This sender has too many transactions waiting."""

    refusal: ClassVar[Refusal] = Refusal.RATE_LIMITED


class Chain(Protocol):
    """What the mempool asks the ledger (`ledger.execution.Ledger`)."""

    genesis: Genesis

    def next_nonce(self, address: str) -> int:
        """The nonce the next executed transaction of an address must have."""
        ...

    def sender_key(self, tx: Transaction) -> bytes | None:
        """The key that must have signed a transaction."""
        ...

    def check_admission(self, tx: Transaction, now_ms: int) -> Refusal | None:
        """Why a transaction is of no use any more, or None."""
        ...

    def check_turn(self, tx: Transaction, now_ms: int) -> Refusal | None:
        """The same, of one that is in no block."""
        ...


_ERRORS: dict[Refusal, type[WireError]] = {
    Refusal.WRONG_NONCE: WrongNonceError,
    Refusal.REPLAYED: ReplayedError,
    Refusal.EXPIRED: ExpiredError,
}


@dataclass(frozen=True, slots=True)
class Budget:
    """What may go into one block: executing it must not take long, and it must be fetchable."""

    transactions: int = 512
    operations: int = 2048
    size_bytes: int = 1024 * 1024

    def less(self, tx: Transaction) -> Budget:
        """What is left beside a transaction; below zero when there was no room."""
        return Budget(
            self.transactions - 1,
            self.operations - len(tx.operations),
            self.size_bytes - len(tx.raw),
        )

    @property
    def exceeded(self) -> bool:
        """True when there was no room."""
        return min(self.transactions, self.operations, self.size_bytes) < 0

    @property
    def share(self) -> Budget:
        """One of as many equal parts as there may be transactions."""
        parts = max(1, self.transactions)
        return Budget(1, self.operations // parts, self.size_bytes // parts)


class Mempool:
    """
    Transactions waiting at one node.

    Args:
        chain: the ledger
        max_transactions, max_bytes, max_per_sender: bounds
    """

    def __init__(
        self,
        chain: Chain,
        *,
        max_transactions: int = MAX_TRANSACTIONS,
        max_bytes: int = MAX_BYTES,
        max_per_sender: int = MAX_PER_SENDER,
        max_fetched_bytes: int = MAX_FETCHED_BYTES,
    ) -> None:
        self._chain = chain
        self._max_transactions = max_transactions
        self._max_bytes = max_bytes
        self._max_per_sender = max_per_sender
        self._max_fetched_bytes = max_fetched_bytes
        self._by_id: dict[bytes, Transaction] = {}
        self._queues: dict[str, dict[int, Transaction]] = {}
        """Per sender: nonce to transaction. Whoever waits longest for its turn comes first."""
        self._bytes = 0
        self._weight_least = max(1, max_bytes // max_transactions)
        self._weights: dict[str, int] = {}
        self._heaviest: SortedSet[tuple[int, str]] = SortedSet()
        """Senders by the room they take up (`_weight`)."""
        self._fetched: OrderedDict[bytes, Transaction] = OrderedDict()
        self._fetched_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def size_bytes(self) -> int:
        """Bytes of the waiting transactions."""
        return self._bytes

    def add(self, raw: bytes, now_ms: int, sender: str | None = None) -> Transaction:
        """
        Check a transaction and let it wait for a block.

        One that is waiting already is returned as it is (the broker delivers at least once).

        Args:
            raw: as published
            now_ms: market time
            sender: on whose topic it came; it must be its sender's

        Raises:
            WireError: by name; nothing was kept.
        """
        tx = parse_transaction(raw)
        if (waiting := self._by_id.get(tx.txid)) is not None:
            return waiting
        self._check_use(tx, now_ms)
        self._check_room(tx)
        self._check_signature(tx)
        if sender is not None and tx.sender != sender:
            raise TopicError("transaction on another's topic", topic=sender, sender=tx.sender)
        self._make_room(tx)
        self._by_id[tx.txid] = tx
        self._queues.setdefault(tx.sender, {})[tx.nonce] = tx
        self._bytes += len(raw)
        self._weigh(tx.sender, self._weight(tx))
        return tx

    def add_fetched(self, raw: bytes) -> Transaction:
        """
        Check a body that was fetched for a proposal, and keep it aside.

        It is not proposed from here, and its nonce and expiry are not judged: execution will.

        Raises:
            WireError: malformed, of an unknown sender, or badly signed.
        """
        tx = parse_transaction(raw)
        if (known := self.get(tx.txid)) is not None:
            return known
        self._check_signature(tx, fetched=True)
        self._put_aside(tx)
        return tx

    def take(
        self,
        now_ms: int,
        budget: Budget,
        before: Iterable[bytes] = (),
    ) -> list[Transaction]:
        """
        Transactions for a block.

        Args:
            now_ms: the block's market time
            budget: what fits into it
            before: txids of blocks below it that are not executed here yet

        Returns:
            Transactions that may be executed then, in an order in which each has the nonce its
            sender needs.
        """
        nonces = self._nonces_after(before)
        # whoever is served in a block that is not executed yet has had its turn
        line = sorted(self._queues, key=nonces.__contains__)
        turns = deque((s, nonces.get(s) or self._chain.next_nonce(s)) for s in line)
        taken: list[Transaction] = []
        share, large, served = budget.share, deque[tuple[str, int]](), deque[tuple[str, int]]()
        spent: Counter[str] = Counter()
        first = True
        while turns and budget.transactions:
            sender, nonce = turns.popleft()
            tx = self._queues[sender].get(nonce)
            if tx is not None and self._chain.check_turn(tx, now_ms) is None:
                left = budget.less(tx)
                if first and share.less(tx).exceeded:
                    large.append((sender, nonce))
                elif spent[sender] + len(tx.operations) > SENDER_OPERATIONS:
                    pass
                elif not left.exceeded:
                    budget = left
                    spent[sender] += len(tx.operations)
                    taken.append(tx)
                    served.append((sender, nonce + 1))
            if not turns:
                turns, large, served, first = large + served, deque(), deque(), False
        return taken

    def has_work(self, now_ms: int) -> bool:
        """True when something that waits here may be executed on top of the executed state."""
        return any(
            tx is not None and self._chain.check_turn(tx, now_ms) is None
            for sender, queue in self._queues.items()
            for tx in (queue.get(self._chain.next_nonce(sender)),)
        )

    def _nonces_after(self, txids: Iterable[bytes]) -> dict[str, int]:
        """What senders of these transactions need next, as far as the bodies are here."""
        nonces: dict[str, int] = {}
        for txid in txids:
            tx = self.get(txid)
            if tx is not None:
                nonces[tx.sender] = max(nonces.get(tx.sender, 0), tx.nonce + 1)
        return nonces

    def get(self, txid: bytes) -> Transaction | None:
        """A transaction that waits here or was fetched."""
        return self._by_id.get(txid) or self._fetched.get(txid)

    def missing(self, txids: Iterable[bytes]) -> list[bytes]:
        """Those whose bodies are not here, in their order."""
        return [txid for txid in txids if txid not in self._by_id and txid not in self._fetched]

    def remove(self, txids: Iterable[bytes]) -> None:
        """Forget executed transactions, and those whose nonce was used by another."""
        senders = set()
        for txid in txids:
            tx = self.get(txid)
            if tx is not None:
                senders.add(tx.sender)
            self._forget(txid)
        for sender in senders:
            next_nonce = self._chain.next_nonce(sender)
            for nonce, tx in list(self._queues.get(sender, {}).items()):
                if nonce < next_nonce:
                    self._forget(tx.txid)
            if sender in self._queues:  # it had its turn
                self._queues[sender] = self._queues.pop(sender)

    def drop_useless(self, now_ms: int, spare: Container[bytes] = ()) -> list[Transaction]:
        """Forget what has expired or whose nonce is used, but for `spare`; return what it was."""
        dropped = [
            tx
            for tx in self._by_id.values()
            if tx.txid not in spare and self._chain.check_turn(tx, now_ms) is not None
        ]
        for tx in dropped:
            self._forget(tx.txid)
        return dropped

    def _check_use(self, tx: Transaction, now_ms: int) -> None:
        refusal = self._chain.check_admission(tx, now_ms)
        if refusal is not None:
            raise _ERRORS[refusal](
                "not for a block any more", sender=tx.sender[:64], nonce=tx.nonce
            )
        expected = self._chain.next_nonce(tx.sender)
        if tx.nonce >= expected + self._max_per_sender:
            raise WrongNonceError("nonce is too far ahead", nonce=tx.nonce, expected=expected)

    def _check_room(self, tx: Transaction) -> None:
        queue = self._queues.get(tx.sender, {})
        if tx.nonce in queue:
            raise WrongNonceError("another transaction waits with this nonce", nonce=tx.nonce)
        if len(queue) >= self._max_per_sender:
            raise RateLimitedError("too many waiting", limit=self._max_per_sender)
        if self._is_full_for(tx) and self._giver(tx) is None:
            raise MempoolFullError("no room", waiting=len(self._by_id), size=self._bytes)

    def _is_full_for(self, tx: Transaction) -> bool:
        full = len(self._by_id) >= self._max_transactions
        return full or self._bytes + len(tx.raw) > self._max_bytes

    def _giver(self, tx: Transaction) -> str | None:
        """Who takes up more room than the sender of `tx` would; the most of all."""
        if not self._heaviest:
            return None
        weight, sender = self._heaviest[-1]
        would = self._weights.get(tx.sender, 0) + self._weight(tx)
        return sender if sender != tx.sender and weight > would else None

    def _make_room(self, tx: Transaction) -> None:
        """
        Let those who take up the most room give some.

        What they give up is put aside, not forgotten: it may be in a block that is being voted on.

        Raises:
            MempoolFullError: nobody takes up more than the sender would.
        """
        while self._is_full_for(tx):
            giver = self._giver(tx)
            if giver is None:
                raise MempoolFullError("no room", waiting=len(self._by_id), size=self._bytes)
            last = self._queues[giver][max(self._queues[giver])]
            self._forget(last.txid)
            self._put_aside(last)

    def _weight(self, tx: Transaction) -> int:
        """Room that a transaction takes up: its bytes, or its part of the number of them."""
        return max(len(tx.raw), self._weight_least)

    def _weigh(self, sender: str, more: int) -> None:
        before = self._weights.pop(sender, 0)
        self._heaviest.discard((before, sender))
        if before + more > 0:
            self._weights[sender] = before + more
            self._heaviest.add((before + more, sender))

    def _put_aside(self, tx: Transaction) -> None:
        self._fetched[tx.txid] = tx
        self._fetched_bytes += len(tx.raw)
        while self._fetched_bytes > self._max_fetched_bytes and len(self._fetched) > 1:
            _, oldest = self._fetched.popitem(last=False)
            self._fetched_bytes -= len(oldest.raw)

    def _check_signature(self, tx: Transaction, *, fetched: bool = False) -> None:
        if not is_id(tx.sender):
            raise UnknownSenderError("not an address", sender=tx.sender[:64])
        public = self._chain.sender_key(tx) or self._waiting_key(tx.sender)
        if public is None and fetched:
            public = self._fetched_key(tx.sender)
        if public is None:
            raise UnknownSenderError("register the address first", sender=tx.sender)
        check_signature(tx.envelope, tx.signed, public, Domain.TX, self._chain.genesis.chain_id)

    def _waiting_key(self, sender: str) -> bytes | None:
        """The key of a sender whose registration still waits here."""
        first = self._queues.get(sender, {}).get(self._chain.next_nonce(sender))
        return None if first is None else self._chain.sender_key(first)

    def _fetched_key(self, sender: str) -> bytes | None:
        """The same, where the registration was fetched too."""
        for tx in reversed(self._fetched.values()):
            if tx.sender == sender and (key := self._chain.sender_key(tx)) is not None:
                return key
        return None

    def _forget(self, txid: bytes) -> None:
        fetched = self._fetched.pop(txid, None)
        if fetched is not None:
            self._fetched_bytes -= len(fetched.raw)
        tx = self._by_id.pop(txid, None)
        if tx is None:
            return
        self._bytes -= len(tx.raw)
        self._weigh(tx.sender, -self._weight(tx))
        queue = self._queues[tx.sender]
        del queue[tx.nonce]
        if not queue:
            del self._queues[tx.sender]
