"""
The aggregator's decisions: funding, flexibility, adjustments, and its books. Pure.

    fund            a registered address           -> the operations that let it trade, once
    flexibility     deviation from the schedule    -> the auction for exactly that energy
    adjustments     congestion, a cut line         -> cleared sessions to reopen
    approval        a proposed change              -> our approval, where the operator said so
    Book            settled slots                  -> what the supervisor bought and sold

What was to be expected, the schedule, is `aggregator.day_ahead`.

Every operation comes with a key, under which the outbox does it once. Net energy is import − export
of the whole feeder [Wh].

References:
    TMI sections IV and V-C (the aggregator's schedule and reverse auction); PETra (energy and
    financial assets); Baggio & Grimaccia (schedule, balancing, grid supervisor); ADR 0004.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregator.day_ahead import DAY_S
from ledger.approvals import PROPOSED, Approval, approves
from ledger.rulebook import RuleBook
from wire.slots import SlotGrid

KeyedOperation = tuple[str, dict[str, Any]]
"""An operation and the key under which it is done once."""
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
    sealed: bool = False
    """Bids are committed and revealed."""


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


# --- rules ---------------------------------------------------------------------------------------


def propose(path: str, value: int | bool | str, from_ms: int, grid: SlotGrid) -> KeyedOperation:
    """
    The proposal of a change, under a key of its content: the same one is made once.

    Args:
        path, value: of the parameter
        from_ms: market time; the first slot that begins then or later is the first to have it
    """
    slot = grid.slot_at(from_ms - 1) + 1
    operation = {"op": "propose-change", "path": path, "value": value, "activationSlot": slot}
    return f"propose/{path}/{value}/{slot}", operation


# --- flexibility --------------------------------------------------------------------------------


def flexibility(
    now_ms: int, rules: RuleBook, grid: SlotGrid, forecast_wh: int, policy: FlexibilityPolicy
) -> list[KeyedOperation]:
    """
    The auctions to open now: at most one per slot, whose key makes sure of that.

    More import than scheduled is bought back from homes (reverse auction, price cap); less is sold
    to them (forward auction, floor price). Within the band the supervisor carries it.

    Deviations known beforehand are looked for from `ahead_slots` down to two slots ahead, so that a
    slot passed over in a restart is still served while homes can answer. The measured forecast is
    for the farthest slot only. By the rules of its slot an auction must still be open to bids: its
    gate (sealed: its reveal window) is ahead, and auctions are switched on.

    Args:
        now_ms: market time
        rules: the market's, with all changes that were approved
        forecast_wh: deviation expected from what was measured [Wh]
    """
    current_slot = grid.slot_at(now_ms)
    farthest = current_slot + policy.ahead_slots
    wanted = {farthest: forecast_wh}
    for slot in range(current_slot + MIN_AHEAD_SLOTS, farthest + 1):
        known_wh = policy.known_wh.get(slot % (DAY_S // grid.length_s))
        if known_wh is not None:
            wanted[slot] = known_wh
    return [
        _auction(slot, deviation_wh, rules, policy)
        for slot, deviation_wh in sorted(wanted.items())
        if abs(deviation_wh) > policy.band_wh and _takes_bids(slot, now_ms, rules, policy)
    ]


def _takes_bids(slot: int, now_ms: int, rules: RuleBook, policy: FlexibilityPolicy) -> bool:
    closes_ms = rules.reveal_ms(slot) if policy.sealed else rules.gate_ms(slot)
    return now_ms < closes_ms and "auctions" in rules.of_slot(slot).templates


def _auction(
    slot: int, deviation_wh: int, rules: RuleBook, policy: FlexibilityPolicy
) -> KeyedOperation:
    """
    The auction for a deviation. Beyond its tariff the supervisor would trade at a loss: it sells
    what it bought for the retail price at most, and has the feed-in price to pay at least.
    """
    short = deviation_wh > 0
    tariff = rules.tariff(slot)
    cap_uc_per_kwh = min(policy.cap_uc_per_kwh, tariff.retail_uc_per_kwh)
    floor_uc_per_kwh = max(policy.floor_uc_per_kwh, tariff.feed_in_uc_per_kwh)
    auction = f"flex-{slot}"
    operation = {
        "op": "deploy-auction",
        "auction": auction,
        "template": "reverse" if short else "forward",
        "slot": slot,
        "energyWh": min(abs(deviation_wh), policy.max_energy_wh),
        "priceUcPerKwh": cap_uc_per_kwh if short else floor_uc_per_kwh,
        "pricing": policy.pricing,
        "sealed": policy.sealed,
    }
    return f"auction/{auction}", operation


# --- adjustments --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdjustmentPolicy:
    """Whether cleared sessions are reopened without being told. See `aggregator.config`."""

    automatic: bool = False
    margin_s: int = 60
    """An adjustment ends so long before its slot begins [s]."""


def adjustments(
    event: Mapping[str, Any],
    rounds: Mapping[int, int],
    now_ms: int,
    grid: SlotGrid,
    policy: AdjustmentPolicy,
) -> list[KeyedOperation]:
    """
    The cleared sessions to reopen after an event, so that nodes may give back what they got.

    - `interconnection-closed`: those of its slots that were cleared while it was in service.
    - `session-closed` with a congested zone: that slot, after its first round only, or the same
      congestion would reopen it over and over.

    Args:
        rounds: the last round of each session that was cleared, by slot
    """
    if not policy.automatic:
        return []
    match event["event"]:
        case "interconnection-closed":
            slots = [slot for slot in rounds if event["startSlot"] <= slot <= event["endSlot"]]
        case "session-closed":
            congested = any(zone["congested"] for zone in event["zones"])
            slots = [event["slot"]] if congested and event["round"] == 0 else []
        case _:
            slots = []
    return [
        (
            f"adjust/{slot}/{rounds.get(slot, 0)}",
            {"op": "open-adjustment", "slot": slot, "deadlineMs": deadline_ms},
        )
        for slot in sorted(slots)
        if now_ms < (deadline_ms := grid.start_ms(slot) - policy.margin_s * 1000)
    ]


# --- changes of the rules -----------------------------------------------------------------------


def approval(
    event: Mapping[str, Any], own_address: str, rules: Iterable[Approval]
) -> KeyedOperation | None:
    """
    Our approval of a proposed change; None when it is ours (proposing approves) or a person's.

    Args:
        event: of the ledger
        own_address: who we are
        rules: what the operator always agrees with
    """
    if event["event"] != PROPOSED or event["proposer"] == own_address:
        return None
    if not approves(rules, event):
        return None
    change = event["change"]
    return f"approve/{change}", {"op": "approve-change", "change": change}


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
