"""
The homes of the simulated month: as different as neighbours are.

Size, roof, battery, car, heat pump, habits and the owner's trading policy differ from home to home,
and so do its clock and its way to the broker. All of it comes from the seed. Loads are made-up
days (`sim.shapes`) in means of a slot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from hem.controller.policy import Policy, WalletPolicy
from sim.homes import BatterySpec, make_battery
from sim.shapes import DAY_S, ev_charging_w, household_w, pv_series_w, sky

START_MS = 1_780_272_000_000
"""2026-06-01 00:00 UTC."""
SLOT_S = 900
SLOTS_PER_DAY = DAY_S // SLOT_S
PV_SHARE, BATTERY_SHARE, EV_SHARE, HEAT_PUMP_SHARE = 0.6, 0.5, 0.2, 0.25
DEFAULT_POLICY_SHARE = 0.7
"""Of the owners leave the policy as it is shipped."""
MARGINS_PERMILLE = (100, 200, 250)
PRICE_STEP_UC = 5_000
"""Owners who set a least price think in half cents [µ¤/kWh]."""
TARGETS_UC = (5_000_000, 10_000_000, 20_000_000, 50_000_000)
CLOCK_SPREAD_MS = 40.0
"""Standard deviation of clocks that a time server keeps right [ms]."""


@dataclass(slots=True)
class MonthHome:
    """A home's truth: what the attacker does not see."""

    name: str
    load_wh: list[int]
    """Of each slot [Wh]."""
    pv_wh: list[int]
    battery: BatterySpec | None
    policy: Policy
    connection_wh: int
    """What its connection moves in a slot [Wh]."""
    clock_offset_ms: float
    network_ms: float
    """Mean delay to the broker [ms]."""
    work_ms: float
    """How long its machine takes from the clock's stroke to a message [ms]."""
    validator: bool = False
    nets_wh: list[int] = field(default_factory=list)
    """What its meter counted, import − export, slot by slot [Wh]."""
    soc_wh: int = 0

    @property
    def has_pv(self) -> bool:
        """Is there any PV?"""
        return any(self.pv_wh)


def make_homes(count: int, days: int, seed: int, validators: int) -> list[MonthHome]:
    """
    A street of homes, the same for the same arguments.

    Args:
        validators: so many of those with PV host one, as far as there are

    Raises:
        ValueError: no homes or no days.
    """
    if count < 1 or days < 1:
        raise ValueError(f"count={count}, days={days}")
    light = sky(Random(f"month/{seed}/sky"), days, SLOT_S)
    homes = [_make(index, days, seed, light) for index in range(count)]
    for home in sorted(homes, key=lambda one: not one.has_pv)[:validators]:
        home.validator = True
    return homes


def meter(home: MonthHome, index: int, position_wh: int | None) -> int:
    """
    Let a slot pass: the battery brings the net to the position as far as it can.

    Args:
        index: of the slot in the month
        position_wh: contracted import − export; None: nothing, the battery serves the home

    Returns:
        Net energy at the meter, import − export [Wh].
    """
    net_wh = home.load_wh[index] - home.pv_wh[index]
    battery = home.battery
    if battery is not None:
        wanted_wh = net_wh - (0 if position_wh is None else position_wh)
        net_wh -= _flow(home, battery, wanted_wh)
    home.nets_wh.append(net_wh)
    return net_wh


def _flow(home: MonthHome, battery: BatterySpec, wanted_wh: int) -> int:
    """What the battery gives (+) or takes (−) of what is wanted [Wh]."""
    one_way = battery.one_way_permille
    if wanted_wh >= 0:
        most_wh = battery.max_discharge_w * SLOT_S // 3600
        given_wh = min(wanted_wh, most_wh, home.soc_wh * one_way // 1000)
        home.soc_wh -= min(home.soc_wh, -(-given_wh * 1000 // one_way))
        return given_wh
    room_wh = (battery.capacity_wh - home.soc_wh) * 1000 // one_way
    taken_wh = min(-wanted_wh, battery.max_charge_w * SLOT_S // 3600, room_wh)
    home.soc_wh += taken_wh * one_way // 1000
    return -taken_wh


def _make(index: int, days: int, seed: int, light: list[float]) -> MonthHome:
    rng = Random(f"month/{seed}/{index}")
    day_wh = round(rng.lognormvariate(math.log(9_000), 0.4))
    load_w = household_w(rng, START_MS, days, SLOT_S, (day_wh * 7 // 10, day_wh * 13 // 10))
    if rng.random() < EV_SHARE:
        load_w = _sum(load_w, ev_charging_w(rng, START_MS, days, SLOT_S))
    if rng.random() < HEAT_PUMP_SHARE:
        load_w = _sum(load_w, heat_pump_w(rng, days))
    pv_w = [0] * len(load_w)
    battery = None
    if rng.random() < PV_SHARE:
        peak_w, turn_h = rng.randrange(2_000, 10_001, 100), rng.uniform(-2.0, 2.0)
        pv_w = pv_series_w(rng, light, START_MS, SLOT_S, peak_w, turn_h)
        battery = make_battery(rng) if rng.random() < BATTERY_SHARE else None
    return MonthHome(
        name=f"home-{index + 1:02d}",
        load_wh=[power_w * SLOT_S // 3600 for power_w in load_w],
        pv_wh=[power_w * SLOT_S // 3600 for power_w in pv_w],
        battery=battery,
        policy=_policy(rng),
        connection_wh=rng.choice((2_875, 4_312, 5_500, 6_037, 8_625)),
        clock_offset_ms=rng.gauss(0, CLOCK_SPREAD_MS),
        network_ms=rng.lognormvariate(math.log(25), 0.5),
        work_ms=rng.uniform(150, 1_500),
        soc_wh=0 if battery is None else battery.capacity_wh * battery.soc0_permille // 1000,
    )


def heat_pump_w(rng: Random, days: int) -> list[int]:
    """A heat pump for hot water: one or two runs a day at hours of its own, in a slot's means."""
    power_w, minutes = rng.uniform(600, 2_000), rng.uniform(40, 100)
    starts = sorted(rng.uniform(0, 24) for _ in range(rng.choice((1, 2, 2))))
    series = [0] * (days * SLOTS_PER_DAY)
    for day in range(days):
        for start_h in starts:
            first = day * SLOTS_PER_DAY + int((start_h + rng.uniform(-0.3, 0.3)) % 24 * 4)
            for slot in range(first, min(first + round(minutes / 15), len(series))):
                series[slot] += round(power_w * rng.uniform(0.9, 1.1))
    return series


def _policy(rng: Random) -> Policy:
    """As it is shipped, or with a margin, a least price and a wallet that the owner chose."""
    fields: dict[str, object] = {"markets": ("double-auction",)}
    if rng.random() >= DEFAULT_POLICY_SHARE:
        fields["margin_permille"] = rng.choice(MARGINS_PERMILLE)
        if rng.random() < 0.5:
            fields["sell_price_min"] = rng.randrange(100_000, 200_000, PRICE_STEP_UC)
        target_uc = rng.choice(TARGETS_UC)
        fields["wallet"] = WalletPolicy(
            withdraw=True, least_uc=target_uc // 5, target_uc=target_uc, most_uc=2 * target_uc
        )
    return Policy.model_validate(fields)


def _sum(one: list[int], other: list[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]
