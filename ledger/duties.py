"""
What a validator itself has to say on the chain: evidence against others, and its seeds.

A validator is a sender like any other; its transactions carry these operations, one transaction at
a time. Evidence is kept on the disk until it has been judged, so that a crash does not save the
guilty. Seeds (`ledger.contracts.seed`) are opened once per epoch, and only in an epoch in which
somebody else had something to say: an idle chain must not keep itself busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from ledger import types
from ledger.contracts import keys
from ledger.contracts.evidence import evidence_operation
from ledger.contracts.seed import COMMIT_EPOCHS
from ledger.execution import Ledger
from ledger.membership import Status
from ledger.onion import Onion
from runtime.ports import Rng
from wire import topics
from wire.envelope import new_req_id
from wire.errors import WireError
from wire.keys import SigningKey, from_text, to_text
from wire.transactions import Transaction, make_transaction

if TYPE_CHECKING:
    from ledger.node import Node

LIFE_SLOTS = 4
ONION_LABEL = "hearthgrid seed onion"
RESEND_S = 3.0
MAX_ACCUSATIONS = 16
"""Operations in one transaction."""

log = structlog.get_logger(component="ledger")


def onion_of(key: SigningKey) -> Onion:
    """The onion of a validator: made from its key, so there is nothing more to keep safe."""
    return Onion(key.derive(ONION_LABEL).seed)


def seed_operation(ledger: Ledger, validator: str, onion: Onion) -> dict[str, Any] | None:
    """The `commit-seed` or `reveal-seed` that is due in the running epoch, if any."""
    row = ledger.query(keys.validator(validator))
    if row is None or row["status"] in (Status.CANDIDATE, Status.BANNED):
        return None
    layer = onion.under(from_text(row["tip"])) if row["tip"] else None
    if layer is None:
        return {"op": "commit-seed", "tip": to_text(onion.tip)}
    too_soon = ledger.epoch < row["tipEpoch"] + COMMIT_EPOCHS
    if too_soon or row["revealEpoch"] >= ledger.epoch:
        return None
    return {"op": "reveal-seed", "preimage": to_text(layer)}


class Duties:
    """Speaks on the chain for a node that is a validator."""

    def __init__(self, node: Node, rng: Rng) -> None:
        self._node = node
        self._rng = rng
        self._onion = onion_of(node.key)
        self._flight: Transaction | None = None
        self._sent_s = 0.0
        self._eventful = False

    def saw_block(self, header: types.Header, senders: list[str]) -> None:
        """A block was executed: note whether somebody else than validators spoke in it."""
        validators = self._node.epochs.validators
        self._eventful = not header.seal and (
            self._eventful or any(validators.index(sender) is None for sender in senders)
        )

    def accuse(self, first: types.Vote, second: types.Vote) -> None:
        """Keep evidence until it has been judged."""
        if self._node.store.keep_evidence(first, second):
            log.warning("evidence", validator=first.validator, epoch=first.epoch, view=first.view,
                        kinds=[first.kind.name, second.kind.name])  # fmt: skip

    def tend(self) -> None:
        """Send what is due, or again what is not executed yet. Cheap; called every second."""
        node = self._node
        flight = self._flight
        if flight is not None:
            if node.ledger.next_nonce(node.key.id) > flight.nonce:
                self._landed(flight)
            elif node.ledger.check_admission(flight, node.clock.now_ms()) is not None:
                self._flight = None
            elif node.clock.monotonic_s() - self._sent_s >= RESEND_S:
                self._send(flight)
            return
        operations = self._due()
        if operations:
            self._flight = self._transaction(operations)
            self._send(self._flight)

    def _due(self) -> list[dict[str, Any]]:
        node = self._node
        if node.ledger.query(keys.validator(node.key.id)) is None:
            return []
        found = node.store.evidence(judged=False)[:MAX_ACCUSATIONS]
        due: list[dict[str, Any]] = [evidence_operation(one, other) for one, other, _ in found]
        if self._eventful:
            seed = seed_operation(node.ledger, node.key.id, self._onion)
            due += [seed] if seed is not None else []
        return due

    def _transaction(self, operations: list[dict[str, Any]]) -> Transaction:
        node = self._node
        now_ms = node.clock.now_ms()
        return make_transaction(
            node.key,
            node.genesis.chain_id,
            node.ledger.next_nonce(node.key.id),
            node.genesis.grid.slot_at(now_ms) + LIFE_SLOTS,
            operations,
            new_req_id(node.clock.wall_ms(), self._rng.bytes(10)),
            now_ms,
        )

    def _send(self, transaction: Transaction) -> None:
        node = self._node
        self._sent_s = node.clock.monotonic_s()
        try:
            node.mempool.add(transaction.raw, node.clock.now_ms())
        except WireError as error:
            log.info("own transaction refused", reason=error.refusal.value)
            self._flight = None
            return
        topic = topics.build(node.genesis.market, topics.TX, node.key.id)
        node.bus.publish_soon(topic, transaction.raw)
        node.look()

    def _landed(self, flight: Transaction) -> None:
        """What was judged, in whichever way, is not said again."""
        self._flight = None
        if not self._node.ledger.is_executed(flight.txid):
            return
        for operation in flight.operations:
            if operation["op"] == "evidence":
                vote = types.decode(types.Vote, from_text(operation["first"]))
                self._node.store.evidence_judged(vote.epoch, vote.validator)
