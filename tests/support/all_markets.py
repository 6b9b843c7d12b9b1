"""
One chain in which every market was used, with everything that can become of a trade in it.

    chain = all_markets()

Five homes trade some slots openly; then a change of the rules holds, with other prices and fees and
with sealed bids, and they trade once more. In the end some orders are still open. Every accepted
operation is meant: a refusal stops the builder.
"""

from __future__ import annotations

import hashlib
from typing import Any

from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    auction,
    auction_bid,
    bid,
    cpf,
    key,
    make_genesis,
    receipt,
    slot_ms,
)

from ledger.contracts.governance import change_id
from ledger.genesis import Escrow, Feeder, Prices, Rewards, Zone
from ledger.store import LedgerStore
from market import escrow
from market.sealed import SealedBid, commitment
from wire.cpf import Q16
from wire.keys import SigningKey, to_text

ANN, BOB, CAT, DAN, EVE = HOMES = tuple(key(f"market home {i}") for i in range(5))
SLOT = FIRST_SLOT + 4
"""The first slot in which there is trade; seven follow."""
ACTIVE = SLOT + 110
"""From this slot on the changed rules hold."""
CHANGES = (
    ("prices.retailUcPerKwh", 345_677), ("prices.imbalanceUcPerKwh", 456_789),
    ("auctions.sealed", True), ("escrow.feeUc", 1_777),
)  # fmt: skip
SALT = "0123456789abcdef"
PRICES = Prices(retail_uc_per_kwh=300_001, feed_in_uc_per_kwh=80_003, imbalance_uc_per_kwh=400_007)
Op = dict[str, Any]


def all_markets(store: LedgerStore | None = None) -> Chain:
    """Build the chain, in memory or in a store."""
    return _Builder(store).build()


class _Builder:
    def __init__(self, store: LedgerStore | None) -> None:
        self.reveals: list[tuple[SigningKey, Op, Op]] = []
        feeder = Feeder(zones=(Zone(name="north", rating_w=1_200),))
        self.chain = Chain(
            store,
            make_genesis(
                feeder=feeder, prices=PRICES, escrow=Escrow(penalty_permille=333),
                rewards=Rewards(per_block_uc=180, max_blocks=4),
            ),
        )  # fmt: skip

    def build(self) -> Chain:
        chain = self.chain
        chain.settle_in(*HOMES)
        self.do(SUPERVISOR, {"op": "fund-rewards", "amountUc": 1_000_000})
        self.do(EVE, {"op": "set-participation", "mode": "RE+TE"})
        self.do(VALIDATORS[0], {"op": "set-payee", "address": EVE.id})
        self.do(SUPERVISOR, {"op": "assign-zone", "address": CAT.id, "zone": "north"})
        self.open_slots()
        self.change_rules()
        self.sealed_slot(ACTIVE)
        self.leave_open(ACTIVE + 6)
        return chain

    # --- before the change ------------------------------------------------------------------------

    def open_slots(self) -> None:
        self.at(slot_ms(SLOT - 1, 60))
        self.auctions(SLOT)
        self.offers(SLOT)
        self.escrows(SLOT)
        self.session(SLOT + 3)
        self.go(slot_ms(SLOT, -300))
        self.go(slot_ms(SLOT + 1, 5))
        self.deliver(SLOT, {ANN: -700, BOB: 812, CAT: -33, DAN: 90})  # Eve's comes late
        self.go(slot_ms(SLOT + 2, 5))
        self.deliver(SLOT, {EVE: 41})
        self.deliver(SLOT + 1, {ANN: -20, BOB: 10, CAT: 7, DAN: 257, EVE: -501})
        self.go(slot_ms(SLOT + 3, -250))
        self.adjust(SLOT + 3)
        self.go(slot_ms(SLOT + 3, 5))
        nets = {ANN: 3, BOB: 220, CAT: 1, DAN: 60, EVE: -10}
        self.deliver(SLOT + 2, nets)
        attested = cpf(VALIDATORS[0], SLOT + 2, Q16, self.chain.chain_id)
        self.do(VALIDATORS[0], attested)
        self.go(slot_ms(SLOT + 4, 5))
        self.deliver(SLOT + 3, {ANN: -410, BOB: 633, CAT: 71, DAN: 190, EVE: -300})
        for slot in range(SLOT + 4, SLOT + 8):
            self.go(slot_ms(slot + 1, 5))
            self.deliver(slot, {home: 10 + number for number, home in enumerate(HOMES)})
        self.go(slot_ms(SLOT + 9, 5))

    def auctions(self, slot: int) -> None:
        """Double auction, reverse, forward, and a sealed double one that pays as bid."""
        self.do(ANN, bid("sell", slot, 303, 101_001), bid("sell", slot, 100, 290_000))
        self.do(BOB, bid("buy", slot, 211, 240_007))
        self.do(DAN, bid("buy", slot, 57, 230_011))
        self.do(
            SUPERVISOR,
            auction("evening", "reverse", slot, 150, 250_000, "as-bid"),
            auction("noon", "forward", slot, 200, 50_001, "uniform"),
            {**auction("green", "double", slot, 0, 0, "as-bid"), "sealed": True},
        )
        self.do(ANN, auction_bid("evening", 91, 151_003))
        self.do(BOB, auction_bid("noon", 123, 90_007))
        said = [
            (CAT, "sell", 77, 90_001), (BOB, "buy", 31, 201_003), (DAN, "buy", 33, 190_009),
            (EVE, "buy", 3, 190_009),
        ]  # fmt: skip
        sealed = [(who, *self.sealed(who, slot, *row, name="green")) for who, *row in said]
        for who, commit, _ in sealed:
            self.do(who, commit)
        self.reveals = sealed[:-1]

    def offers(self, slot: int) -> None:
        """The order book: an offer of each kind accepted in part, one rescinded, one expired."""
        name = self.post(CAT, "production", 50, slot + 1, slot + 3, 120_009)
        row = {"energyWh": 83, "startSlot": slot + 2, "endSlot": slot + 4}
        self.do(DAN, {"op": "accept-offer", "offer": name, "assets": [row]})
        name = self.post(EVE, "consumption", 41, slot, slot + 1, 199_999)
        row = {"energyWh": 17, "startSlot": slot, "endSlot": slot}
        self.do(ANN, {"op": "accept-offer", "offer": name, "assets": [row]})
        name = self.post(ANN, "consumption", 20, slot + 2, slot + 3, 111_111)
        self.do(ANN, {"op": "rescind-offer", "offer": name})
        self.post(BOB, "consumption", 60, slot + 1, slot + 2, 123_457)
        back = {"kind": "production", "energyWh": 7, "startSlot": slot + 5, "endSlot": slot + 9}
        self.do(CAT, {"op": "deposit-energy-asset", **back})
        self.do(CAT, {"op": "deposit-financial-balance", "amountUc": 1_234_567})

    def escrows(self, slot: int) -> None:
        """Escrowed trades: delivered, hidden and delivered, failed, given up, expired."""
        hidden = escrow.commitment(f"{EVE.id}:hidden", 97, 140_003, SALT)
        self.escrow(EVE, "good", slot + 1, 201, 150_001)
        self.escrow(EVE, "hidden", slot + 1, 100, 150_001, commitment=hidden)
        self.escrow(EVE, "bad", slot + 2, 111, 150_001)
        self.escrow(EVE, "taken-back", slot + 2, 10, 150_001)
        self.escrow(EVE, "alone", slot + 2, 10, 150_001)
        self.accept(DAN, "good", 201, 150_001)
        self.accept(DAN, "hidden", 100, 150_001, commitment=hidden)
        self.accept(DAN, "bad", 111, 150_001)
        self.do(EVE, {"op": "give-up", "offer": f"{EVE.id}:taken-back"})
        shown = {"energyWh": 97, "priceUcPerKwh": 140_003, "salt": SALT}
        self.do(DAN, {"op": "reveal-escrow", "offer": f"{EVE.id}:hidden", **shown})

    def session(self, slot: int) -> None:
        """A forward session with a zone behind a weak line."""
        for who, side, energy_wh, price in (
            (ANN, "sell", 400, 80_005), (BOB, "buy", 650, 299_993), (CAT, "buy", 555, 299_993),
        ):  # fmt: skip
            self.do(who, schedule(side, slot, energy_wh, price))

    def adjust(self, slot: int) -> None:
        """The line is closed; who was to be served gives energy back."""
        self.do(
            SUPERVISOR,
            {"op": "close-interconnection", "zone": "north", "startSlot": slot, "endSlot": slot},
            {"op": "open-adjustment", "slot": slot, "deadlineMs": slot_ms(slot, -60)},
        )
        self.do(CAT, schedule("sell", slot, 131, 80_005))
        self.do(ANN, schedule("buy", slot, 37, 299_993))
        self.go(slot_ms(slot, -60))

    # --- the change, and after it -----------------------------------------------------------------

    def change_rules(self) -> None:
        for path, value in CHANGES:
            proposal = {"path": path, "value": value, "activationSlot": ACTIVE}
            name = change_id(path, value, ACTIVE)
            self.do(SUPERVISOR, {"op": "propose-change", **proposal})
            for who in (*VALIDATORS[:3], ANN, BOB, CAT):
                self.do(who, {"op": "approve-change", "change": name})

    def sealed_slot(self, slot: int) -> None:
        """The same under the changed rules: bids and schedules are sealed, one is not revealed."""
        self.at(slot_ms(slot - 1, 60))
        said = [
            (ANN, "sell", 205, 100_003, ""), (BOB, "buy", 307, 250_001, ""),
            (DAN, "buy", 3, 1_001, ""), (BOB, "buy", 19, 345_671, "@session"),
        ]  # fmt: skip
        rows = [(who, *self.sealed(who, slot, *row, name=name)) for who, *row, name in said]
        for who, commit, _ in rows:
            self.do(who, commit)
        self.reveals = [row for row in rows if row[0] is not DAN]
        self.escrow(EVE, "dear", slot, 55, 160_001)
        self.accept(CAT, "dear", 55, 160_001)
        self.go(slot_ms(slot, -300))
        self.go(slot_ms(slot + 1, 5))
        self.deliver(slot, {ANN: -150, BOB: 503, EVE: -60})  # Cat is silent
        self.go(slot_ms(slot + 3, 5))

    def leave_open(self, slot: int) -> None:
        """Orders, offers, deposits and guarantees that stand when the chain ends."""
        self.do(BOB, self.sealed(BOB, slot, "buy", 10, 200_000)[0])
        self.post(BOB, "consumption", 13, slot, slot + 2, 133_337)
        self.post(ANN, "production", 13, slot, slot + 2, 333_331)
        self.escrow(EVE, "open", slot, 10, 150_001)
        self.escrow(EVE, "blocked", slot, 12, 150_001)
        self.accept(DAN, "blocked", 12, 150_001)
        self.do(SUPERVISOR, auction("late", "reverse", slot, 99, 250_003, "uniform"))
        self.do(SUPERVISOR, auction("later", "forward", slot, 99, 50_003, "uniform"))
        self.do(CAT, auction_bid("later", 9, 77_777))
        name = self.post(CAT, "production", 21, slot, slot, 140_001)
        row = {"energyWh": 21, "startSlot": slot, "endSlot": slot}
        self.do(DAN, {"op": "accept-offer", "offer": name, "assets": [row]})

    # --- operations -------------------------------------------------------------------------------

    def escrow(
        self, who: SigningKey, name: str, slot: int, energy_wh: int, price: int, **more: str
    ) -> None:
        offer = {
            "op": "make-offer", "offer": f"{who.id}:{name}", "slot": slot, "energyWh": energy_wh,
            "priceUcPerKwh": price, "guaranteeUc": 50_003, "acceptBeforeMs": slot_ms(slot, -300),
            "deliverBeforeMs": slot_ms(slot + 2), **more,
        }  # fmt: skip
        self.do(who, offer)

    def accept(self, who: SigningKey, name: str, energy_wh: int, price: int, **more: str) -> None:
        offer = f"{EVE.id}:{name}"
        op = {"op": "accept-escrow", "offer": offer, "energyWh": energy_wh, "priceUcPerKwh": price}
        self.do(who, {**op, **more})

    def post(
        self, who: SigningKey, kind: str, energy_wh: int, start: int, end: int, price: int
    ) -> str:
        """Post an offer; its name."""
        nonce = self.chain.ledger.next_nonce(who.id)
        op = {"op": "post-offer", "kind": kind, "energyWh": energy_wh, "startSlot": start}
        self.do(who, {**op, "endSlot": end, "priceUcPerKwh": price})
        return f"{who.id}-{nonce}-0"

    def sealed(
        self, who: SigningKey, slot: int, side: str, energy_wh: int, price: int, name: str = ""
    ) -> tuple[Op, Op]:
        """A commitment and its reveal."""
        salt = hashlib.sha256(f"{who.id}{slot}{side}{energy_wh}{name}".encode()).digest()
        said = SealedBid(
            address=who.id, slot=slot, auction=name, side=side, energy_wh=energy_wh,
            price_uc_per_kwh=price,
        )  # fmt: skip
        place = {"slot": slot, "auction": name}
        commit = {"op": "commit-bid", **place, "commitment": to_text(commitment(salt, said))}
        shown = {"side": side, "energyWh": energy_wh, "priceUcPerKwh": price, "salt": to_text(salt)}
        return commit, {"op": "reveal-bid", **place, **shown}

    def deliver(self, slot: int, nets: dict[SigningKey, int]) -> None:
        for home, net_wh in nets.items():
            self.do(home, receipt(home, slot, net_wh, self.chain.chain_id))

    # --- blocks -----------------------------------------------------------------------------------

    def do(self, who: SigningKey, *operations: Op) -> None:
        """A block with one transaction, a second later."""
        codes = self.chain.codes(self.chain.ledger.time_ms + 1000, who, *operations)
        assert set(codes) == {"OK"}, (operations, codes)

    def at(self, time_ms: int) -> None:
        self.chain.block(time_ms)

    def go(self, time_ms: int) -> None:
        """On to a time; bids are revealed on the way when their window opens before it."""
        if self.reveals:
            self.chain.block(time_ms - 100_000)
            for who, _, reveal in self.reveals:
                self.do(who, reveal)
            self.reveals = []
        self.chain.block(time_ms)


def schedule(side: str, slot: int, energy_wh: int, price: int) -> Op:
    """A home's schedule for a slot."""
    return {
        "op": "submit-schedule", "side": side, "slot": slot, "energyWh": energy_wh,
        "priceUcPerKwh": price,
    }  # fmt: skip
