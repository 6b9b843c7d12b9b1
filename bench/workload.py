"""
A day's trade, signed in advance: registered and funded addresses with their transactions.

Every address has a group (by operations per transaction) of its own, so that a scenario may stop
anywhere in its group's list without leaving a gap in another's nonces. Orders are for the slots
ahead, eight for each as the rules allow; every tenth single operation is a meter's receipt for a
slot that has ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from multiprocessing import get_context
from typing import Any, NamedTuple

from ledger.genesis import Genesis, GenesisValidator, Supervisor, seal_genesis
from wire.certificates import AddressGrant, dump, seal
from wire.envelope import new_req_id
from wire.keys import SigningKey, to_text
from wire.metering import Receipt, record_json, sign_record
from wire.transactions import MAX_OPERATIONS, make_transaction

MARKET = "bench"
VALIDATORS = 4
ORDERS_PER_SLOT = 8
FIRST_SLOT, LAST_SLOT = 2, 93
"""Of the slots ahead that orders are for; no gate closes during a run, even across a slot's end."""
ORDERS_PER_ADDRESS = (LAST_SLOT - FIRST_SLOT + 1) * ORDERS_PER_SLOT
RECEIPT_EVERY = 10
RECEIPTS_BACK = 90
ENERGY_WH = 100
FUNDS_UC = 10**9
EXPIRY_SLOTS = 4


def new_key() -> SigningKey:
    """A fresh key."""
    return SigningKey(secrets.token_bytes(32))


class Signed(NamedTuple):
    """A transaction ready to be sent."""

    address: str
    txid: bytes
    raw: bytes


class Share(NamedTuple):
    """What one process shall sign: a number of transactions of one address."""

    seed: bytes
    chain_id: str
    slot: int
    now_ms: int
    transactions: int
    operations: int


@dataclass(slots=True)
class Market:
    """The keys of a market and its genesis."""

    now_ms: int
    issuing: SigningKey = field(default_factory=new_key)
    supervisor: SigningKey = field(default_factory=new_key)
    observer: SigningKey = field(default_factory=new_key)
    validators: list[SigningKey] = field(
        default_factory=lambda: [new_key() for _ in range(VALIDATORS)]
    )

    def genesis(self) -> Genesis:
        """Four validators and a rich supervisor, an hour old."""
        return seal_genesis(
            Genesis(
                market=MARKET,
                start_ms=self.now_ms - 3_600_000,
                issuing_key=to_text(self.issuing.public),
                supervisor=Supervisor(
                    address=self.supervisor.id,
                    key=to_text(self.supervisor.public),
                    balance_uc=10**13,
                ),
                validators=tuple(
                    GenesisValidator(id=key.id, key=to_text(key.public), controller=f"c{number}")
                    for number, key in enumerate(self.validators)
                ),
            )
        )

    def grant(self, key: SigningKey, slot: int) -> AddressGrant:
        """Permission to trade, from the issuing key."""
        unsigned = AddressGrant(
            address=key.id,
            key=to_text(key.public),
            meter_key=to_text(meter_of(key).public),
            can_buy=True,
            can_sell=True,
            max_buy_wh=ENERGY_WH * ORDERS_PER_SLOT,
            max_sell_wh=ENERGY_WH * ORDERS_PER_SLOT,
            start_slot=slot - 96,
            end_slot=slot + 96,
        )
        return seal(unsigned, self.issuing, MARKET)


def meter_of(key: SigningKey) -> SigningKey:
    """The meter key behind an address."""
    return key.derive("meter")


def capacity(operations: int) -> int:
    """Transactions of so many operations that one address may send."""
    if operations == 1:  # receipts come on top of the orders
        return min(ORDERS_PER_ADDRESS, RECEIPTS_BACK * RECEIPT_EVERY)
    return ORDERS_PER_ADDRESS // operations


def registrations(market: Market, genesis: Genesis, keys: Iterable[SigningKey]) -> list[Signed]:
    """The first transaction of each address: it registers itself."""
    slot = genesis.grid.slot_at(market.now_ms)
    return [
        _sign(
            Share(key.seed, genesis.chain_id, slot, market.now_ms, 1, 1),
            0,
            [{"op": "register-address", "grant": dump(market.grant(key, slot))}],
        )
        for key in keys
    ]


def funding(market: Market, genesis: Genesis, addresses: Iterable[str]) -> list[Signed]:
    """The supervisor's transactions that give every address money and energy to trade."""
    slot = genesis.grid.slot_at(market.now_ms)
    operations: list[dict[str, Any]] = []
    for address in addresses:
        operations.append({"op": "add-financial-balance", "address": address, "amountUc": FUNDS_UC})
        operations += [
            {"op": "add-energy-asset", "address": address, "kind": kind,
             "energyWh": ENERGY_WH * ORDERS_PER_SLOT, "startSlot": slot, "endSlot": slot + 96}
            for kind in ("production", "consumption")
        ]  # fmt: skip
    share = Share(market.supervisor.seed, genesis.chain_id, slot, market.now_ms, 1, 1)
    bundles = range(0, len(operations), MAX_OPERATIONS)
    return [
        _sign(share, nonce, operations[at : at + MAX_OPERATIONS])
        for nonce, at in enumerate(bundles)
    ]


def sign_all(
    genesis: Genesis, now_ms: int, keys: list[SigningKey], count: int, operations: int, cores: int
) -> list[Signed]:
    """`count` transactions of so many operations each, the addresses taking turns."""
    slot = genesis.grid.slot_at(now_ms)
    each = -(-count // len(keys))
    assert each <= capacity(operations), "more addresses are needed"
    shares = [Share(key.seed, genesis.chain_id, slot, now_ms, each, operations) for key in keys]
    if cores == 1:
        lists = [sign_share(share) for share in shares]
    else:
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            lists = list(pool.map(sign_share, shares, chunksize=max(1, len(shares) // 16)))
    return [tx for turn in zip_longest(*lists) for tx in turn if tx is not None]


def sign_share(share: Share) -> list[Signed]:
    """Sign what one address will send, nonces from 1 (0 was its registration)."""
    key = SigningKey(share.seed)
    orders = _orders(share.slot, "buy" if share.seed[0] % 2 else "sell")
    signed = []
    for number in range(share.transactions):
        if share.operations == 1 and number % RECEIPT_EVERY == RECEIPT_EVERY - 1:
            operations = [_receipt(key, share, number // RECEIPT_EVERY)]
        else:
            operations = [next(orders) for _ in range(share.operations)]
        signed.append(_sign(share, number + 1, operations))
    return signed


def _orders(slot: int, side: str) -> Iterator[dict[str, Any]]:
    for ahead in range(FIRST_SLOT, LAST_SLOT + 1):
        for number in range(ORDERS_PER_SLOT):
            yield {
                "op": "bid-offer", "side": side, "slot": slot + ahead, "energyWh": ENERGY_WH,
                "priceUcPerKwh": 100_000 + 1_000 * number,
            }  # fmt: skip


def _receipt(key: SigningKey, share: Share, back: int) -> dict[str, Any]:
    unsigned = Receipt(address=key.id, slot=share.slot - 1 - back, net_wh=250, reading="0" * 64)
    return {
        "op": "receipt",
        "receipt": record_json(sign_record(unsigned, meter_of(key), share.chain_id)),
    }


def _sign(share: Share, nonce: int, operations: list[dict[str, Any]]) -> Signed:
    key = SigningKey(share.seed)
    tx = make_transaction(
        key, share.chain_id, nonce, share.slot + EXPIRY_SLOTS, operations,
        new_req_id(share.now_ms, secrets.token_bytes(10)), share.now_ms,
    )  # fmt: skip
    return Signed(tx.sender, tx.txid, tx.raw)
