"""
Bills: what each home paid with the market, what it would have paid without, and why they differ.

    with the market     deposits − withdrawals − final balance (free, locked and in escrow)
    without             the same profile at retail and feed-in price, the battery in its own
                        self-consumption mode; handed in by whoever knows the profile
    both                less the value of what the battery holds more than at the start, at feed-in

The difference is split exactly. With C₀ the cost of the *metered* nets at tariff and C the cost of
the same nets in the market (awards and residuals, `market.settlement`), slot by slot, each at the
tariff in force in it:

    neighbours   what trades were worth against the tariff, whatever the market
    flexibility  what auctions of the aggregator paid above feed-in (or saved below retail)
    shortfall    sold but not delivered: bought back at the imbalance price
    surplus      bought but not taken: sold on at the feed-in price
    deviation    taken beyond a forward schedule: at the imbalance instead of the retail price
                 (these five and `assumed` add up to C₀ − C)
    fees         of escrowed trades
    lost         guarantees of escrowed trades, deposits of bids that were not revealed
    rewards      of the home's validator
    battery      without-market cost − C₀: the battery ran for the market instead of for the house
    stored       energy left in the battery, against the day without a market
    assumed      slots without a receipt, settled at the most the connection carries (ADR 0004);
                 nobody knows what flowed, so their whole cost is here and C₀ leaves them out
    other        what is left: slots that were not settled, roundings; never passed over in silence
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from analytics.trades import FLEXIBILITY, MARKETS
from market.scheduling import deviation_tariff
from market.settlement import Tariff, settle
from wire.units import cost_uc

Row = dict[str, Any]

PART_WORDS = {
    "neighbours": "trade with neighbours",
    "flexibility": "flexibility sold to the aggregator",
    "shortfall": "energy sold but not delivered (forecast error)",
    "surplus": "energy bought but not taken (forecast error)",
    "deviation": "energy taken beyond a schedule, at the imbalance price",
    "fees": "fees of escrowed trades",
    "lost": "guarantees and bid deposits lost",
    "rewards": "rewards of a validator",
    "battery": "the battery ran for the market instead of for the house",
    "stored": "less energy left in the battery",
    "assumed": "slots without a receipt, settled at the most the connection carries",
    "other": "slots not settled and roundings",
}
SIGNIFICANT_UC = 5_000
"""Differences below half a cent are the meter's: registers are read a few milliseconds after a slot
ends, and whole watt-hours move to the next slot."""


@dataclass(slots=True)
class Parts:
    """Why a bill differs from the one without a market [µ¤]; positive is good for the home."""

    neighbours: int = 0
    flexibility: int = 0
    shortfall: int = 0
    surplus: int = 0
    deviation: int = 0
    fees: int = 0
    lost: int = 0
    rewards: int = 0
    battery: int = 0
    stored: int = 0
    assumed: int = 0
    other: int = 0


@dataclass(frozen=True, slots=True)
class SettledSlot:
    """A home's settlement in one slot."""

    row: Row
    """Of the event: `netWh`, `boughtWh`, `soldWh`, perhaps `assumed`."""
    trades: list[Row]
    """`side`, `kind`, `energyWh`, `priceUc`, `amountUc` of each; they make up the position."""
    tariff: Tariff
    """The supervisor's prices in the slot."""
    scheduled: bool = False
    """It took part in the slot's forward session."""


@dataclass(frozen=True, slots=True)
class Paid:
    """What a home paid beside trades and settlements, and what it took off the chain [µ¤]."""

    fees_uc: int = 0
    lost_uc: int = 0
    rewards_uc: int = 0
    """Negative: it got them."""
    withdrawn_uc: int = 0


@dataclass(frozen=True, slots=True)
class HomeDay:
    """A home as the demo or a biller knows it; energies [Wh], money [µ¤]."""

    name: str
    addresses: tuple[str, ...]
    participant: str
    kind: str
    baseline_cost_uc: int
    baseline_import_wh: int
    baseline_export_wh: int
    soc_start_wh: int
    soc_end_wh: int
    baseline_soc_end_wh: int


def read_home(value: Mapping[str, Any]) -> HomeDay:
    """A home from the object that the caller hands in (`address` or `addresses`)."""
    addresses = value.get("addresses") or [value["address"]]
    numbers = (
        "baseline_cost_uc", "baseline_import_wh", "baseline_export_wh", "soc_start_wh",
        "soc_end_wh", "baseline_soc_end_wh",
    )  # fmt: skip
    return HomeDay(
        name=str(value["name"]),
        addresses=tuple(addresses),
        participant=str(value.get("participant", "")),
        kind=str(value.get("kind", "")),
        **{name: int(value.get(name) or 0) for name in numbers},
    )


def explain(settled: Iterable[SettledSlot]) -> tuple[Parts, int, dict[str, int]]:
    """
    Split what a home gained in its settled slots.

    Args:
        settled: the home's slots

    Returns:
        The parts (the first five and `assumed`), C₀ [µ¤], and sums: importWh, exportWh, boughtWh,
        soldWh, shortfallWh, surplusWh of metered slots; assumedWh and assumedSlots of the others.
    """
    parts = Parts()
    at_tariff_uc = 0
    names = ("importWh", "exportWh", "boughtWh", "soldWh", "shortfallWh", "surplusWh")
    sums = dict.fromkeys((*names, "assumedWh", "assumedSlots"), 0)
    for one in settled:
        row, awards, tariff = one.row, one.trades, one.tariff
        net, bought, sold = row["netWh"], row["boughtWh"], row["soldWh"]
        deviates = deviation_tariff(tariff) if one.scheduled else tariff
        result = settle(net, bought, sold, deviates)
        if row.get("assumed"):
            paid_uc = _money(awards, "buy") - _money(awards, "sell") + result.amount_uc
            parts.assumed -= paid_uc
            sums["assumedWh"] += net
            sums["assumedSlots"] += 1
            continue
        alone_uc = settle(net, 0, 0, tariff).amount_uc
        paid_uc = _money(awards, "buy")
        earned_uc = _money(awards, "sell")
        flexible_uc = _flexibility(awards, tariff)
        surplus_wh = min(-result.residual_wh, bought) if result.residual_wh < 0 else 0
        shortfall_uc = surplus_uc = 0
        if result.shortfall_wh:
            missed_uc = earned_uc * result.shortfall_wh // sold
            owed_uc = cost_uc(result.shortfall_wh, tariff.imbalance_uc_per_kwh)
            shortfall_uc = missed_uc - owed_uc
        if surplus_wh:
            resold_uc = cost_uc(surplus_wh, tariff.feed_in_uc_per_kwh)
            surplus_uc = resold_uc - paid_uc * surplus_wh // bought
        deviation_uc = settle(net, bought, sold, tariff).amount_uc - result.amount_uc
        gained_uc = alone_uc - (paid_uc - earned_uc + result.amount_uc)
        parts.flexibility += flexible_uc
        parts.shortfall += shortfall_uc
        parts.surplus += surplus_uc
        parts.deviation += deviation_uc
        named_uc = flexible_uc + shortfall_uc + surplus_uc + deviation_uc
        parts.neighbours += gained_uc - named_uc
        at_tariff_uc += alone_uc
        for name, value in zip(
            names,
            (max(net, 0), max(-net, 0), bought, sold, result.shortfall_wh, surplus_wh),
            strict=True,
        ):
            sums[name] += value
    return parts, at_tariff_uc, sums


def bill(
    home: HomeDay,
    settled: Iterable[SettledSlot],
    balances: Mapping[str, Mapping[str, Any]],
    tariff: Tariff,
    paid: Paid | None = None,
) -> dict[str, Any]:
    """
    A home's line of the report.

    Args:
        home: the home and its day without a market
        settled: as in `explain`
        balances: final `balanceUc`, `depositedUc` and, where there are, `lockedUc`, `escrowUc`
        tariff: the supervisor's prices at the end, at which the battery's content is valued
        paid: fees and the like; None: there were none
    """
    beside = paid or Paid()
    parts, at_tariff_uc, sums = explain(settled)
    parts.fees, parts.lost, parts.rewards = -beside.fees_uc, -beside.lost_uc, -beside.rewards_uc
    paid_uc = sum(_paid(balances[a]) for a in home.addresses if a in balances)
    paid_uc -= beside.withdrawn_uc
    feed_in = tariff.feed_in_uc_per_kwh
    stored_uc = cost_uc(home.soc_end_wh - home.soc_start_wh, feed_in)
    alone_stored_uc = cost_uc(home.baseline_soc_end_wh - home.soc_start_wh, feed_in)
    market_uc = paid_uc - stored_uc
    baseline_uc = home.baseline_cost_uc - alone_stored_uc
    saved_uc = baseline_uc - market_uc
    parts.battery = home.baseline_cost_uc - at_tariff_uc
    parts.stored = stored_uc - alone_stored_uc
    known = asdict(parts)
    parts.other = saved_uc - sum(known.values())
    return {
        "home": home.name,
        "kind": home.kind,
        "addresses": list(home.addresses),
        "participant": home.participant,
        "marketUc": market_uc,
        "baselineUc": baseline_uc,
        "savedUc": saved_uc,
        "paidUc": paid_uc,
        "baselinePaidUc": home.baseline_cost_uc,
        "storedWh": home.soc_end_wh - home.soc_start_wh,
        "baselineStoredWh": home.baseline_soc_end_wh - home.soc_start_wh,
        "baselineImportWh": home.baseline_import_wh,
        "baselineExportWh": home.baseline_export_wh,
        **sums,
        "parts": asdict(parts),
        "worseOff": saved_uc < -SIGNIFICANT_UC,
        "why": _why(parts) if saved_uc < -SIGNIFICANT_UC else "",
        "warning": _warning(home, parts, sums),
    }


def traded_by_kind(trades: Iterable[Row]) -> dict[str, dict[str, int]]:
    """What a home bought and sold in each market [Wh], what it paid and earned there [µ¤]."""
    names = {"buy": ("boughtWh", "paidUc"), "sell": ("soldWh", "earnedUc")}
    sums: dict[str, dict[str, int]] = {}
    for trade in trades:
        of_kind = sums.setdefault(
            trade["kind"], {"boughtWh": 0, "paidUc": 0, "soldWh": 0, "earnedUc": 0}
        )
        energy, money = names[trade["side"]]
        of_kind[energy] += trade["energyWh"]
        of_kind[money] += trade["amountUc"]
    return {kind: sums[kind] for kind in MARKETS if kind in sums}


def _paid(balance: Mapping[str, Any]) -> int:
    held = sum(int(balance.get(name, 0)) for name in ("balanceUc", "lockedUc", "escrowUc"))
    return int(balance["depositedUc"]) - held


def _money(awards: list[Row], side: str) -> int:
    return sum(int(award["amountUc"]) for award in awards if award["side"] == side)


def _flexibility(awards: list[Row], tariff: Tariff) -> int:
    gain_uc = 0
    for award in awards:
        if award["kind"] == FLEXIBILITY:
            energy, price = award["energyWh"], award["priceUc"]
            sells = award["side"] == "sell"
            reference = tariff.feed_in_uc_per_kwh if sells else tariff.retail_uc_per_kwh
            gain_uc += cost_uc(energy, price - reference) * (1 if sells else -1)
    return gain_uc


def _warning(home: HomeDay, parts: Parts, sums: Mapping[str, int]) -> str:
    """What of a bill rests on no receipt, in a sentence; empty when all of it is metered."""
    said = []
    if sums["assumedSlots"]:
        said.append(
            f"slots without a receipt: {sums['assumedSlots']}, settled with an assumed"
            f" {sums['assumedWh']} Wh ({parts.assumed / 1e6:.3f})"
        )
    if parts.other:
        said.append(f"{PART_WORDS['other']}: {parts.other / 1e6:.6f} unexplained")
    return f"{home.name}: {'; '.join(said)}.".replace("-", "−") if said else ""


def _why(parts: Parts) -> str:
    """The losses behind a worse bill, the largest first, in words."""
    losses = sorted((uc, name) for name, uc in asdict(parts).items() if uc < -SIGNIFICANT_UC)
    return "; ".join(f"{PART_WORDS[name]} {uc / 1e6:.3f}".replace("-", "−") for uc, name in losses)
