"""
Baggio's six transactive nodes: two houses, an electric vehicle's charger, two photovoltaic plants,
and the grid supervisor.

`baggio` is the prototype: one forward session with a fixed price, the expected balance, then the
metered profiles of each interval, whose deviations the supervisor sells or buys. In its second
interval the schedules overload the feeder, and are cut in proportion.

`baggio-zones` is what they propose for congestion: prices by zone where an interconnection is
full, and a supervisor who takes an interconnection out of service and reopens the session for an
adjustment.

A node's money is computed here again, from what the session gave it and what its meter showed, and
compared with its balance. Energy is positive when it is taken and negative when it is given.

Source: Baggio and Grimaccia (2020), section IV-C (zones, interconnections, adjustment) and IV-D
(prototype, figures 6 and 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ledger.genesis import Feeder, Prices, Zone
from sim.scenarios import Outcome, Tell, expect, scenario
from sim.scenarios.balances import compare, read
from sim.stage import Actor, Stage
from wire.units import cost_uc

HOUSE_1, HOUSE_2, EV, PV_1, PV_2 = NODES = ("house-1", "house-2", "ev", "pv-1", "pv-2")
TARIFF = Prices(retail_uc_per_kwh=300_000, feed_in_uc_per_kwh=80_000, imbalance_uc_per_kwh=400_000)
FIXED_UC_PER_KWH = 190_000
"""Of a session without zones: the middle of retail and feed-in."""
DEPOSIT_UC = 100_000_000

MORNING = {HOUSE_1: 900, HOUSE_2: 600, EV: 1_800, PV_1: -1_200, PV_2: -1_800}
MORNING_METERED = {HOUSE_1: 900, HOUSE_2: 800, EV: 1_400, PV_1: -1_200, PV_2: -1_500}
NOON = {HOUSE_1: 300, HOUSE_2: 200, PV_1: -2_000, PV_2: -1_600}
NOON_TAKEN = {HOUSE_1: 300, HOUSE_2: 200, EV: 0, PV_1: -1_389, PV_2: -1_111}
"""Of 3,600 Wh the feeder carries 2,000 and the houses take 500: 1,100 are cut, 611 and 489."""
NOON_METERED = {**NOON_TAKEN, HOUSE_2: 250}
CARRIED_WH = 2_000
"""What a feeder of 8 kW carries in a quarter of an hour."""


@dataclass
class _Line:
    """What became of a node in a slot."""

    scheduled_wh: int = 0
    taken_wh: int = 0
    """Its position: of all sessions of the slot."""
    paid_uc: int = 0
    """For that position; negative: earned."""
    metered_wh: int = 0

    @property
    def deviation_wh(self) -> int:
        return self.metered_wh - self.taken_wh

    @property
    def settled_uc(self) -> int:
        """What the deviation costs: imbalance price when more is taken, feed-in when less."""
        prices = TARIFF
        more = self.deviation_wh > 0
        price = prices.imbalance_uc_per_kwh if more else prices.feed_in_uc_per_kwh
        return cost_uc(self.deviation_wh, price)

    @property
    def change_uc(self) -> int:
        """By how much the slot changes the node's balance."""
        return -self.paid_uc - self.settled_uc


@dataclass
class _Grid:
    """The nodes on the stage, and what became of them."""

    stage: Stage
    tell: Tell
    nodes: dict[str, Actor] = field(default_factory=dict)
    lines: dict[int, dict[str, _Line]] = field(default_factory=dict)
    """By slot and node."""

    async def act(self, actor: Actor, *operations: dict[str, Any]) -> None:
        """Send operations, and demand that they are done."""
        event = await actor.submit(*operations)
        what = ", ".join(operation["op"] for operation in operations)
        expect(f"{actor.name}: {what}", ["OK"] * len(operations), event["codes"])

    async def connect(self) -> None:
        """Bring the five nodes beside the supervisor."""
        for name in NODES:
            self.nodes[name] = await self.stage.home(name, deposit_uc=DEPOSIT_UC)

    async def schedule(
        self, profiles: Mapping[int, Mapping[str, int]], limits: Mapping[str, int] | None = None
    ) -> None:
        """
        Every node says what it expects to take or give.

        Args:
            profiles: energy by slot and node [Wh]
            limits: the most a node pays, the least it takes [µ¤/kWh] (default: the tariff)
        """
        for slot in profiles:
            self.lines[slot] = {name: _Line() for name in NODES}
        for name in NODES:
            operations = []
            for slot, energies in profiles.items():
                if energy_wh := energies.get(name, 0):
                    operations.append(_schedule(slot, energy_wh, limits[name] if limits else None))
                    self.lines[slot][name].scheduled_wh = energy_wh
            if operations:
                await self.act(self.nodes[name], *operations)

    def closed(self, slot: int, number: int = 0) -> dict[str, Any]:
        """Take what a session gave the nodes into account; its event."""
        (event,) = [
            event for event in self.stage.events("session-closed")
            if (event["slot"], event["round"]) == (slot, number)
        ]  # fmt: skip
        for share in event["shares"]:
            line = self.lines[slot][self.stage.name_of(share["address"])]
            energy_wh = _signed(share["side"], share["energyWh"])
            line.taken_wh += energy_wh
            line.paid_uc += cost_uc(energy_wh, share["priceUcPerKwh"])
        return event

    def tell_balance(self, event: Mapping[str, Any]) -> None:
        """Print what a session expects of a slot."""
        self.tell(
            f"  expected: demand {event['demandWh']:,} Wh, production {event['productionWh']:,} Wh"
        )
        self.tell(f"  net {event['netWh']:+,} Wh, through the feeder {-event['exportWh']:+,} Wh")

    async def meter(self, slot: int, metered: Mapping[str, int]) -> None:
        """The slot has ended: every node's meter says what flowed [Wh]."""
        await self.stage.to_slot(slot + 1, 30)
        for name in NODES:
            self.lines[slot][name].metered_wh = metered[name]
            node = self.nodes[name]
            await self.act(node, self.stage.receipt(node, slot, metered[name]))

    def settled(self, slot: int) -> None:
        """Demand that the ledger saw the same deviations, and print what became of each node."""
        (event,) = [event for event in self.stage.events("settled") if event["slot"] == slot]
        found = {self.stage.name_of(row["address"]): row["residualWh"] for row in event["rows"]}
        wanted = {name: line.deviation_wh for name, line in self.lines[slot].items()}
        expect("deviations [Wh]", wanted, found)
        self.tell(
            f"  {'node':<8}{'scheduled':>10}{'taken':>8}{'metered':>8}{'deviation':>10}"
            f"{'trade':>11}{'imbalance':>10}{'balance':>11}"
        )
        for name, line in self.lines[slot].items():
            self.tell(
                f"  {name:<8}{line.scheduled_wh:>+10,}{line.taken_wh:>+8,}{line.metered_wh:>+8,}"
                f"{line.deviation_wh:>+10,}{-line.paid_uc:>+11,}{-line.settled_uc:>+10,}"
                f"{line.change_uc:>+11,}"
            )
        residual_wh = -sum(wanted.values())  # what the nodes give beyond their schedules
        grid_wh = sum(line.metered_wh for line in self.lines[slot].values())
        what = "buys" if residual_wh > 0 else "sells"
        self.tell(f"  the grid supervisor {what} the imbalance of {abs(residual_wh):,} Wh")
        self.tell(f"  metered through the feeder: {grid_wh:+,} Wh")

    def rule(self) -> dict[str, int]:
        """What all slots change; the supervisor is the counterparty of all [µ¤]."""
        changes = {
            name: sum(lines[name].change_uc for lines in self.lines.values()) for name in NODES
        }
        return {**changes, "supervisor": -sum(changes.values())}

    def taken(self, slot: int) -> dict[str, int]:
        return {name: line.taken_wh for name, line in self.lines[slot].items()}

    def actors(self) -> Iterable[Actor]:
        return (*self.nodes.values(), self.stage.supervisor)


@scenario(
    "baggio",
    paper="Baggio, Grimaccia (2020), section IV-D",
    claim="Six nodes schedule; deviations are settled; the feeder's rating is kept.",
    prices=TARIFF,
    feeder=Feeder(rating_w=8_000),
)
async def prototype(stage: Stage, tell: Tell) -> Outcome:
    """A forward session over two intervals at a fixed price; the second overloads the feeder."""
    morning, noon = stage.slot0 + 2, stage.slot0 + 3
    grid = _Grid(stage, tell)
    await grid.connect()
    before = await read(*grid.actors())
    await stage.to_slot(morning - 1, 60)
    await grid.schedule({morning: MORNING, noon: NOON})
    tell(f"first interval, at {FIXED_UC_PER_KWH:,} µ¤/kWh")
    await stage.to_ms(stage.genesis.gate_ms(morning))
    event = grid.closed(morning)
    grid.tell_balance(event)
    expect("expected balance [Wh]", (3_300, 3_000, 300), _balance(event))
    expect("taken [Wh]", MORNING, grid.taken(morning))
    await stage.to_ms(stage.genesis.gate_ms(noon))
    overloaded = grid.closed(noon)
    await grid.meter(morning, MORNING_METERED)
    await stage.to_slot(morning + 2, 5)
    grid.settled(morning)
    tell(f"second interval: the feeder carries 8 kW, {CARRIED_WH:,} Wh")
    grid.tell_balance(overloaded)
    expect("expected balance [Wh]", (500, 3_600, -3_100), _balance(overloaded))
    expect("through the feeder [Wh]", CARRIED_WH, overloaded["exportWh"])
    expect("taken [Wh]", NOON_TAKEN, grid.taken(noon))
    await grid.meter(noon, NOON_METERED)
    await stage.to_slot(noon + 2, 5)
    grid.settled(noon)
    expect("the feeder is kept", True, abs(sum(NOON_METERED.values())) <= CARRIED_WH)
    tell("both intervals")
    compare(tell, before, await read(*grid.actors()), grid.rule())
    prices = {share["priceUcPerKwh"] for one in (event, overloaded) for share in one["shares"]}
    expect("prices [µ¤/kWh]", {FIXED_UC_PER_KWH}, prices)
    return {
        "changesUc": grid.rule(),
        "takenWh": {"first": grid.taken(morning), "second": grid.taken(noon)},
    }


WANTED = {HOUSE_1: 1_200, HOUSE_2: 600, EV: 1_800, PV_1: -1_200, PV_2: -1_200}
LIMITS = {HOUSE_1: 320_000, HOUSE_2: 310_000, EV: 250_000, PV_1: 90_000, PV_2: 120_000}
SPLIT = {HOUSE_1: 1_200, HOUSE_2: 600, EV: 0, PV_1: -1_200, PV_2: -300}
"""The cheaper plant sells all, the dearer what is left of the interconnection; the charger will not
pay the retail price."""
GIVEN_BACK = {HOUSE_2: -200, PV_1: 1_200, PV_2: 300}
ADJUSTED = {HOUSE_1: 1_200, HOUSE_2: 400, EV: 0, PV_1: 0, PV_2: 0}
ADJUSTED_METERED = {HOUSE_1: 1_300, HOUSE_2: 400, EV: 0, PV_1: 0, PV_2: 0}
SOUTH_UC_PER_KWH = (310_000 + TARIFF.retail_uc_per_kwh) // 2
"""The middle of the last bid that is served and the last offer that is sold, the supervisor's."""
NORTH_UC_PER_KWH = (120_000 + SOUTH_UC_PER_KWH) // 2
"""The same, of the dearer plant, which sells a part, and of what the south pays."""
BACK_UC_PER_KWH = (TARIFF.imbalance_uc_per_kwh + TARIFF.retail_uc_per_kwh) // 2
"""At which a house gives back: plants that cannot deliver pay up to the imbalance price for what
the supervisor sells at retail."""
ISLAND_UC_PER_KWH = (TARIFF.imbalance_uc_per_kwh + BACK_UC_PER_KWH) // 2
ZONES = {PV_1: "north", PV_2: "north", HOUSE_1: "south", HOUSE_2: "south", EV: "south"}


@scenario(
    "baggio-zones",
    paper="Baggio, Grimaccia (2020), section IV-C",
    claim="A full interconnection splits the price; the supervisor closes it and adjusts.",
    prices=TARIFF,
    feeder=Feeder(
        rating_w=20_000,
        congestion="split",
        zones=(Zone(name="north", rating_w=6_000), Zone(name="south", rating_w=20_000)),
    ),
)
async def zones(stage: Stage, tell: Tell) -> Outcome:
    """Two zones; the plants' interconnection is full, and then out of service."""
    slot = stage.slot0 + 2
    grid = _Grid(stage, tell)
    await grid.connect()
    before = await read(*grid.actors())
    await stage.to_slot(slot - 1, 60)
    assign = [
        {"op": "assign-zone", "address": grid.nodes[name].id, "zone": zone}
        for name, zone in ZONES.items()
    ]
    await grid.act(stage.supervisor, *assign)
    await grid.schedule({slot: WANTED}, LIMITS)
    await stage.to_ms(stage.genesis.gate_ms(slot))
    tell("the plants' interconnection carries 6 kW, 1,500 Wh")
    event = grid.closed(slot)
    grid.tell_balance(event)
    split = _tell_zones(tell, event)
    expect("taken [Wh]", SPLIT, grid.taken(slot))
    expect(
        "zones: out of them [Wh], price, full",
        {"north": (1_500, NORTH_UC_PER_KWH, True), "south": (-1_800, SOUTH_UC_PER_KWH, False)},
        split,
    )
    rent_uc = cost_uc(1_500, SOUTH_UC_PER_KWH - NORTH_UC_PER_KWH)
    tell(f"  the supervisor, who carries it from north to south, keeps {rent_uc:,} µ¤")
    tell("the supervisor closes the interconnection and reopens the session")
    await grid.act(
        stage.supervisor,
        {"op": "close-interconnection", "zone": "north", "startSlot": slot, "endSlot": slot},
        {
            "op": "open-adjustment", "slot": slot,
            "deadlineMs": stage.genesis.grid.start_ms(slot) - 60_000,
        },
    )  # fmt: skip
    for name, energy_wh in GIVEN_BACK.items():
        await grid.act(grid.nodes[name], _schedule(slot, energy_wh, _worth(energy_wh)))
    await stage.to_slot(slot, -60)
    adjusted = _tell_zones(tell, grid.closed(slot, 1))
    expect("taken after the adjustment [Wh]", ADJUSTED, grid.taken(slot))
    expect(
        "zones after the adjustment",
        {"north": (0, ISLAND_UC_PER_KWH, True), "south": (-1_600, BACK_UC_PER_KWH, False)},
        adjusted,
    )
    await grid.meter(slot, ADJUSTED_METERED)
    await stage.to_slot(slot + 2, 5)
    grid.settled(slot)
    compare(tell, before, await read(*grid.actors()), grid.rule())
    return {"changesUc": grid.rule(), "zones": {"split": split, "adjusted": adjusted}}


# --- helpers --------------------------------------------------------------------------------------


def _schedule(slot: int, energy_wh: int, price: int | None) -> dict[str, Any]:
    side = "buy" if energy_wh > 0 else "sell"
    widest = TARIFF.retail_uc_per_kwh if energy_wh > 0 else TARIFF.feed_in_uc_per_kwh
    return {
        "op": "submit-schedule", "side": side, "slot": slot, "energyWh": abs(energy_wh),
        "priceUcPerKwh": widest if price is None else price,
    }  # fmt: skip


def _worth(energy_wh: int) -> int:
    """At what price giving back beats a deviation: imbalance for plants, feed-in for houses."""
    return TARIFF.imbalance_uc_per_kwh if energy_wh > 0 else TARIFF.feed_in_uc_per_kwh


def _signed(side: str, energy_wh: int) -> int:
    return energy_wh if side == "buy" else -energy_wh


def _balance(event: Mapping[str, Any]) -> tuple[int, int, int]:
    return event["demandWh"], event["productionWh"], event["netWh"]


def _tell_zones(tell: Tell, event: Mapping[str, Any]) -> dict[str, tuple[int, int, bool]]:
    """Print a session's zones: what flows out [Wh], the price, whether the rating was binding."""
    found = {
        row["zone"]: (row["outWh"], row["priceUcPerKwh"], row["congested"])
        for row in event["zones"] if row["zone"]
    }  # fmt: skip
    for zone, (out_wh, price, congested) in found.items():
        full = ", the interconnection is full" if congested else ""
        tell(f"  {zone}: {out_wh:+,} Wh go out, {price:,} µ¤/kWh{full}")
    return found
