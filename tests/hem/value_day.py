"""
One day of a feeder as the demo runs it, without its processes: does trading pay for each home?

The day begins at midnight and nobody knows anything. Times within a slot are those of
`hem.service`: steer at 0, 180, … s, decide about the next slot at 120 s with the state of charge of
that moment, gate 300 s before the slot. The aggregator's auction at 19:30 is held too. Bills come
from `analytics.billing`, so "worse off" means here what it means in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from analytics.billing import HomeDay, SettledSlot, bill
from hem.controller.battery import Battery
from hem.controller.bidding import Decision, Situation, answer_auction, decide
from hem.controller.forecast import Forecaster
from hem.controller.policy import Policy
from hem.controller.setpoint import setpoint_w
from hem.service import BID_AFTER_S, STEER_EVERY_S
from hem.trader import RECENT_PRICES, after_pledge, battery_of
from market.aggregator_auction import Pricing, reverse
from market.double_auction import clear
from market.orders import Order
from market.settlement import Tariff, settle
from sim.baseline import day_without_market
from sim.battery_physics import WMS_PER_WH, HomePhysics, Window
from sim.devices import physics_of
from sim.homes import Home
from wire.units import cost_uc

START_MS = 1_780_272_000_000  # 2026-06-01T00:00Z
SLOT_S = 900
SLOT_MS = SLOT_S * 1000
SLOTS = 96
FIRST_SLOT = START_MS // SLOT_MS
PROFILE_START_MS = START_MS - SLOT_MS
TARIFF = Tariff(300_000, 80_000, 300_000)
POLICY = Policy()
FLEX_SLOT, FLEX_AHEAD, FLEX_WH, FLEX_CAP = FIRST_SLOT + 78, 4, 1_500, 280_000

Row = dict[str, Any]


@dataclass
class Trader:
    """A home, its controller, and what it has contracted."""

    home: Home
    physics: HomePhysics
    forecaster: Forecaster = field(default_factory=lambda: Forecaster(SLOTS))
    awards: dict[int, list[Row]] = field(default_factory=dict)
    settled: list[SettledSlot] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    pledged_wh: dict[int, int] = field(default_factory=dict)
    offered_wh: dict[int, int] = field(default_factory=dict)
    decisions: dict[int, tuple[Situation, Decision]] = field(default_factory=dict)
    paid_uc: int = 0
    register_wh: int = 0
    generation_wh: int = 0

    def position(self, slot: int) -> tuple[int, int] | None:
        """Bought and sold [Wh], None without awards."""
        awards = self.awards.get(slot)
        if not awards:
            return None
        bought = sum(a["energyWh"] for a in awards if a["side"] == "buy")
        return bought, sum(a["energyWh"] for a in awards) - bought

    def net_register_wh(self) -> int:
        """Import − export as the meter shows it."""
        return self.physics.import_wms // WMS_PER_WH - self.physics.export_wms // WMS_PER_WH

    def battery(self) -> tuple[Battery | None, int | None]:
        """What the controller sees: the state of charge in permille, as the device tells it."""
        spec = self.home.battery
        facts = spec and {
            "capacity_wh": spec.capacity_wh,
            "max_charge_w": spec.max_charge_w,
            "max_discharge_w": spec.max_discharge_w,
        }
        return battery_of({"battery": facts, "soc_permille": self.physics.soc_permille}, POLICY)

    def award(self, slot: int, kind: str, side: str, energy_wh: int, price: int) -> None:
        """Contract energy."""
        amount_uc = cost_uc(energy_wh, price)
        row = {
            "kind": kind, "side": side, "energyWh": energy_wh, "priceUc": price,
            "amountUc": amount_uc,
        }  # fmt: skip
        self.awards.setdefault(slot, []).append(row)
        self.paid_uc += amount_uc * (1 if side == "buy" else -1)


def situation_of(trader: Trader, slot: int, prices: dict[int, int]) -> Situation:
    """As `HomeEnergyManager._situation`."""
    battery, soc_wh = trader.battery()
    pledged_wh = trader.pledged_wh.get(slot, 0)
    if battery is not None and soc_wh is not None:
        battery, soc_wh = after_pledge(battery, soc_wh, pledged_wh, SLOT_S)
    recent = [prices.get(s, 0) for s in range(slot - RECENT_PRICES, slot)]
    home = trader.home
    return Situation(
        slot=slot,
        slot_seconds=SLOT_S,
        forecast=trader.forecaster.forecast(slot),
        soc_wh=soc_wh,
        battery=battery,
        retail=TARIFF.retail_uc_per_kwh,
        feed_in=TARIFF.feed_in_uc_per_kwh,
        imbalance=TARIFF.imbalance_uc_per_kwh,
        prices=tuple(price for price in recent if price),
        can_buy=True,
        can_sell=home.has_pv or home.battery is not None,
        max_buy_wh=home.max_import_w * SLOT_S // 3600,
        max_sell_wh=max(home.max_export_w * SLOT_S // 3600 - pledged_wh, 0),
    )


def steer(trader: Trader, slot: int, now_ms: int) -> None:
    """As `HomeEnergyManager._steer`."""
    physics = trader.physics
    flows = physics.flows()
    trader.samples.append(flows.load_w)
    battery, soc_wh = trader.battery()
    position = trader.position(slot)
    physics.window = None
    if position is not None and battery is not None:
        power_w = setpoint_w(
            position[0] - position[1],
            trader.net_register_wh() - trader.register_wh,
            (START_MS + (slot - FIRST_SLOT + 1) * SLOT_MS - now_ms) // 1000,
            flows.load_w,
            flows.pv_w,
            soc_wh,
            battery,
            True,
        )
        physics.window = Window(power_w, power_w)


def close_slot(trader: Trader, slot: int) -> None:
    """Meter, settle and learn from the slot that ends."""
    physics = trader.physics
    now_wh = trader.net_register_wh()
    net_wh, trader.register_wh = now_wh - trader.register_wh, now_wh
    made_wh = physics.generation_wms // WMS_PER_WH
    pv_wh, trader.generation_wh = made_wh - trader.generation_wh, made_wh
    load_w = sum(trader.samples) // len(trader.samples)
    trader.samples = []
    trader.forecaster.observe(slot, load_w * SLOT_S // 3600, pv_wh)
    bought, sold = trader.position(slot) or (0, 0)
    trader.paid_uc += settle(net_wh, bought, sold, TARIFF).amount_uc
    row = {"netWh": net_wh, "boughtWh": bought, "soldWh": sold}
    trader.settled.append(SettledSlot(row, trader.awards.get(slot, []), TARIFF))


def hold_auction(traders: list[Trader], prices: dict[int, int]) -> None:
    """The aggregator is short at 19:30 and asks for energy."""
    offers = []
    for n, trader in enumerate(traders):
        facts = situation_of(trader, FLEX_SLOT, prices)
        order = answer_auction(facts, POLICY, "reverse", FLEX_WH, FLEX_CAP, 0)
        if order is not None:
            trader.pledged_wh[FLEX_SLOT] = order.energy_wh
            offers.append(Order(str(n), order.energy_wh, order.price_uc_per_kwh, (n, 0)))
    for award in reverse(FLEX_WH, FLEX_CAP, offers, Pricing.UNIFORM).awards:
        traders[int(award.address)].award(
            FLEX_SLOT, "auction", "sell", award.energy_wh, award.price_uc_per_kwh
        )


def hold_market(traders: list[Trader], slot: int, prices: dict[int, int]) -> int:
    """Everybody decides about `slot`; it clears. What was traded [Wh]."""
    bids, offers = [], []
    for n, trader in enumerate(traders):
        facts = situation_of(trader, slot, prices)
        decision = decide(facts, POLICY)
        trader.decisions[slot] = facts, decision
        for i, order in enumerate(decision.orders):
            side = bids if order.side == "buy" else offers
            side.append(Order(str(n), order.energy_wh, order.price_uc_per_kwh, (n, i)))
    clearing = clear(bids, offers)
    for awards, side in ((clearing.bid_awards, "buy"), (clearing.offer_awards, "sell")):
        for a in awards:
            traders[int(a.address)].award(slot, "trade", side, a.energy_wh, a.price_uc_per_kwh)
    if clearing.traded_wh:
        prices[slot] = clearing.price_uc_per_kwh
    return clearing.traded_wh


@dataclass(frozen=True)
class Day:
    """What came of it: a bill of each home, and what was traded [Wh]."""

    bills: list[Row]
    traded_wh: int
    traders: list[Trader]

    @property
    def without_uc(self) -> int:
        """What all homes pay without a market [µ¤]."""
        return sum(row["baselineUc"] for row in self.bills)

    @property
    def with_uc(self) -> int:
        """What all homes pay with it [µ¤]."""
        return sum(row["marketUc"] for row in self.bills)

    @property
    def worst(self) -> Row:
        """The bill of the home that gains least."""
        return min(self.bills, key=lambda row: int(row["savedUc"]))


def run_day(homes: list[Home]) -> Day:
    """Let the homes trade for a day and send the bills."""
    traders = [Trader(home, physics_of(home, START_MS)) for home in homes]
    prices: dict[int, int] = {}
    traded_wh = 0
    at_s = sorted({BID_AFTER_S, *range(0, SLOT_S, STEER_EVERY_S)})
    for slot in range(FIRST_SLOT, FIRST_SLOT + SLOTS):
        begin_ms = START_MS + (slot - FIRST_SLOT) * SLOT_MS
        if slot == FLEX_SLOT - FLEX_AHEAD:
            hold_auction(traders, prices)
        for second in at_s:
            now_ms = begin_ms + second * 1000
            for trader in traders:
                trader.physics.advance(now_ms)
                if second % STEER_EVERY_S == 0:
                    steer(trader, slot, now_ms)
            if second == BID_AFTER_S and slot + 1 < FIRST_SLOT + SLOTS:
                traded_wh += hold_market(traders, slot + 1, prices)
        for trader in traders:
            trader.physics.advance(begin_ms + SLOT_MS)
            close_slot(trader, slot)
    return Day([bill_of(trader) for trader in traders], traded_wh, traders)


def bill_of(trader: Trader) -> Row:
    """The report's line of a home."""
    home = trader.home
    base = day_without_market(home, TARIFF, SLOT_S, START_MS, SLOTS)
    capacity_wh = home.battery.capacity_wh if home.battery else 0
    start_permille = home.battery.soc0_permille if home.battery else 0
    day = HomeDay(
        name=home.name,
        addresses=("a",),
        participant="",
        kind=home.kind,
        baseline_cost_uc=base.cost_uc,
        baseline_import_wh=base.import_wh,
        baseline_export_wh=base.export_wh,
        soc_start_wh=start_permille * capacity_wh // 1000,
        soc_end_wh=trader.physics.soc_permille * capacity_wh // 1000,
        baseline_soc_end_wh=base.soc_end_permille * capacity_wh // 1000,
    )
    balances = {"a": {"balanceUc": -trader.paid_uc, "depositedUc": 0}}
    return bill(day, trader.settled, balances, TARIFF)
