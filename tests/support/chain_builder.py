"""
A whole little market in memory: keys from seeds, signed transactions, signed and finalised blocks.

Nothing here is random, so a test can state roots and repeat runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ledger import merkle, types
from ledger.execution import BlockResult, Ledger
from ledger.genesis import Genesis, GenesisValidator, Supervisor, seal_genesis
from ledger.proofs import Anchor
from ledger.schedule import Epochs
from ledger.store import LedgerStore
from wire import certificates
from wire.certificates import AddressGrant, ValidatorGrant, ValidatorLicence
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.metering import CpfAttestation, Receipt, record_json, sign_record
from wire.transactions import Transaction, make_transaction

MARKET = "test"
SLOT_MS = 900_000
FIRST_SLOT = 1_978_560
"""2026-06-06T00:00:00Z."""
START_MS = FIRST_SLOT * SLOT_MS
SUPERVISOR_UC = 10**12


def key(name: str) -> SigningKey:
    """A key that depends on its name only."""
    return SigningKey(hashlib.sha256(f"hearthgrid test {name}".encode()).digest())


ISSUER = key("issuer")
SUPERVISOR = key("supervisor")
VALIDATORS = [key(f"validator {i}") for i in range(4)]
OTHERS = [key(f"other validator {i}") for i in range(40)]
"""They may join."""
KEYS = {one.id: one for one in (*VALIDATORS, *OTHERS)}


def make_genesis(**changes: Any) -> Genesis:
    """The genesis of the test market."""
    fields: dict[str, Any] = {
        "market": MARKET,
        "start_ms": START_MS,
        "issuing_key": to_text(ISSUER.public),
        "supervisor": Supervisor(
            address=SUPERVISOR.id, key=to_text(SUPERVISOR.public), balance_uc=SUPERVISOR_UC
        ),
        "validators": tuple(
            GenesisValidator(id=k.id, key=to_text(k.public), controller=f"home-{i}")
            for i, k in enumerate(VALIDATORS)
        ),
    }
    return seal_genesis(Genesis(**{**fields, **changes}))


def grant_for(home: SigningKey, **changes: Any) -> dict[str, Any]:
    """An address grant, signed by the issuer."""
    fields: dict[str, Any] = {
        "address": home.id,
        "key": to_text(home.public),
        "meter_key": to_text(meter_of(home).public),
        "can_buy": True,
        "can_sell": True,
        "max_buy_wh": 5_000,
        "max_sell_wh": 5_000,
        "start_slot": FIRST_SLOT,
        "end_slot": FIRST_SLOT + 400,
    }
    grant = AddressGrant(**{**fields, **changes})
    return certificates.dump(certificates.seal(grant, ISSUER, MARKET))


def meter_of(home: SigningKey) -> SigningKey:
    """The pseudonymous meter key of a home."""
    return home.derive("meter")


def register(home: SigningKey, **changes: Any) -> dict[str, Any]:
    return {"op": "register-address", "grant": grant_for(home, **changes)}


def licence_for(validator: SigningKey, **changes: Any) -> dict[str, Any]:
    """A validator licence, signed by the issuer."""
    fields: dict[str, Any] = {
        "validator": validator.id,
        "key": to_text(validator.public),
        "controller": f"party of {validator.id[:12]}",
        "not_before_ms": 0,
        "not_after_ms": START_MS + 1000 * SLOT_MS,
    }
    licence = ValidatorLicence(**{**fields, **changes})
    return certificates.dump(certificates.seal(licence, ISSUER, MARKET))


def join(validator: SigningKey, tip: bytes = b"", **changes: Any) -> dict[str, Any]:
    licence = licence_for(validator, **changes)
    return {"op": "join-validator", "licence": licence, "tip": to_text(tip)}


def bid(side: str, slot: int, energy_wh: int, price: int) -> dict[str, Any]:
    return {
        "op": "bid-offer", "side": side, "slot": slot, "energyWh": energy_wh,
        "priceUcPerKwh": price,
    }  # fmt: skip


def receipt(home: SigningKey, slot: int, net_wh: int, chain_id: str) -> dict[str, Any]:
    said = Receipt(address=home.id, slot=slot, net_wh=net_wh, reading="0" * 64)
    signed = sign_record(said, meter_of(home), chain_id)
    return {"op": "receipt", "receipt": record_json(signed)}


def cpf(validator: SigningKey, end_slot: int, cpf_q16: int, chain_id: str, **changes: Any) -> Any:
    meter = validator.derive("validator meter")
    grant = ValidatorGrant(
        validator=validator.id, meter_key=to_text(meter.public), start_slot=FIRST_SLOT,
        end_slot=FIRST_SLOT + 400,
    )  # fmt: skip
    fields: dict[str, Any] = {
        "validator": validator.id, "start_slot": end_slot - 7, "end_slot": end_slot,
        "cpf_q16": cpf_q16, "eligible": True,
    }  # fmt: skip
    said = sign_record(CpfAttestation(**{**fields, **changes}), meter, chain_id)
    return {
        "op": "cpf",
        "grant": certificates.dump(certificates.seal(grant, ISSUER, MARKET)),
        "attestation": record_json(said),
    }


def asset(home: SigningKey, kind: str, energy_wh: int, start: int, end: int) -> dict[str, Any]:
    return {
        "op": "add-energy-asset", "address": home.id, "kind": kind, "energyWh": energy_wh,
        "startSlot": start, "endSlot": end,
    }  # fmt: skip


def deposit(home: SigningKey, amount_uc: int) -> dict[str, Any]:
    return {"op": "add-financial-balance", "address": home.id, "amountUc": amount_uc}


def auction(name: str, template: str, slot: int, energy_wh: int, price: int, pricing: str) -> Any:
    return {
        "op": "deploy-auction", "auction": name, "template": template, "slot": slot,
        "energyWh": energy_wh, "priceUcPerKwh": price, "pricing": pricing,
    }  # fmt: skip


def auction_bid(name: str, energy_wh: int, price: int) -> dict[str, Any]:
    return {
        "op": "auction-bid", "auction": name, "energyWh": energy_wh, "priceUcPerKwh": price,
    }  # fmt: skip


class Chain:
    """A ledger and everything needed to add blocks to it."""

    def __init__(self, store: LedgerStore | None = None, genesis: Genesis | None = None) -> None:
        self.genesis = genesis or make_genesis()
        self.store = store or LedgerStore(":memory:")
        self.ledger = Ledger.open(self.genesis, self.store)
        self.nonces: dict[str, int] = {}
        self.chain_id = self.genesis.chain_id
        self.epochs = Epochs(self.genesis, self.ledger, self.store)
        self.epoch = self.epochs.current()
        tip = self.store.tip
        running = tip is not None and tip.header.epoch == self.epoch.epoch
        self.view = tip.header.view if tip is not None and running else 0

    def tx(
        self, sender: SigningKey, *operations: dict[str, Any], nonce: int | None = None,
        expires_slot: int = FIRST_SLOT + 10_000,
    ) -> Transaction:  # fmt: skip
        """A signed transaction with the sender's next nonce."""
        if nonce is None:
            nonce = self.nonces.get(sender.id, self.ledger.next_nonce(sender.id))
            self.nonces[sender.id] = nonce + 1
        req_id = new_req_id(START_MS, hashlib.sha256(f"{sender.id}{nonce}".encode()).digest())
        return make_transaction(
            sender, self.chain_id, nonce, expires_slot, list(operations), req_id, START_MS
        )

    def header(self, time_ms: int, txs: list[Transaction], **changes: Any) -> types.Header:
        """The header of the next block."""
        self.view += 1
        executed = self.ledger.executed_height
        grid, epoch = self.genesis.grid, self.epoch
        seal = grid.slot_at(time_ms) > grid.slot_at(epoch.base_time_ms)
        fields: dict[str, Any] = {
            "chain_id": self.chain_id,
            "epoch": epoch.epoch,
            "view": self.view,
            "height": executed + 1,
            "parent_hash": self.ledger.tip_hash,
            "justify_hash": bytes(32),
            "tx_root": merkle.root([tx.txid for tx in txs]),
            "n_tx": len(txs),
            "exec_height": executed,
            "state_root": self.ledger.state_root(executed),
            "receipts_root": self.ledger.receipts_root(self.ledger.covered_height, executed),
            "validators_hash": epoch.validators.hash,
            "schedule_root": epoch.schedule_root,
            "time_ms": time_ms,
            "proposer": epoch.validators.ids[epoch.leader(self.view)],
            "seal": seal,
            "next_validators_hash": (
                self.epochs.next_validators(epoch.epoch).hash if seal else b""
            ),
        }
        return types.Header(**{**fields, **changes})

    def finality(self, header: types.Header, path: tuple[types.Header, ...] = ()) -> bytes:
        """A finalization by a quorum: of four all but the second."""
        last = path[-1] if path else header
        validators = self.epoch.validators
        indexes = (0, 2, 3) if validators.n == 4 else range(validators.quorum)
        votes = [
            types.make_vote(
                KEYS[validators.ids[i]], self.chain_id, i, last.epoch, last.view,
                types.VoteKind.FINALIZE, types.header_hash(last),
            )
            for i in indexes
        ]  # fmt: skip
        return types.encode(types.Finality(types.make_certificate(votes), path))

    def block(
        self, time_ms: int, *txs: Transaction, certificate: bytes | None = None
    ) -> BlockResult:
        """Add a block."""
        header = self.header(time_ms, list(txs))
        certified = self.finality(header) if certificate is None else certificate
        return self.execute(header, txs, certified)

    def execute(
        self, header: types.Header, txs: Sequence[Transaction], certified: bytes
    ) -> BlockResult:
        """Execute a block as a node does: after a seal comes the next epoch."""
        result = self.ledger.execute(header, txs, certified)
        if header.seal:
            self.epoch = self.epochs.after_seal(header, types.decode(types.Finality, certified))
            self.view = 0
        return result

    def seal(self, *txs: Transaction) -> BlockResult:
        """Add the block that ends the running epoch, at the beginning of the next slot."""
        return self.block(slot_ms(self.ledger.slot + 1), *txs)

    def codes(self, time_ms: int, sender: SigningKey, *operations: dict[str, Any]) -> list[str]:
        """Add a block with one transaction; the codes of its operations."""
        result = self.block(time_ms, self.tx(sender, *operations))
        assert result.receipts[0].code == "OK", result.receipts[0]
        return list(result.receipts[0].codes)

    def account(self, who: SigningKey) -> tuple[int, int]:
        """Free and locked money."""
        row = self.ledger.query(f"account/{who.id}") or {"balanceUc": 0, "lockedUc": 0}
        return row["balanceUc"], row["lockedUc"]

    def settle_in(self, *homes: SigningKey, at_ms: int = START_MS + 1) -> None:
        """Register homes; give each 5 kWh to buy and to sell in every slot, and 100 units."""
        self.block(at_ms, *(self.tx(home, register(home)) for home in homes))
        grants = []
        for home in homes:
            grants += [
                asset(home, "production", 5_000, FIRST_SLOT, FIRST_SLOT + 400),
                asset(home, "consumption", 5_000, FIRST_SLOT, FIRST_SLOT + 400),
                deposit(home, 100_000_000),
            ]
        for first in range(0, len(grants), 60):
            self.block(self.ledger.time_ms + 1, self.tx(SUPERVISOR, *grants[first : first + 60]))


def events_of(result: BlockResult, name: str) -> list[dict[str, Any]]:
    return [event for event in result.events if event["event"] == name]


def slot_ms(slot: int, offset_s: int = 0) -> int:
    """Market time `offset_s` after the start of a slot."""
    return slot * SLOT_MS + offset_s * 1000


def final(header: types.Header, keys: Sequence[SigningKey]) -> Anchor:
    """A header with the finalization that the first three of these validators sign."""
    block_hash = types.header_hash(header)
    votes = [
        types.make_vote(
            key, header.chain_id, index, header.epoch, header.view, types.VoteKind.FINALIZE,
            block_hash,
        )
        for index, key in enumerate(keys[:3])
    ]  # fmt: skip
    return Anchor(header, types.Finality(types.make_certificate(votes)))
