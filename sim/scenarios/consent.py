"""
A rule is changed by the consent of all parties, and trading goes on.

Baggio asks that approval be "a multi-party procedure […] not limited to a single decisional
figure". Here the grid supervisor, aggregator and DSO in one, wants sellers to pay more for what
they sold and did not deliver: the imbalance price is to rise from a slot on. For that it needs a
quorum of the validators, whose operators write into `approvals.toml` what they agree to, and half
of the connection points whose meters spoke. A second change, beyond what the operators agreed to,
finds the homes but not the validators, and lapses.

The slot before the activation and the activation slot are traded together, delivered with the same
deviation, and settled at two prices.

Source: Baggio and Grimaccia (2020), section IV-E; docs/adr/0006. The numbers are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ledger.consent import APPROVALS_FILE
from ledger.contracts import keys, parameters
from ledger.contracts.context import SLOTS_AHEAD_MAX
from ledger.contracts.governance import change_id
from ledger.genesis import Prices
from ledger.rulebook import RuleBook
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import compare, read
from sim.scenarios.delivery import AFTER_S, deliver
from sim.stage import VALIDATORS, Actor, Stage
from wire.units import cost_uc

PATH = "prices.imbalanceUcPerKwh"
TARIFF = Prices(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=300_000)
OLD, NEW, TOO_MUCH = TARIFF.imbalance_uc_per_kwh, 400_000, 900_000
"""The imbalance price, the one agreed on, and one that finds no consent [µ¤/kWh]."""
WILLING = 3
"""Validators whose operators agree to imbalance prices up to `NEW`; the fourth wrote nothing."""
APPROVALS = f"""\
[[approve]]
path = "{PATH}"
most = {NEW}
"""
SELLER, BUYER = "ann", "bob"
HOMES = (SELLER, BUYER, "cleo", "dan")
NEEDED = 2
"""Half of the four connection points."""
NOTICE_SLOTS = SLOTS_AHEAD_MAX + 4
"""How far ahead the change becomes active: orders are taken for 96 slots."""
SOLD_WH, DELIVERED_WH = 1_000, 800
ASKS, BIDS, PRICE = 100_000, 200_000, 150_000
"""What the seller asks, what the buyer bids, and the middle, at which they trade [µ¤/kWh]."""
EVENING_WH = 300
"""What every home consumes in the slot whose meters make the voters."""
LACKING_WH = SOLD_WH - DELIVERED_WH
PAID_UC = {OLD: cost_uc(LACKING_WH, OLD), NEW: cost_uc(LACKING_WH, NEW)}
"""What the same deviation costs at both prices: 60,000 and 80,000 µ¤."""


@dataclass(frozen=True)
class _Parliament:
    """The supervisor, four homes, four validators."""

    stage: Stage
    tell: Tell
    homes: Mapping[str, Actor]
    book: RuleBook
    """The rules as the seller's client knows them."""

    async def follow(self) -> None:
        """Let the seller's client fold events into its rule book from now on."""

        async def take(_height: int, event: dict[str, Any]) -> None:
            self.book.take_event(event)

        self.homes[SELLER].client.on_event(take)

    async def propose(self, value: int, slot: int) -> str:
        """The supervisor proposes, and thereby approves as aggregator and as DSO; its name."""
        propose = {
            "op": "propose-change", "path": PATH, "value": value, "activationSlot": slot,
        }  # fmt: skip
        event = await self.stage.supervisor.submit(propose)
        expect("the proposal", ["OK"], event["codes"])
        name = change_id(PATH, value, slot)
        [proposed] = [one for one in self.stage.events("change-proposed") if one["change"] == name]
        expect("voters: connection points that spoke", len(HOMES), proposed["voters"])
        self.tell(f"  the supervisor wants {value:,} µ¤/kWh from {self.when(slot)} on")
        return name

    async def approve(self, home: str, name: str, code: str = "OK") -> None:
        """A home approves."""
        said = {"op": "approve-change", "change": name}
        event = await self.homes[home].submit(said)
        expect(f"{home}: approve-change", [code], event["codes"])

    def support(self, name: str) -> list[dict[str, Any]]:
        """How far a change was after each approval."""
        return [one for one in self.stage.events("change-supported") if one["change"] == name]

    def tell_support(self, who: str, value: int, found: Mapping[str, Any]) -> None:
        """Print how far a change is."""
        self.tell(
            f"  {who:<26}{value:>9,}{_yes(found['dso']):>5}{_yes(found['aggregator']):>12}"
            f"{found['validators']:>7} of {VALIDATORS}{found['participants']:>4} of "
            f"{found['voters']}"
        )

    def enacted(self) -> list[tuple[int, int]]:
        """(value, activation slot) of the changes that became rules, by the finalised events."""
        return [
            (one["value"], one["activationSlot"]) for one in self.stage.events("change-approved")
        ]

    def when(self, slot: int) -> str:
        """When a slot starts, for people."""
        start_s = self.stage.genesis.grid.start_ms(slot) // 1000
        return f"{datetime.fromtimestamp(start_s, UTC):%Y-%m-%d %H:%M}"

    # --- the rules of a slot ----------------------------------------------------------------------

    def agree_on(self, slot: int, price: int) -> None:
        """Demand that the client's rule book and the validators have the same rules of a slot."""
        history = self.stage.state(keys.PARAMETERS) or {}
        genesis = self.stage.genesis
        on_chain = parameters.parameters_of(genesis, parameters.values(history, genesis, slot))
        known = self.book.of_slot(slot)
        expect(f"rules of {self.when(slot)}, client and chain", on_chain, known)
        expect("imbalance price [µ¤/kWh]", price, known.tariff.imbalance_uc_per_kwh)
        expect("gate closure", genesis.gate_ms(slot), self.book.gate_ms(slot))

    # --- trading ----------------------------------------------------------------------------------

    async def order(self, *slots: int) -> None:
        """Seller and buyer give their orders."""
        for home, side, price in ((SELLER, "sell", ASKS), (BUYER, "buy", BIDS)):
            operations = [
                {
                    "op": "bid-offer", "side": side, "slot": slot, "energyWh": SOLD_WH,
                    "priceUcPerKwh": price,
                }
                for slot in slots
            ]  # fmt: skip
            event = await self.homes[home].submit(*operations)
            expect(f"{home}'s orders", ["OK"] * len(slots), event["codes"])

    async def meters(self, slot: int, **net_wh: int) -> None:
        """A slot has ended: every meter speaks; who is not named had nothing flow [Wh]."""
        await self.stage.to_slot(slot + 1, AFTER_S)
        flowed = {home: net_wh.get(name, 0) for name, home in self.homes.items()}
        await deliver(self.stage, slot, flowed)

    def settled(self, slot: int, price: int) -> int:
        """Print what a slot's deviation cost the seller, and demand it; what it got [µ¤]."""
        [event] = [one for one in self.stage.events("settled") if one["slot"] == slot]
        rows = {self.stage.name_of(row["address"]): row for row in event["rows"]}
        row = rows[SELLER]
        self.tell(
            f"  {self.when(slot):<18}{row['soldWh']:>6,}{-row['netWh']:>11,}"
            f"{row['residualWh']:>9,}{price:>11,}{row['amountUc']:>+11,}"
        )
        expect("lacking [Wh]", LACKING_WH, row["residualWh"])
        expect("settled [µ¤]", -PAID_UC[price], row["amountUc"])
        expect("of the buyer [µ¤]", 0, rows[BUYER]["amountUc"])
        return int(row["amountUc"])


@scenario(
    "consent",
    paper="Baggio, Grimaccia (2020), section IV-E",
    claim="A price changes when all parties agree, from a slot on; another change lapses.",
    prices=TARIFF,
)
async def run(stage: Stage, tell: Tell) -> Outcome:
    """A change that is agreed on, one that is not, and a slot on each side of the new price."""
    spoken = stage.slot0
    active = spoken + 2 + NOTICE_SLOTS
    lapsing = active + 4
    homes = {name: await stage.home(name, slots=(active - 1, active)) for name in HOMES}
    parliament = _Parliament(stage, tell, homes, RuleBook(stage.genesis))
    await parliament.follow()
    for number in range(WILLING):
        (stage.validator_folder(number) / APPROVALS_FILE).write_text(APPROVALS)
    tell(f"{WILLING} of {VALIDATORS} operators write into {APPROVALS_FILE}: up to {NEW:,} µ¤/kWh")
    await parliament.meters(spoken, **dict.fromkeys(HOMES, EVENING_WH))
    await parliament.meters(spoken + 1)
    tell(f"{len(HOMES)} meters have spoken: as many homes may vote, {NEEDED} are needed")

    tell(f"two values of {PATH} are proposed")
    lapses = await parliament.propose(TOO_MUCH, lapsing)
    holds = await parliament.propose(NEW, active)
    await _vote(parliament, holds, lapses, active)
    await _lapse(parliament, lapses, lapsing, active)

    tell("the slots on both sides of the change are traded together, and delivered alike")
    await stage.to_slot(active - 2, AFTER_S)
    before = await read(*homes.values(), stage.supervisor)
    await parliament.order(active - 1, active)
    for slot in (active - 1, active):
        await parliament.meters(slot, **{SELLER: -DELIVERED_WH, BUYER: SOLD_WH})
    await stage.to_slot(active + 2, AFTER_S)
    tell(f"  {'[Wh, µ¤/kWh, µ¤]':<18}{'sold':>6}{'delivered':>11}{'lacking':>9}"
         f"{'price':>11}{'settled':>11}")  # fmt: skip
    settled = {
        "before": parliament.settled(active - 1, OLD),
        "after": parliament.settled(active, NEW),
    }
    parliament.agree_on(active - 1, OLD)
    parliament.agree_on(active, NEW)
    paid_uc = 2 * cost_uc(SOLD_WH, PRICE)
    owed_uc = sum(PAID_UC.values())
    rule = {
        **dict.fromkeys(HOMES, 0),
        SELLER: paid_uc - owed_uc,
        BUYER: -paid_uc,
        "supervisor": owed_uc,
    }
    compare(tell, before, await read(*homes.values(), stage.supervisor), rule)
    return {
        "enacted": [list(one) for one in parliament.enacted()],
        "activationSlot": active,
        "lapsed": [one["change"] == lapses for one in stage.events("change-lapsed")],
        "settledUc": settled,
        "changesUc": rule,
    }


async def _vote(parliament: _Parliament, holds: str, lapses: str, active: int) -> None:
    """Party after party approves; the last approval that was needed makes it a rule."""
    stage, tell = parliament.stage, parliament.tell
    await stage.until(
        lambda: parliament.support(holds)[-1]["validators"] >= WILLING,
        "the validators did not approve",
    )
    # whoever approved the one has looked at the other, which stood before it
    expect("validators for too high a price", 0, parliament.support(lapses)[-1]["validators"])
    tell(f"  {'approved by':<26}{'price':>9}{'dso':>5}{'aggregator':>12}{'validators':>13}"
         f"{'homes':>8}")  # fmt: skip
    parliament.tell_support("the supervisor", TOO_MUCH, parliament.support(lapses)[0])
    parliament.tell_support("the supervisor", NEW, parliament.support(holds)[0])
    parliament.tell_support(f"{WILLING} of the validators", NEW, parliament.support(holds)[-1])
    await parliament.approve(HOMES[0], holds)
    parliament.tell_support(HOMES[0], NEW, parliament.support(holds)[-1])
    expect("rules with too few homes", [], parliament.enacted())
    await parliament.approve(HOMES[1], holds)
    parliament.tell_support(HOMES[1], NEW, parliament.support(holds)[-1])
    expect("rules with enough homes", [(NEW, active)], parliament.enacted())
    tell(f"  change-approved: {NEW:,} µ¤/kWh from {parliament.when(active)} on")
    for home in HOMES[:NEEDED]:
        await parliament.approve(home, lapses)
        parliament.tell_support(home, TOO_MUCH, parliament.support(lapses)[-1])
    expect("rules with homes and without validators", [(NEW, active)], parliament.enacted())


async def _lapse(parliament: _Parliament, name: str, lapsing: int, active: int) -> None:
    """When orders for its slot may come, a change that was not agreed on is forgotten."""
    stage, tell = parliament.stage, parliament.tell
    last_call = lapsing - SLOTS_AHEAD_MAX
    await stage.to_slot(last_call, AFTER_S)
    late = HOMES[NEEDED]
    await parliament.approve(late, name, code="NOT_FOUND")
    expect("lapsed", [name], [one["change"] for one in stage.events("change-lapsed")])
    expect("rules", [(NEW, active)], parliament.enacted())
    tell(f"  change-lapsed: {TOO_MUCH:,} µ¤/kWh, at {parliament.when(last_call)}")
    tell(f"  {SLOTS_AHEAD_MAX} slots ahead is the last moment: {late} comes too late (NOT_FOUND)")
    await stage.until(
        lambda: parliament.book.tariff(active).imbalance_uc_per_kwh == NEW,
        f"{SELLER}'s client did not hear of the change",
    )
    tell("the imbalance price")
    for slot, price in ((active - 1, OLD), (active, NEW), (lapsing, NEW)):
        parliament.agree_on(slot, price)
        tell(f"  {parliament.when(slot)}: {price:,} µ¤/kWh on the chain and for {SELLER}'s client")


# --- helpers --------------------------------------------------------------------------------------


def _yes(said: bool) -> str:
    return "yes" if said else "no"
