"""
The aggregator's decisions: funding, the feeder's schedule, flexibility, and its books. Pure.

    fund            a registered address           -> the operations that let it trade, once
    day_ahead       history of the feeder          -> expected net energy of each slot
    flexibility     deviation from the schedule    -> the auction for exactly that energy
    Book            settled slots                  -> what the supervisor bought and sold

Every operation comes with a key, under which the outbox does it once. Net energy is import − export
of the whole feeder [Wh].

References:
    TMI sections IV and V-C (the aggregator's schedule and reverse auction); PETra (energy and
    financial assets); Baggio & Grimaccia (schedule, balancing, grid supervisor); ADR 0004.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KeyedOperation = tuple[str, dict[str, Any]]
"""An operation and the key under which it is done once."""
DAY_S = 86_400
MIN_AHEAD_SLOTS = 2
"""An auction is opened at least so long before its slot, or homes could not answer in time."""


@dataclass(frozen=True, slots=True)
class FundingPolicy:
    """What an address gets where its registration does not say."""

    deposit_uc: int
    production_wh: int
    consumption_wh: int
    slots: int
    automatic: bool = True
    """False: participants withdraw from their accounts with the DSO (`aggregator.withdrawals`)."""


@dataclass(frozen=True, slots=True)
class FlexibilityPolicy:
    """When to ask for energy, and at what price. See `aggregator.config.Flexibility`."""

    band_wh: int
    cap_uc_per_kwh: int
    floor_uc_per_kwh: int
    ahead_slots: int
    max_energy_wh: int
    pricing: str
    known_wh: Mapping[int, int] = field(default_factory=dict)
    """Deviations known beforehand, by slot of the day [Wh]."""


# --- funding ------------------------------------------------------------------------------------


def fund(event: Mapping[str, Any], slot: int, policy: FundingPolicy) -> list[KeyedOperation]:
    """
    The operations that let a newly registered address trade.

    Its registration names what its grant allows; those limits become its energy assets. Money is
    the same for everybody.

    Args:
        event: `address-registered`
        slot: the current slot, where the registration names no interval
    """
    if not policy.automatic:
        return []
    address = event["address"]
    interval = {
        "startSlot": event.get("startSlot", slot),
        "endSlot": event.get("endSlot", slot + policy.slots),
    }
    sides = (
        ("production", event.get("canSell", True), event.get("maxSellWh", policy.production_wh)),
        ("consumption", event.get("canBuy", True), event.get("maxBuyWh", policy.consumption_wh)),
    )
    operations = [
        (
            f"fund/{address}/{kind}",
            {
                "op": "add-energy-asset",
                "address": address,
                "kind": kind,
                "energyWh": energy_wh,
                **interval,
            },
        )
        for kind, allowed, energy_wh in sides
        if allowed and energy_wh > 0
    ]
    if policy.deposit_uc > 0:
        money = {
            "op": "add-financial-balance",
            "address": address,
            "amountUc": policy.deposit_uc,
        }
        operations.append((f"fund/{address}/money", money))
    return operations


# --- schedule -----------------------------------------------------------------------------------


def day_ahead(
    history: Iterable[tuple[int, int]],
    first_slot: int,
    slot_s: int,
    days: int,
    standing_wh: Sequence[int] = (),
) -> list[int | None]:
    """
    Expected net energy of each slot of the day that begins with `first_slot`.

    The mean of the same slot of the day over the last `days` days; without any, the standing
    schedule's; without that, None: nothing is expected, so nothing can deviate.

    Args:
        history: (slot, net energy [Wh]) of the past
        standing_wh: one value for each slot of the day, or none at all
    """
    per_day = DAY_S // slot_s
    seen: dict[int, list[int]] = {}
    for slot, net_wh in history:
        if first_slot - days * per_day <= slot < first_slot:
            seen.setdefault((slot - first_slot) % per_day, []).append(net_wh)
    expected: list[int | None] = []
    for index in range(per_day):
        if index in seen:
            expected.append(sum(seen[index]) // len(seen[index]))
        else:
            of_day = (first_slot + index) % per_day
            expected.append(standing_wh[of_day] if of_day < len(standing_wh) else None)
    return expected


def forecast_deviation(measured: Sequence[tuple[int, int | None]]) -> int:
    """
    The deviation that the next slots will probably have [Wh].

    Persistence: the mean of the last measured deviations from the schedule.

    Args:
        measured: (net energy, expected net energy or None) of the last slots [Wh]
    """
    deviations = [net_wh - expected for net_wh, expected in measured if expected is not None]
    return sum(deviations) // len(deviations) if deviations else 0


# --- flexibility --------------------------------------------------------------------------------


def flexibility(
    current_slot: int, slot_s: int, forecast_wh: int, policy: FlexibilityPolicy
) -> list[KeyedOperation]:
    """
    The auctions to open now: at most one per slot, whose key makes sure of that.

    More import than scheduled is bought back from homes (reverse auction, price cap); less is sold
    to them (forward auction, floor price). Within the band the supervisor carries it.

    Deviations known beforehand are looked for from `ahead_slots` down to two slots ahead, so that a
    slot passed over in a restart is still served while homes can answer. The measured forecast is
    for the farthest slot only.

    Args:
        forecast_wh: deviation expected from what was measured [Wh]
    """
    farthest = current_slot + policy.ahead_slots
    wanted = {farthest: forecast_wh}
    for slot in range(current_slot + MIN_AHEAD_SLOTS, farthest + 1):
        known_wh = policy.known_wh.get(slot % (DAY_S // slot_s))
        if known_wh is not None:
            wanted[slot] = known_wh
    return [
        _auction(slot, deviation_wh, policy)
        for slot, deviation_wh in sorted(wanted.items())
        if abs(deviation_wh) > policy.band_wh
    ]


def _auction(slot: int, deviation_wh: int, policy: FlexibilityPolicy) -> KeyedOperation:
    short = deviation_wh > 0
    auction = f"flex-{slot}"
    return (
        f"auction/{auction}",
        {
            "op": "deploy-auction",
            "auction": auction,
            "template": "reverse" if short else "forward",
            "slot": slot,
            "energyWh": min(abs(deviation_wh), policy.max_energy_wh),
            "priceUcPerKwh": policy.cap_uc_per_kwh if short else policy.floor_uc_per_kwh,
            "pricing": policy.pricing,
        },
    )


# --- books --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Book:
    """What the supervisor settled at tariff; the entries of a slot add up."""

    residual_in_wh: int = 0
    """Energy that homes took beyond their positions."""
    residual_out_wh: int = 0
    """Energy that homes left over."""
    paid_to_homes_uc: int = 0
    paid_by_homes_uc: int = 0
    homes: int = 0
    missing: int = 0
    """Homes without a receipt."""


def book(event: Mapping[str, Any]) -> Book:
    """
    The supervisor's side of a `settled` event.

    A row's `amountUc` is what the home received: energy taken is paid for, energy left over is
    paid out.
    """
    rows = event["rows"]
    taken = [row for row in rows if row["residualWh"] > 0]
    left_over = [row for row in rows if row["residualWh"] < 0]
    return Book(
        residual_in_wh=sum(row["residualWh"] for row in taken),
        residual_out_wh=sum(-row["residualWh"] for row in left_over),
        paid_by_homes_uc=sum(-row["amountUc"] for row in taken),
        paid_to_homes_uc=sum(row["amountUc"] for row in left_over),
        homes=len(rows),
        missing=len(event.get("missing", ())),
    )


def book_true_up(event: Mapping[str, Any]) -> Book:
    """
    What a late receipt changes in the books: the home as it is now, less the home as it was
    settled with an assumed net energy (or not at all, where no receipt was expected of it).
    """
    [row] = event["rows"]
    position_wh = row["boughtWh"] - row["soldWh"]
    settled = "assumedNetWh" in event
    before = {
        "residualWh": event.get("assumedNetWh", 0) - position_wh,
        "amountUc": row["amountUc"] - event["amountUc"],
    }
    now, then = book({"rows": [row]}), book({"rows": [before] if settled else []})
    return Book(
        residual_in_wh=now.residual_in_wh - then.residual_in_wh,
        residual_out_wh=now.residual_out_wh - then.residual_out_wh,
        paid_to_homes_uc=now.paid_to_homes_uc - then.paid_to_homes_uc,
        paid_by_homes_uc=now.paid_by_homes_uc - then.paid_by_homes_uc,
        homes=now.homes - then.homes,
        missing=-then.homes,
    )
