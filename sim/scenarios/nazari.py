"""
Nazari's five scenarios, one after the other on one ledger, between one seller and one buyer.

    1  the energy is delivered
    2  the seller gives its offer up, before and after the acceptance deadline
    3  the offer is accepted too late
    4  the energy is delivered too late
    5  more than k penalties: neither selling nor buying for a while

What moves is written here from the paper's pseudo-code, not taken from `market.escrow`: P is the
seller's guarantee, p the part of it that a failure costs, y the fee of an offer or an acceptance.
The paper leaves what is kept of a guarantee "in the smart contract"; here it goes to the grid
supervisor (docs/concepts/escrow.md).

Source: Nazari, Khorsandi, Babaki (2021), section V, figures 1 to 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ledger.genesis import Escrow
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import Balances, compare, read
from sim.stage import Actor, Stage
from wire.units import cost_uc

ENERGY_WH, PRICE_UC_PER_KWH, GUARANTEE_UC = 1_000, 150_000, 50_000
COST_UC = 150_000
FEE_UC = 1_000
"""Nazari's y."""
PENALTY_UC = 15_000
"""Nazari's p, 30 %, of the guarantee."""
RULES = Escrow(fee_uc=FEE_UC, penalty_permille=300, max_penalties=2, ban_slots=3)
"""k is 2."""
DEPOSIT_UC = 100_000_000


@dataclass(frozen=True)
class _Play:
    """Who is on the stage, and what they can do."""

    stage: Stage
    tell: Tell
    seller: Actor
    buyer: Actor

    async def balances(self) -> Balances:
        return await read(self.seller, self.buyer, self.stage.supervisor)

    async def make_offer(
        self, name: str, slot: int, accept_by_s: int = 600, deliver_by_s: int = 900
    ) -> None:
        """
        CTS: the seller offers energy of a slot, and its guarantee is blocked.

        Args:
            accept_by_s: after the start of the slot before, at the latest its gate closure
            deliver_by_s: after the slot's end, at the latest its settlement
        """
        start_ms = self.stage.genesis.grid.start_ms
        await self.act(
            self.seller,
            {
                "op": "make-offer",
                "offer": self.named(name),
                "slot": slot,
                "energyWh": ENERGY_WH,
                "priceUcPerKwh": PRICE_UC_PER_KWH,
                "guaranteeUc": GUARANTEE_UC,
                "acceptBeforeMs": start_ms(slot - 1) + accept_by_s * 1000,
                "deliverBeforeMs": start_ms(slot + 1) + deliver_by_s * 1000,
            },
        )

    async def accept(self, name: str, code: str = "OK") -> None:
        """CTP: the buyer repeats energy and price, and the cost is blocked."""
        acceptance = {
            "op": "accept-escrow", "offer": self.named(name), "energyWh": ENERGY_WH,
            "priceUcPerKwh": PRICE_UC_PER_KWH,
        }  # fmt: skip
        await self.act(self.buyer, acceptance, code=code)

    async def give_up(self, name: str, code: str = "OK") -> None:
        """CCS: the seller takes its offer back."""
        await self.act(self.seller, {"op": "give-up", "offer": self.named(name)}, code=code)

    async def meter(self, actor: Actor, slot: int, net_wh: int) -> None:
        """ERC: a meter says what flowed in a slot [Wh]."""
        await self.act(actor, self.stage.receipt(actor, slot, net_wh))

    async def act(self, actor: Actor, *operations: dict[str, Any], code: str = "OK") -> None:
        """Send operations, and demand that each ends with a code."""
        event = await actor.submit(*operations)
        what = ", ".join(operation["op"] for operation in operations)
        expect(f"{actor.name}: {what}", [code] * len(operations), event["codes"])
        self.tell(f"  {actor.name}: {what} → {code}")

    async def nothing_flows(self, *slots: int) -> None:
        """Let slots end in which both meters see nothing, and say so."""
        for slot in slots:
            await self.stage.to_slot(slot + 1, 30)
            for actor in (self.seller, self.buyer):
                event = await actor.submit(self.stage.receipt(actor, slot, 0))
                expect(f"{actor.name}: receipt of nothing", ["OK"], event["codes"])

    async def blocked(self) -> None:
        """Demand that guarantee and cost of one trade are blocked."""
        (_, seller_uc), (_, buyer_uc), _ = (await self.balances()).values()
        self.tell(f"  blocked: {seller_uc:,} µ¤ of the seller, {buyer_uc:,} µ¤ of the buyer")
        expect("blocked [µ¤]", (GUARANTEE_UC, COST_UC), (seller_uc, buyer_uc))

    def is_over(self, name: str, state: str) -> None:
        """Demand the state in which a trade ended."""
        ended = {event["offer"]: event["state"] for event in self.stage.events("escrow-ended")}
        expect(f"offer {name}", state, ended.get(self.named(name), "open"))

    async def compare(self, before: Balances, seller: int = 0, buyer: int = 0) -> dict[str, int]:
        """Compare all balances with a rule; what the two lose, the supervisor gets [µ¤]."""
        rule = {"seller": seller, "buyer": buyer, "supervisor": -seller - buyer}
        compare(self.tell, before, await self.balances(), rule)
        return rule

    def named(self, name: str) -> str:
        return f"{self.seller.id}:{name}"


@scenario(
    "nazari",
    paper="Nazari, Khorsandi, Babaki (2021), section V",
    claim="Five scenarios of an escrowed trade, every balance by the paper's rule.",
    escrow=RULES,
)
async def run(stage: Stage, tell: Tell) -> Outcome:
    """Play the five scenarios; the outcome is what each account gained in each [µ¤]."""
    first = stage.slot0 + 2
    play = _Play(
        stage, tell,
        seller=await stage.home("seller", deposit_uc=DEPOSIT_UC, production_wh=5_000),
        buyer=await stage.home("buyer", deposit_uc=DEPOSIT_UC, consumption_wh=5_000),
    )  # fmt: skip
    tell(f"{ENERGY_WH:,} Wh for {COST_UC:,} µ¤; fee y = {FEE_UC:,}; k = {RULES.max_penalties}")
    tell(f"guarantee P = {GUARANTEE_UC:,}, of which a failure costs {PENALTY_UC:,} (p = 30 %)")
    changes = {
        "1 delivered": await _delivered(play, first),
        "2 given up before the deadline": await _given_up_in_time(play, first + 2),
        "2 given up after the deadline": await _given_up_late(play, first + 2),
        "3 accepted too late": await _accepted_late(play, first + 2),
        "4 delivered too late": await _delivered_late(play, first + 2),
        "5 more than k penalties": await _banned(play, first + 5),
    }
    return {"changesUc": changes}


async def _delivered(play: _Play, slot: int) -> dict[str, int]:
    """Section III: both meters have spoken: cost and guarantee go to the seller."""
    play.tell("scenario 1: the energy is delivered")
    await play.stage.to_slot(slot - 1, 60)
    before = await play.balances()
    await play.make_offer("good", slot)
    await play.accept("good")
    await play.blocked()
    await play.stage.to_slot(slot + 1, 30)
    await play.meter(play.seller, slot, -ENERGY_WH)
    await play.meter(play.buyer, slot, ENERGY_WH)
    play.is_over("good", "delivered")
    return await play.compare(before, seller=COST_UC - FEE_UC, buyer=-COST_UC - FEE_UC)


async def _given_up_in_time(play: _Play, slot: int) -> dict[str, int]:
    """Fig. 4, before: Transfer(PKs, P − p)."""
    play.tell("scenario 2: the seller gives up before the acceptance deadline")
    before = await play.balances()
    await play.make_offer("early", slot)
    await play.give_up("early")
    play.is_over("early", "withdrawn")
    return await play.compare(before, seller=-FEE_UC - PENALTY_UC)


async def _given_up_late(play: _Play, slot: int) -> dict[str, int]:
    """Fig. 4, after: Transfer(PKs, P)."""
    play.tell("scenario 2: the seller gives up after the acceptance deadline")
    before = await play.balances()
    await play.make_offer("late", slot, accept_by_s=180)
    await play.stage.to_slot(slot - 1, 180)
    await play.give_up("late", "EXPIRED")
    play.is_over("late", "expired")
    return await play.compare(before, seller=-FEE_UC)


async def _accepted_late(play: _Play, slot: int) -> dict[str, int]:
    """Fig. 5: Transfer(PKs, P), Transfer(PKB, P): both have what they would have blocked."""
    play.tell("scenario 3: the offer is accepted too late")
    before = await play.balances()
    await play.make_offer("missed", slot, accept_by_s=300)
    await play.stage.to_slot(slot - 1, 300)
    await play.accept("missed", "EXPIRED")
    play.is_over("missed", "expired")
    return await play.compare(before, seller=-FEE_UC)


async def _delivered_late(play: _Play, slot: int) -> dict[str, int]:
    """Fig. 6: Transfer(PKB, P), Transfer(PKs, P − p), number of penalty++."""
    play.tell("scenario 4: the energy is delivered too late")
    stage = play.stage
    before = await play.balances()
    await play.make_offer("slow", slot, deliver_by_s=120)
    await play.accept("slow")
    await play.blocked()
    await play.nothing_flows(slot - 1)
    await stage.to_slot(slot + 1, 120)
    play.is_over("slow", "failed")
    changes = await play.compare(before, seller=-FEE_UC - PENALTY_UC, buyer=-FEE_UC)
    penalties = stage.state(f"penalty/{play.seller.id}")["count"]
    play.tell(f"  penalties of the seller: {penalties}")
    expect("penalties", 1, penalties)
    before = await play.balances()
    await play.meter(play.seller, slot, -ENERGY_WH)
    await play.meter(play.buyer, slot, ENERGY_WH)
    await stage.to_slot(slot + 2, 5)
    play.tell("  the energy came all the same: settled like any other, at the tariff")
    prices = stage.genesis.prices
    await play.compare(
        before,
        seller=cost_uc(ENERGY_WH, prices.feed_in_uc_per_kwh),
        buyer=-cost_uc(ENERGY_WH, prices.retail_uc_per_kwh),
    )
    return changes


async def _banned(play: _Play, slot: int) -> dict[str, int]:
    """Fig. 7: number of penalty > k: the seller is no authorised address for a while."""
    play.tell("scenario 5: more than k penalties")
    stage, failed = play.stage, (slot, slot + 1)
    before = await play.balances()
    await play.nothing_flows(slot - 2)
    for one in failed:
        await play.make_offer(f"again-{one}", one)
        await play.accept(f"again-{one}")
        await play.nothing_flows(one - 1)
    await play.nothing_flows(slot + 1)
    await stage.to_slot(slot + 3, 5)
    for one in failed:
        play.is_over(f"again-{one}", "failed")
    changes = await play.compare(before, seller=-2 * (FEE_UC + PENALTY_UC), buyer=-2 * FEE_UC)
    banned = [event for event in stage.events("banned") if event["address"] == play.seller.id]
    until = slot + 3 + RULES.ban_slots - 1
    expect("last slots of bans", [until], [event["untilSlot"] for event in banned])
    play.tell(f"  with its third penalty the seller is banned for {RULES.ban_slots} slots")
    before = await play.balances()
    wanted = [
        {
            "op": "bid-offer", "side": side, "slot": slot + 5, "energyWh": 100,
            "priceUcPerKwh": PRICE_UC_PER_KWH,
        }
        for side in ("sell", "buy")
    ]  # fmt: skip
    await play.act(play.seller, *wanted, code="BANNED")
    await play.compare(before)
    await play.nothing_flows(*range(slot + 2, until + 1))
    await play.act(play.seller, {**wanted[0], "slot": until + 3})
    play.tell("  the ban is over: it sells again")
    return changes
