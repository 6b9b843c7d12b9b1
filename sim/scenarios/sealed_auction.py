"""
One front-runner, twice: where bids are sealed, and where they are open.

Eve reads every transaction on the public topic as soon as it is sent, and follows one rule: offer
one µ¤/kWh less than the cheapest offer she has read in this auction; where there is none to be read
she asks what she hopes for. Everybody else says one honest price.

    sealed, then the same with the reveals the other way round, then open

Ann and Bob offer at one price, so the earlier commitment decides between them, and an order of
reveals that mattered would show. Dan commits and never reveals.

TMI leaves the kind of auction to an agreement between the aggregator and the prosumers, and does
not speak of seals; the numbers are ours. What is sealed, and what is left to see all the same:
docs/concepts/auctions.md.

Source: Siano et al. (2019), section V-C; `ledger.contracts.sealed`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ledger.genesis import Auctions
from market.sealed import SALT_BYTES, SealedBid, commitment
from runtime.ports import Message
from runtime.rng import SystemRng
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import compare, read
from sim.scenarios.delivery import AFTER_S, deliver, settle
from sim.stage import Actor, Stage
from wire.keys import to_text
from wire.transactions import parse_transaction
from wire.units import cost_uc


@dataclass(frozen=True, slots=True)
class _Order:
    """What somebody wants."""

    side: Literal["buy", "sell"]
    energy_wh: int
    price: int
    """The most a buyer pays, the least a seller takes [µ¤/kWh]."""


HOUSE, ANN, BOB, DAN, EVE = "house", "ann", "bob", "dan", "eve"
WH = 600
HONEST = {
    HOUSE: _Order("buy", WH, 280_000),
    ANN: _Order("sell", WH, 150_000),
    BOB: _Order("sell", WH, 150_000),
    DAN: _Order("buy", 300, 90_000),
}
"""In the order in which they come."""
HOPED_FOR, LEAST = 170_000, 120_000
"""What Eve asks when she knows nothing, and below what she would lose [µ¤/kWh]."""
STEP = 1
"""By how much she undercuts [µ¤/kWh]."""
REVEALED = (HOUSE, ANN, BOB, EVE)
RULES = Auctions(reveal_s=240, bid_deposit_uc=100_000)
DEPOSIT_UC = RULES.bid_deposit_uc

SEALED_PRICE = 150_000
"""Ann sells; Bob, left out at the same price, is the next."""
OPEN_PRICE = 149_999
"""Midway between Eve's 149,999 and 150,000, the best offer left out, rounded down."""
NOTHING = dict.fromkeys((*HONEST, EVE, "supervisor"), 0)
SEALED_RULE = {
    **NOTHING,
    HOUSE: -cost_uc(WH, SEALED_PRICE),
    ANN: cost_uc(WH, SEALED_PRICE),
    DAN: -DEPOSIT_UC,
    "supervisor": DEPOSIT_UC,
}
OPEN_RULE = {**NOTHING, HOUSE: -cost_uc(WH, OPEN_PRICE), EVE: cost_uc(WH, OPEN_PRICE)}
"""By how much everybody's money changes [µ¤]."""


@dataclass
class _Watch:
    """What anybody reads on the public topic of transactions, before it is in a block."""

    read: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """(address, operation), as they come."""

    async def take(self, message: Message) -> None:
        """Keep what a transaction says."""
        tx = parse_transaction(message.payload)
        self.read += [(tx.sender, operation) for operation in tx.operations]

    def of(self, auction: str, *but: str) -> list[tuple[str, dict[str, Any]]]:
        """Bids and commitments of an auction, but those of some addresses."""
        return [
            (sender, said) for sender, said in self.read
            if said.get("auction") == auction and sender not in but
        ]  # fmt: skip


@dataclass(frozen=True)
class _Round:
    """What came of one auction."""

    asked: dict[str, int]
    """By the sellers [µ¤/kWh]."""
    cleared: dict[str, Any]
    """The event's facts, with names in the place of addresses."""
    changes: dict[str, int]
    """Of everybody's money [µ¤]."""

    def sold_wh(self, name: str) -> int:
        """What a seller sold."""
        return sum(
            one["energyWh"] for one in self.cleared["awards"]
            if (one["address"], one["side"]) == (name, "sell")
        )  # fmt: skip


@dataclass(frozen=True)
class _Market:
    """Five homes on the stage, and Eve's ear on the topic."""

    stage: Stage
    tell: Tell
    homes: Mapping[str, Actor]
    watch: _Watch

    async def sealed(self, name: str, slot: int, reveals: Sequence[str]) -> _Round:
        """An auction of sealed bids, revealed in some order; who is not named keeps silent."""
        before = await self._open(name, slot, sealed=True)
        orders = {**HONEST, EVE: _Order("sell", WH, HOPED_FOR)}
        bids = {one: self._seal(one, order, name, slot) for one, order in orders.items()}
        for one in HONEST:
            await self._act(one, bids[one][0])
        await self._everything_is_read(name)
        self._say_what_eve_reads(name)
        says = [sorted(said) for _, said in self._of_others(name)]
        expect("all that a commitment says", [sorted(bids[ANN][0])] * len(HONEST), says)
        expect("events before the window name a price", [], self._priced_events(name))
        asks = self._what_eve_asks(name)
        expect("what Eve asks, having read no price", HOPED_FOR, asks)
        self.tell(f"  no price to undercut: eve asks what she hopes for, {asks:,} µ¤/kWh")
        await self._act(EVE, bids[EVE][0])

        await self.stage.to_ms(self._reveal_ms(slot) + 1_000)
        for one in reveals:
            if one == EVE:
                await self._try_to_undercut(name, slot, bids[EVE][1])
            await self._act(one, bids[one][1])
        self.tell(f"  revealed by {', '.join(reveals)}; not by {DAN}")
        cleared = await self._cleared(name, slot)
        [lost] = [one for one in self.stage.events("bid-forfeited") if one["slot"] == slot]
        expect(
            "the lost deposit",
            (DAN, 1, DEPOSIT_UC),
            (self.stage.name_of(lost["address"]), lost["bids"], lost["amountUc"]),
        )
        self.tell(f"  {DAN} loses {DEPOSIT_UC:,} µ¤, which go to the supervisor")
        asked = {one: orders[one].price for one in (ANN, BOB, EVE)}
        return await self._settle(slot, before, asked, cleared, SEALED_RULE)

    async def open(self, name: str, slot: int) -> _Round:
        """The same auction with open bids."""
        before = await self._open(name, slot, sealed=False)
        for one, order in HONEST.items():
            await self._act(one, _bid(name, order))
        await self._everything_is_read(name)
        self._say_what_eve_reads(name)
        asks = self._what_eve_asks(name)
        self.tell(f"  the cheapest offer is {HONEST[ANN].price:,}: eve asks {asks:,} µ¤/kWh")
        await self._act(EVE, _bid(name, _Order("sell", WH, asks)))
        cleared = await self._cleared(name, slot)
        asked = {ANN: HONEST[ANN].price, BOB: HONEST[BOB].price, EVE: asks}
        return await self._settle(slot, before, asked, cleared, OPEN_RULE)

    # --- the front-runner -------------------------------------------------------------------------

    def _what_eve_asks(self, name: str) -> int:
        """Her rule, the same in both auctions [µ¤/kWh]."""
        offers = [
            said["priceUcPerKwh"] for _, said in self._of_others(name)
            if said.get("side") == "sell"
        ]  # fmt: skip
        undercuts = min(offers, default=HOPED_FOR + STEP) - STEP
        return undercuts if undercuts >= LEAST else HOPED_FOR

    async def _try_to_undercut(self, name: str, slot: int, reveal: dict[str, Any]) -> None:
        """The window is open: what she reads now comes too late."""
        asks = self._what_eve_asks(name)
        if asks == HOPED_FOR:
            return
        better = self._seal(EVE, _Order("sell", WH, asks), name, slot)
        await self._act(EVE, better[0], code="SLOT_CLOSED")
        await self._act(EVE, {**reveal, "priceUcPerKwh": asks}, code="BAD_PREIMAGE")
        self.tell(f"  now eve reads reveals and wants {asks:,}: too late to commit (SLOT_CLOSED),")
        self.tell("  and what she committed to does not open to it (BAD_PREIMAGE)")

    def _of_others(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return self.watch.of(name, self.homes[EVE].id, self.stage.supervisor.id)

    async def _everything_is_read(self, name: str) -> None:
        await self.stage.until(
            lambda: len(self._of_others(name)) >= len(HONEST), "eve did not read all bids"
        )

    def _priced_events(self, name: str) -> list[dict[str, Any]]:
        """Finalised events about an auction's bids in which Eve finds side, energy or price."""
        told = {"side", "energyWh", "priceUcPerKwh"}
        return [
            event for _, event in self.homes[EVE].seen
            if event.get("auction") == name and "address" in event and told & event.keys()
        ]  # fmt: skip

    def _say_what_eve_reads(self, name: str) -> None:
        self.tell("  what eve reads of the others' bids:")
        for sender, said in self._of_others(name):
            if "commitment" in said:
                content = f"{said['commitment'][:16]}…"
            else:
                content = (
                    f"{said['side']:<5}{said['energyWh']:>6,} Wh{said['priceUcPerKwh']:>10,} µ¤/kWh"
                )
            self.tell(f"    {self.stage.name_of(sender):<7}{said['op']:<13}{content}")

    # --- an auction -------------------------------------------------------------------------------

    async def _open(self, name: str, slot: int, *, sealed: bool) -> dict[str, tuple[int, int]]:
        """Deploy a double auction in the slot before; balances before the first bid."""
        await self.stage.to_slot(slot - 1, AFTER_S)
        await self._nothing_flows(slot - 2)
        deploy = {
            "op": "deploy-auction", "auction": name, "template": "double", "slot": slot,
            "energyWh": 0, "priceUcPerKwh": 0, "pricing": "uniform", "sealed": sealed,
        }  # fmt: skip
        event = await self.stage.supervisor.submit(deploy)
        expect("the auction is opened", ["OK"], event["codes"])
        return await read(*self.homes.values(), self.stage.supervisor)

    async def _cleared(self, name: str, slot: int) -> dict[str, Any]:
        """Let the gate close."""
        await self.stage.to_ms(self.stage.genesis.gate_ms(slot) + 1_000)
        [event] = [one for one in self.stage.events("auction-cleared") if one["auction"] == name]
        facts = {key: event[key] for key in event if key not in ("auction", "slot")}
        for key in ("awards", "rejected"):
            facts[key] = [
                {**one, "address": self.stage.name_of(one["address"])} for one in event[key]
            ]
        for one in facts["awards"]:
            what = "buys" if one["side"] == "buy" else "sells"
            self.tell(
                f"  {one['address']} {what} {one['energyWh']} Wh at {one['priceUcPerKwh']:,} µ¤/kWh"
            )
        return facts

    async def _settle(
        self,
        slot: int,
        before: dict[str, tuple[int, int]],
        asked: dict[str, int],
        cleared: dict[str, Any],
        rule: dict[str, int],
    ) -> _Round:
        """Everybody delivers what was traded; balances before and after."""
        net_wh = dict.fromkeys(self.homes, 0)
        for one in cleared["awards"]:
            net_wh[one["address"]] += one["energyWh"] * (1 if one["side"] == "buy" else -1)
        await self.stage.to_slot(slot, AFTER_S)
        await self._nothing_flows(slot - 1)
        await self.stage.to_slot(slot + 1, AFTER_S)
        await deliver(self.stage, slot, {self.homes[one]: wh for one, wh in net_wh.items()})
        await settle(self.stage, slot)
        after = await read(*self.homes.values(), self.stage.supervisor)
        compare(self.tell, before, after, rule)
        return _Round(asked, cleared, rule)

    async def _nothing_flows(self, slot: int) -> None:
        """Between two auctions all meters see nothing, and say so; before the first none speaks."""
        if slot > self.stage.slot0:
            await deliver(self.stage, slot, dict.fromkeys(self.homes.values(), 0))

    async def _act(self, name: str, operation: dict[str, Any], code: str = "OK") -> None:
        event = await self.homes[name].submit(operation)
        expect(f"{name}: {operation['op']}", [code], event["codes"])

    def _seal(
        self, who: str, order: _Order, name: str, slot: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The operations that commit to an order and reveal it."""
        salt = SystemRng().bytes(SALT_BYTES)
        bid = SealedBid(
            address=self.homes[who].id, slot=slot, auction=name,
            side=order.side,
            energy_wh=order.energy_wh, price_uc_per_kwh=order.price,
        )  # fmt: skip
        commit = {
            "op": "commit-bid", "slot": slot, "auction": name,
            "commitment": to_text(commitment(salt, bid)),
        }  # fmt: skip
        reveal = {**_bid(name, order), "op": "reveal-bid", "slot": slot, "salt": to_text(salt)}
        return commit, reveal

    def _reveal_ms(self, slot: int) -> int:
        genesis = self.stage.genesis
        return genesis.gate_ms(slot) - genesis.auction_rules.reveal_s * 1000


@scenario(
    "sealed-auction",
    paper="TMI (Siano et al. 2019), section V-C, with a front-runner",
    claim="A front-runner undercuts open bids by 1 µ¤/kWh; of sealed ones it reads nothing.",
    auctions=RULES,
)
async def run(stage: Stage, tell: Tell) -> Outcome:
    """Two sealed auctions, an open one, and both kinds side by side."""
    watch = _Watch()
    homes = {one: await stage.home(one) for one in HONEST}
    homes[EVE] = await stage.home(EVE, watch=watch.take)
    market = _Market(stage, tell, homes, watch)
    first = stage.slot0 + 1
    tell("sealed bids")
    sealed = await market.sealed("sealed", first, REVEALED)
    tell("sealed bids, revealed the other way round")
    again = await market.sealed("sealed-again", first + 3, REVEALED[::-1])
    expect("what is cleared after another order of reveals", sealed.cleared, again.cleared)
    tell("  awards, rejections, prices and balances are those of the first order")
    tell("open bids")
    opened = await market.open("open", first + 6)

    tell("side by side")
    heads = f"{'asks':>11}{'sells Wh':>11}{'gets µ¤':>9}"
    tell(f"  {'':<7}{'open bids':>31}{'sealed bids':>31}")
    tell(f"  {'':<7}{heads}{heads}")
    for one in (ANN, BOB, EVE):
        halves = [
            f"{each.asked[one]:>11,}{each.sold_wh(one):>11,}{each.changes[one]:>9,}"
            for each in (opened, sealed)
        ]
        tell(f"  {one:<7}{''.join(halves)}")
    expect("sold in the open auction [Wh]", (0, 0, WH), _sold(opened))
    expect("sold in the sealed auction [Wh]", (WH, 0, 0), _sold(sealed))
    expect("Eve undercuts by [µ¤/kWh]", STEP, HONEST[ANN].price - opened.asked[EVE])
    return {
        "askedUcPerKwh": {"open": opened.asked, "sealed": sealed.asked},
        "cleared": {"open": opened.cleared, "sealed": sealed.cleared, "again": again.cleared},
        "changesUc": {
            "open": opened.changes, "sealed": sealed.changes, "again": again.changes,
        },
    }  # fmt: skip


# --- helpers --------------------------------------------------------------------------------------


def _bid(name: str, order: _Order) -> dict[str, Any]:
    return {
        "op": "auction-bid", "auction": name, "side": order.side, "energyWh": order.energy_wh,
        "priceUcPerKwh": order.price,
    }  # fmt: skip


def _sold(played: _Round) -> tuple[int, ...]:
    return tuple(played.sold_wh(one) for one in (ANN, BOB, EVE))
