"""
What a validator itself has to say on the chain: that it comes or goes, evidence, consent, seeds,
and the CPF of its home.

It asks for a seat when its folder holds a licence of the CSM-DB (`licence.json`), and gives it up
when the folder holds a file `leave`; it agrees to changes of the rules that its operator wrote down
(`ledger.consent`), and says what its home's meter attested (`ledger.cpf_inbox`). A validator is a
sender like any other; its transactions carry these operations, one transaction at a time. Evidence
is kept on the disk until it has been judged, so that a crash does not save the guilty. Seeds
(`ledger.contracts.seed`) are opened once per epoch, and only in an epoch in which somebody else had
something to say: an idle chain must not keep itself busy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from ledger import types
from ledger.consent import Consent
from ledger.contracts import keys
from ledger.contracts.evidence import evidence_operation
from ledger.contracts.seed import COMMIT_EPOCHS
from ledger.cpf_inbox import CpfInbox
from ledger.execution import Ledger
from ledger.membership import Status
from ledger.onion import LAYERS, Onion
from runtime.ports import Rng
from wire import topics
from wire.certificates import ValidatorLicence, dump, parse
from wire.envelope import new_req_id
from wire.errors import WireError
from wire.keys import SigningKey, from_text, to_text
from wire.transactions import Transaction, make_transaction

if TYPE_CHECKING:
    from ledger.node import Node

LICENCE_FILE, LEAVE_FILE = "licence.json", "leave"
LIFE_SLOTS = 4
ONION_LABEL = "hearthgrid seed onion"
RESEND_S = 3.0
ASK_SEAT_S = 60.0
"""Between two requests for a seat, or to leave it: one that was refused is not put at once."""
MAX_ONIONS = 8
"""Tried to find the one that the chain knows."""
MAX_ACCUSATIONS = 16
"""Operations in one transaction."""

log = structlog.get_logger(component="ledger")


class Seeds:
    """
    The onions of a validator, one after the other: made from its key, so nothing more is kept safe.

    Args:
        key: the validator's
        layers: of each onion
    """

    def __init__(self, key: SigningKey, layers: int = LAYERS) -> None:
        self._key = key
        self._layers = layers
        self._number = 0
        self._onion = self._make(0)

    @property
    def tip(self) -> bytes:
        """Of the onion in use."""
        return self._onion.tip

    def after(self, tip: bytes) -> tuple[str, bytes]:
        """
        What to say when the chain holds `tip` (empty: nothing yet).

        Returns:
            ("reveal-seed", the next layer), or ("commit-seed", the tip of an unused onion).
        """
        first = self._number
        while tip and self._number < first + MAX_ONIONS:
            layer = self._onion.under(tip)
            if layer is not None:
                return "reveal-seed", layer
            used_up = self._onion.layer(self._layers) == tip
            self._number += 1
            self._onion = self._make(self._number)
            if used_up:
                return "commit-seed", self._onion.tip
        return "commit-seed", self._onion.tip

    def _make(self, number: int) -> Onion:
        return Onion(self._key.derive(f"{ONION_LABEL} {number}").seed, self._layers)


def seed_operation(ledger: Ledger, validator: str, seeds: Seeds) -> dict[str, Any] | None:
    """The `commit-seed` or `reveal-seed` that is due in the running epoch, if any."""
    row = ledger.query(keys.validator(validator))
    if row is None or row["status"] in (Status.CANDIDATE, Status.BANNED):
        return None
    operation, value = seeds.after(from_text(row["tip"]) if row["tip"] else b"")
    if operation == "commit-seed":
        return {"op": operation, "tip": to_text(value)}
    too_soon = ledger.epoch < row["tipEpoch"] + COMMIT_EPOCHS
    if too_soon or row["revealEpoch"] >= ledger.epoch:
        return None
    return {"op": operation, "preimage": to_text(value)}


def membership_operation(
    ledger: Ledger, key: SigningKey, folder: Path, seeds: Seeds, now_ms: int
) -> dict[str, Any] | None:
    """
    The `join-validator` or `leave-validator` that the files in the node's folder ask for, if any.

    A licence that ends later than the chain knows renews the seat.
    """
    row = ledger.query(keys.validator(key.id))
    if (folder / LEAVE_FILE).exists():
        here = row is not None and row["status"] in (Status.ACTIVE, Status.CANDIDATE)
        return {"op": "leave-validator"} if here else None
    licence = _licence(folder / LICENCE_FILE)
    if licence is None or licence.validator != key.id:
        return None
    if not licence.not_before_ms <= now_ms < licence.not_after_ms:
        return None
    if row is None:
        return {"op": "join-validator", "licence": dump(licence), "tip": to_text(seeds.tip)}
    renews = row["notAfterMs"] > 0 and licence.not_after_ms > row["notAfterMs"]
    if renews and row["status"] in (Status.ACTIVE, Status.CANDIDATE):
        return {"op": "join-validator", "licence": dump(licence), "tip": ""}
    return None


def _licence(path: Path) -> ValidatorLicence | None:
    try:
        return parse(ValidatorLicence, path.read_text().strip())
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, WireError) as error:
        log.warning("licence cannot be read", file=path.name, reason=str(error))
        return None


class Duties:
    """Speaks on the chain for a node that is, or wants to be, a validator."""

    def __init__(self, node: Node, folder: Path, rng: Rng) -> None:
        self._node = node
        self._folder = folder
        self._rng = rng
        self._seeds = Seeds(node.key)
        self._consent = Consent(folder, node.key.id)
        self._cpf = CpfInbox(folder, node.key.id, node.genesis)
        self._flight: Transaction | None = None
        self._sent_s = 0.0
        self._asked_s: dict[str, float] = {}
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
        now_s = node.clock.monotonic_s()
        membership = membership_operation(
            node.ledger, node.key, self._folder, self._seeds, node.clock.now_ms()
        )
        if membership is not None:
            asked_s = self._asked_s.get(membership["op"], float("-inf"))
            if now_s - asked_s >= ASK_SEAT_S:
                self._asked_s[membership["op"]] = now_s
                return [membership]  # alone: it makes the sender known
        if node.ledger.query(keys.validator(node.key.id)) is None:
            return []
        found = node.store.evidence(judged=False)[:MAX_ACCUSATIONS]
        due: list[dict[str, Any]] = [evidence_operation(one, other) for one, other, _ in found]
        due += self._consent.operations(node.ledger)
        attestation = self._cpf.operation(node.genesis.grid.slot_at(node.clock.now_ms()))
        due += [attestation] if attestation is not None else []
        if self._eventful:
            seed = seed_operation(node.ledger, node.key.id, self._seeds)
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
            if operation["op"] == "approve-change":
                self._consent.landed(operation["change"])
            if operation["op"] == "cpf":
                self._cpf.landed(operation["attestation"]["end_slot"])
            if operation["op"] == "evidence":
                vote = types.decode(types.Vote, from_text(operation["first"]))
                self._node.store.evidence_judged(vote.epoch, vote.validator)
