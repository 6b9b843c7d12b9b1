"""
Who leads: thirty made-up days under TMI's raw rule and under ours, with homes that cheat.

Every home hosts a validator. In each slot a rule says who leads its blocks, from what the homes
report of the slots before:

- **TMI in Wh, in kWh**: eq. 9, CPF = 1 / e^|P − C| of the last slot; the largest leads. The paper
  does not name the unit, so both are shown. In floating point e^−746 is zero: ties go by lot.
- **first**: who leads first in each slot by `ledger.poe`, over the last window of slots and with
  its eligibility. It is the same in both modes.
- **strict, smooth**: all turns of the slot in these modes.

What a home reports under TMI's rule is its own word. Ours takes what the meter signed, so a lie
about P or C is not heard; what is left is to lie with a broken gateway (`Role.FALSE_CPF`), to own
several meters, and to change what really flows (`BATTERY_CYCLER`, `WASTER`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Literal

import msgspec

from ledger.genesis import Poe
from ledger.poe import Candidate, build_schedule
from sim.shapes import household_w, pv_series_w, sky, vacant_w
from wire.cpf import Q16, cpf_q16, eligible

START_MS = 1_780_272_000_000
"""2026-06-01 00:00 UTC."""
SLOT_S = 900
SLOTS_PER_DAY = 96
SLOTS_PER_HOUR = 4
BLOCKS_PER_SLOT = 30
"""One every half minute: a busy market."""
DAY_WH = (6_500, 14_500)
BATTERY_WH = 8_000
BATTERY_SLOT_WH = 1_000
"""What a battery takes or gives in a slot at most [Wh]."""
ONE_WAY_PERMILLE = 950


class Role(StrEnum):
    """What a home does, and how it lies."""

    PROSUMER = "honest, PV"
    STORER = "honest, PV and battery"
    CONSUMER = "honest, no PV"
    VACANT = "vacant"
    BATTERY_CYCLER = "battery cycler"
    WASTER = "wastes its surplus"
    ZERO_ZERO = "reports P = C = 0"
    KWH = "reports in kWh"
    FAKE_P = "reports P = C"
    FALSE_CPF = "broken gateway, CPF 1"
    SYBIL = "four meters, one owner"


HOMES: tuple[Role, ...] = (
    *[Role.PROSUMER] * 4, *[Role.STORER] * 4, Role.CONSUMER, Role.VACANT, Role.BATTERY_CYCLER,
    Role.WASTER, Role.ZERO_ZERO, Role.KWH, Role.FAKE_P, Role.FALSE_CPF, *[Role.SYBIL] * 4,
)  # fmt: skip
NEIGHBOURS: tuple[Role, ...] = (*[Role.PROSUMER] * 6, *[Role.CONSUMER] * 2)
"""Eight honest homes without a battery, to try one cheat at a time among."""
ALONE = (
    Role.STORER, Role.VACANT, Role.ZERO_ZERO, Role.KWH, Role.FAKE_P, Role.BATTERY_CYCLER,
    Role.WASTER, Role.FALSE_CPF, Role.SYBIL,
)  # fmt: skip
SYBILS = 4


@dataclass(frozen=True, slots=True)
class Days:
    """A home's slots: what its meter counted."""

    name: str
    role: Role
    generations_wh: list[int]
    nets_wh: list[int]
    """Import − export [Wh]."""
    wasted_wh: int = 0

    @property
    def controller(self) -> str:
        """Who runs its validator."""
        return "sybil" if self.role is Role.SYBIL else self.name

    def reported(self, slot: int) -> tuple[float, float]:
        """P and C as it says them to TMI's rule [Wh, or kWh without saying so]."""
        produced = self.generations_wh[slot]
        consumed = produced + self.nets_wh[slot]
        match self.role:
            case Role.ZERO_ZERO:
                return 0, 0
            case Role.FAKE_P:
                return consumed, consumed
            case Role.KWH:
                return produced / 1000, consumed / 1000
            case _:
                return produced, consumed

    def attested_q16(self, slot: int, rules: Poe) -> int:
        """CPF over the window that ends with `slot`; 0 when it is not eligible."""
        if self.role is Role.FALSE_CPF:
            return Q16
        if slot + 1 < rules.window_slots:
            return 0
        window = slice(slot + 1 - rules.window_slots, slot + 1)
        nets_wh, made_wh = self.nets_wh[window], self.generations_wh[window]
        counts = eligible(
            nets_wh,
            made_wh,
            min_energy_wh=rules.min_energy_wh,
            min_production_wh=rules.min_production_wh,
        )
        return cpf_q16(nets_wh, made_wh, rules.kappa_milli) if counts else 0


@dataclass(frozen=True, slots=True)
class Led:
    """How often each home led under one rule."""

    rule: str
    blocks: Counter[str]
    """By name of the home."""
    ties: int = 0
    """Slots in which several were best and the lot decided."""
    underflows: int = 0
    """Slots in which every CPF was zero."""


def make_homes(seed: int, days: int, roles: Sequence[Role] = HOMES) -> list[Days]:
    """The homes of `roles` under one sky, the same for the same arguments."""
    light = sky(Random(f"{seed}/sky"), days, SLOT_S)
    return [
        _make(f"home-{number + 1:02d}", role, Random(f"{seed}/{number}"), light, days)
        for number, role in enumerate(roles)
    ]


def play(homes: Sequence[Days], rules: Poe, seed: int = 1) -> list[Led]:
    """Let every rule choose the leaders of all slots."""
    slots = range(rules.window_slots, len(homes[0].nets_wh))
    claims = [[home.attested_q16(slot - 1, rules) for home in homes] for slot in slots]
    return [
        _by_tmi("TMI, Wh", homes, slots, 1, seed),
        _by_tmi("TMI, kWh", homes, slots, 1000, seed),
        _by_schedule("first", homes, claims, with_mode(rules, "strict"), seed, blocks=1),
        _by_schedule("strict", homes, claims, with_mode(rules, "strict"), seed),
        _by_schedule("smooth", homes, claims, with_mode(rules, "smooth"), seed),
    ]


def try_alone(role: Role, days: int, rules: Poe, seed: int) -> dict[str, float]:
    """
    One kind of home among honest neighbours.

    Returns:
        For each rule the share of blocks that it leads, all its meters together [%].
    """
    roles = [*NEIGHBOURS, *[role] * (SYBILS if role is Role.SYBIL else 1)]
    homes = make_homes(seed, days, roles)
    return {led.rule: shares(homes, led)[role] for led in play(homes, rules, seed)}


def with_mode(rules: Poe, mode: Literal["smooth", "strict"]) -> Poe:
    """The same rules in another mode."""
    return msgspec.structs.replace(rules, mode=mode)


def tmi_cpf(produced: float, consumed: float, divisor: int) -> float:
    """TMI's eq. 9, in Wh divided by `divisor`; it underflows to zero."""
    return math.exp(-abs(produced - consumed) / divisor)


def _by_tmi(rule: str, homes: Sequence[Days], slots: range, divisor: int, seed: int) -> Led:
    led: Counter[str] = Counter()
    ties = underflows = 0
    for slot in slots:
        cpfs = [tmi_cpf(*home.reported(slot - 1), divisor) for home in homes]
        best = max(cpfs)
        first = [home for home, cpf in zip(homes, cpfs, strict=True) if cpf == best]
        ties += len(first) > 1
        underflows += best == 0.0
        seed_bytes = _seed(seed, slot)
        chosen = min(first, key=lambda home: _lot(seed_bytes, home.name))
        led[chosen.name] += BLOCKS_PER_SLOT
    return Led(rule, led, ties, underflows)


def _by_schedule(
    rule: str,
    homes: Sequence[Days],
    claims: list[list[int]],
    rules: Poe,
    seed: int,
    blocks: int = BLOCKS_PER_SLOT,
) -> Led:
    led: Counter[str] = Counter()
    ties = underflows = 0
    for number, cpfs in enumerate(claims):
        candidates = [
            Candidate(home.name, home.controller, cpf)
            for home, cpf in zip(homes, cpfs, strict=True)
        ]
        order = build_schedule(rules, candidates, _seed(seed, number))
        for turn in range(blocks):
            led[homes[order[turn % len(order)]].name] += 1
        ties += cpfs.count(max(cpfs)) > 1
        underflows += max(cpfs) == 0
    return Led(rule, led, ties, underflows)


def shares(homes: Sequence[Days], led: Led) -> dict[Role, float]:
    """Share of all blocks by role, of all its homes together [%]."""
    total = sum(led.blocks.values())
    found: dict[Role, float] = {}
    for home in homes:
        found[home.role] = found.get(home.role, 0.0) + 100 * led.blocks[home.name] / total
    return found


def _seed(seed: int, slot: int) -> bytes:
    return hashlib.sha256(f"{seed}/{slot}".encode()).digest()


def _lot(seed: bytes, name: str) -> bytes:
    return hashlib.sha256(seed + name.encode()).digest()


def _make(name: str, role: Role, rng: Random, light: list[float], days: int) -> Days:
    load_w = (
        vacant_w(rng, days, SLOT_S)
        if role is Role.VACANT
        else household_w(rng, START_MS, days, SLOT_S, DAY_WH)
    )
    used_wh = [power_w // SLOTS_PER_HOUR for power_w in load_w]
    if role in (Role.CONSUMER, Role.VACANT, Role.FAKE_P):
        return Days(name, role, [0] * len(used_wh), used_wh)
    peak_w = rng.randrange(3_000, 8_001, 250)
    pv_w = pv_series_w(rng, light, START_MS, SLOT_S, peak_w, rng.choice((-1.5, 0.0, 1.5)))
    made_wh = [power_w // SLOTS_PER_HOUR for power_w in pv_w]
    plain = [used - made for used, made in zip(used_wh, made_wh, strict=True)]
    home = Days(name, role, made_wh, plain)
    change = CHANGES.get(role)
    return home if change is None else change(home)


def _store(home: Days) -> Days:
    """A battery that takes the surplus and covers the load."""
    stored_wh, nets_wh = BATTERY_WH // 2, []
    for net_wh in home.nets_wh:
        if net_wh < 0:
            room_wh = (BATTERY_WH - stored_wh) * 1000 // ONE_WAY_PERMILLE
            flow_wh = min(-net_wh, BATTERY_SLOT_WH, room_wh)
            stored_wh += flow_wh * ONE_WAY_PERMILLE // 1000
            nets_wh.append(net_wh + flow_wh)
        else:
            flow_wh = min(net_wh, BATTERY_SLOT_WH, stored_wh * ONE_WAY_PERMILLE // 1000)
            stored_wh -= min(stored_wh, -(-flow_wh * 1000 // ONE_WAY_PERMILLE))
            nets_wh.append(net_wh - flow_wh)
    return replace(home, nets_wh=nets_wh)


def _cycle(home: Days) -> Days:
    """Charge from the grid in one slot, give it back in the next: turnover without use."""
    back_wh = BATTERY_SLOT_WH * ONE_WAY_PERMILLE**2 // 1_000_000
    flows_wh = (BATTERY_SLOT_WH, -back_wh)
    nets_wh = [net_wh + flows_wh[slot % 2] for slot, net_wh in enumerate(home.nets_wh)]
    lost_wh = (BATTERY_SLOT_WH - back_wh) * (len(nets_wh) // 2)
    return replace(home, nets_wh=nets_wh, wasted_wh=lost_wh)


def _waste(home: Days) -> Days:
    """Burn what would be sold, so that P = C by day: real consumption, for nothing."""
    wasted_wh = sum(-net_wh for net_wh in home.nets_wh if net_wh < 0)
    return replace(home, nets_wh=[max(net_wh, 0) for net_wh in home.nets_wh], wasted_wh=wasted_wh)


CHANGES: dict[Role, Callable[[Days], Days]] = {
    Role.STORER: _store,
    Role.BATTERY_CYCLER: _cycle,
    Role.WASTER: _waste,
}
