"""
Does trading pay? A simulated day of ten homes, each against its own day without a market.

Both worlds live a second day without a market, so what a battery sold on the first day has to be
bought on the second: nobody looks better for having emptied its battery.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from hem.controller.battery import Battery
from hem.controller.bidding import Situation, decide
from hem.controller.forecast import Forecaster
from hem.controller.policy import Policy
from hem.controller.setpoint import setpoint_w
from market.double_auction import Clearing, clear
from market.orders import Order
from market.settlement import Tariff, settle
from sim.baseline import day_without_market
from sim.battery_physics import WMS_PER_WH, HomePhysics, Window
from sim.devices import physics_of
from sim.homes import Home, generate_homes
from wire.units import cost_uc

START_MS = 1_780_272_000_000  # 2026-06-01T00:00Z
SLOT_S = 900
SLOT_MS = SLOT_S * 1000
SLOTS = 96
STEP_MS = 150_000
TARIFF = Tariff(300_000, 80_000, 300_000)
TOLERANCE_UC = 50_000


@dataclass
class Trader:
    home: Home
    physics: HomePhysics
    battery: Battery | None
    forecaster: Forecaster = field(default_factory=lambda: Forecaster(SLOTS))
    positions: dict[int, tuple[int, int]] = field(default_factory=dict)
    cost_uc: int = 0
    soc_seen_wh: int | None = None
    register_wh: int = 0

    @property
    def soc_wh(self) -> int | None:
        return int(self.physics.stored_wms / WMS_PER_WH) if self.battery else None

    @property
    def net_register_wh(self) -> int:
        return self.physics.import_wms // WMS_PER_WH - self.physics.export_wms // WMS_PER_WH


def trader_of(home: Home) -> Trader:
    spec, battery = home.battery, None
    if spec is not None:
        eta = spec.one_way_permille
        battery = Battery(
            spec.capacity_wh, spec.max_charge_w, spec.max_discharge_w, eta, eta, 0, 1000
        )
    return Trader(home, physics_of(home, START_MS), battery)


def bids_of(trader: Trader, slot: int, prices: tuple[int, ...]):
    # Decided while slot - 1 runs: the meter has told slot - 2, the battery its state of charge.
    situation = Situation(
        slot=slot,
        slot_seconds=SLOT_S,
        forecast=trader.forecaster.forecast(slot),
        soc_wh=trader.soc_seen_wh,
        battery=trader.battery,
        retail=TARIFF.retail_uc_per_kwh,
        feed_in=TARIFF.feed_in_uc_per_kwh,
        imbalance=TARIFF.imbalance_uc_per_kwh,
        prices=prices,
        can_buy=True,
        can_sell=trader.home.max_export_w > 0,
        max_buy_wh=5_000,
        max_sell_wh=trader.home.max_export_w // 4,
    )
    return decide(situation, Policy()).orders


def run_slot(trader: Trader, slot: int, begin_ms: int) -> int:
    """Deliver one slot in small steps; the metered net [Wh]."""
    position = trader.positions.pop(slot, None)
    physics = trader.physics
    for at_ms in range(begin_ms, begin_ms + SLOT_MS, STEP_MS):
        if position is None or trader.battery is None:
            physics.window = None
        else:
            bought, sold = position
            flows = physics.flows()
            power_w = setpoint_w(
                bought - sold,
                trader.net_register_wh - trader.register_wh,
                (begin_ms + SLOT_MS - at_ms) // 1000,
                flows.load_w,
                flows.pv_w,
                trader.soc_wh,
                trader.battery,
                True,
            )
            physics.window = Window(power_w, power_w)
        physics.advance(at_ms + STEP_MS)
    net_wh = trader.net_register_wh - trader.register_wh
    trader.register_wh = trader.net_register_wh
    bought, sold = position or (0, 0)
    trader.cost_uc += settle(net_wh, bought, sold, TARIFF).amount_uc
    return net_wh


def book(traders: list[Trader], clearing: Clearing, slot: int) -> None:
    for awards, sign in ((clearing.bid_awards, 1), (clearing.offer_awards, -1)):
        for award in awards:
            trader = traders[int(award.address)]
            bought, sold = trader.positions.get(slot, (0, 0))
            if sign > 0:
                bought += award.energy_wh
            else:
                sold += award.energy_wh
            trader.positions[slot] = (bought, sold)
            trader.cost_uc += sign * cost_uc(award.energy_wh, award.price_uc_per_kwh)


def simulate(seed: int, count: int = 10):
    traders = [trader_of(home) for home in generate_homes(count, seed, START_MS)]
    prices: list[int] = []
    traded_wh = 0
    observed: list[tuple[int, Trader, int, int]] = []
    for k in range(2 * SLOTS):
        begin_ms = START_MS + k * SLOT_MS
        slot = begin_ms // SLOT_MS
        bids, offers = [], []
        if k < SLOTS:
            for n, trader in enumerate(traders):
                for i, order in enumerate(bids_of(trader, slot, tuple(prices[-8:]))):
                    side = bids if order.side == "buy" else offers
                    side.append(Order(str(n), order.energy_wh, order.price_uc_per_kwh, (n, i)))
        clearing = clear(bids, offers)
        if k < SLOTS:
            prices.append(clearing.price_uc_per_kwh)
        traded_wh += clearing.traded_wh
        book(traders, clearing, slot)
        for late_slot, trader, load_wh, pv_wh in observed:
            trader.forecaster.observe(late_slot, load_wh, pv_wh)
        observed = []
        for trader in traders:
            trader.soc_seen_wh = trader.soc_wh  # at the start of this slot, for the next one
            run_slot(trader, slot, begin_ms)
            load_wh = trader.home.load_wms(begin_ms, begin_ms + SLOT_MS) // WMS_PER_WH
            pv_wh = trader.home.pv_wms(begin_ms, begin_ms + SLOT_MS) // WMS_PER_WH
            observed.append((slot, trader, load_wh, pv_wh))
    rows = []
    for trader in traders:
        base = day_without_market(trader.home, TARIFF, SLOT_S, START_MS, 2 * SLOTS)
        soc_uc = 0
        if trader.battery:
            # What is still missing at the very end is bought at retail.
            less = base.soc_end_permille - trader.physics.soc_permille
            soc_uc = cost_uc(less * trader.battery.capacity_wh // 1000, TARIFF.retail_uc_per_kwh)
        rows.append((trader.home, base.cost_uc, trader.cost_uc + max(soc_uc, 0)))
    return rows, traded_wh


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_the_feeder_pays_less_and_nobody_is_worse_off(seed):
    rows, traded_wh = simulate(seed)
    for home, before, after in rows:
        print(f"{home.name} {home.kind:10} {before / 1e6:8.3f} -> {after / 1e6:8.3f}")
    before, after = sum(row[1] for row in rows), sum(row[2] for row in rows)
    print(f"seed {seed}: {before / 1e6:.3f} -> {after / 1e6:.3f}, traded {traded_wh} Wh")
    assert traded_wh > 1_000
    assert after < before
    for home, without, with_market in rows:
        assert with_market <= without + abs(without) // 100 + TOLERANCE_UC, home.name
