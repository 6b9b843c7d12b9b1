"""
What the pages show: facts of a home in a household's words. Pure; times in the zone that is given.

Energies are shown in kWh and money in ¤ with two decimals, prices in ct/kWh, powers in kW.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from hem.ems.daylog import DayRow
from hem.ems.standing import Standing
from hem.web.port import DeviceFacts, Expected, Moment, Nameplate, PlanRow, Tariff
from wire.cpf import Q16
from wire.slots import SlotGrid

MARKETS = {
    "double-auction": "auction",
    "auctions": "flexibility auction",
    "order-book": "order book",
    "escrow": "escrow",
    "schedules": "forward session",
}
OUTCOMES = {
    "OK": "accepted",
    "SLOT_CLOSED": "too late",
    "INSUFFICIENT_FUNDS": "not enough money on the ledger",
    "INSUFFICIENT_ASSET": "not enough energy on the ledger",
    "PRICE_OUT_OF_RANGE": "price outside the market's limits",
    "DUPLICATE": "was there already",
}
STILL_W = 10
"""Less than this is measuring noise, not a flow."""
HEALTH_WORDS = {
    "ok": "Everything is in order",
    "degraded": "Works, with something to know",
    "failing": "Needs attention",
}


def kwh(energy_wh: int) -> str:
    """Energy as `1.25`."""
    return _decimals(energy_wh, 1_000)


def kw(power_w: int) -> str:
    """Power without its direction, as `1.25`."""
    return _decimals(abs(power_w), 1_000)


def money(amount_uc: int) -> str:
    """Money as `12.30`."""
    return _decimals(amount_uc, 1_000_000)


def price(price_uc_per_kwh: int | None) -> str:
    """A price in ct/kWh as `15.30`; a dash where there is none."""
    if price_uc_per_kwh is None or price_uc_per_kwh < 0:
        return "–"
    return _decimals(price_uc_per_kwh, 10_000)


def percent(permille: int) -> str:
    """A share as `62`."""
    return str((permille + 5) // 10)


def moment_of(time_ms: int, zone: tzinfo | None) -> datetime:
    """A time where the home is; the machine's own zone when none is given."""
    return datetime.fromtimestamp(time_ms / 1000, zone)


def today(now_ms: int, grid: SlotGrid, zone: tzinfo | None) -> tuple[int, int]:
    """First and last slot of the day that runs, from midnight to midnight in the zone."""
    midnight = moment_of(now_ms, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    # by the calendar: the day on which the clocks change has 23 or 25 hours
    after = (midnight + timedelta(days=1)).timestamp()
    return grid.slot_at(int(midnight.timestamp() * 1000)), grid.slot_at(int(after * 1000) - 1)


# --- Now -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NowView:
    """The first page; each text is shown where the page has its name."""

    clock: str
    sun: str
    house: str
    battery: str
    grid: str
    battery_word: str
    grid_word: str
    soc: str
    """Percent; empty: no battery."""
    flows: Mapping[str, str]
    """Of sun, battery and grid: `in` to the house, `out` of it, or `still`."""
    summary: str
    """All of it in a sentence."""
    price: str
    position: str
    balance: str
    health: str
    health_word: str
    reasons: tuple[str, ...]


def now_view(moment: Moment, zone: tzinfo | None) -> NowView:
    """How the home is now."""
    battery_word = _toward(moment.battery_w, "giving", "charging", "resting")
    grid_word = _toward(moment.grid_w, "importing", "exporting", "balanced")
    return NowView(
        clock=moment_of(moment.time_ms, zone).strftime("%H:%M:%S"),
        sun=kw(moment.pv_w),
        house=kw(moment.load_w),
        battery=kw(moment.battery_w),
        grid=kw(moment.grid_w),
        battery_word=battery_word,
        grid_word=grid_word,
        soc="" if moment.soc_permille < 0 else percent(moment.soc_permille),
        flows={
            "sun": _flow(moment.pv_w),
            "battery": _flow(moment.battery_w),
            "grid": _flow(moment.grid_w),
            "house": "out" if moment.load_w >= STILL_W else "still",
        },
        summary=_summary(moment),
        price=price(moment.price_uc_per_kwh),
        position=_position(moment.bought_wh, moment.sold_wh),
        balance=money(moment.balance_uc),
        health=moment.health.level,
        health_word=HEALTH_WORDS[moment.health.level],
        reasons=tuple(one.text for one in moment.health.reasons),
    )


def _summary(moment: Moment) -> str:
    if not moment.fresh:
        return "The meter does not answer at the moment; what is shown may be old."
    parts = [f"The house uses {kw(moment.load_w)} kW"]
    if moment.pv_w >= STILL_W:
        parts.append(f"the sun gives {kw(moment.pv_w)} kW")
    if abs(moment.battery_w) >= STILL_W:
        word = "gives" if moment.battery_w > 0 else "takes"
        parts.append(f"the battery {word} {kw(moment.battery_w)} kW")
    if abs(moment.grid_w) >= STILL_W:
        word = "comes from" if moment.grid_w > 0 else "goes to"
        parts.append(f"{kw(moment.grid_w)} kW {word} the grid")
    return (", ".join(parts[:-1]) + " and " if len(parts) > 1 else "") + parts[-1] + "."


def _position(bought_wh: int, sold_wh: int) -> str:
    parts = []
    if bought_wh:
        parts.append(f"{kwh(bought_wh)} kWh bought")
    if sold_wh:
        parts.append(f"{kwh(sold_wh)} kWh sold")
    return ", ".join(parts) or "nothing traded"


def _flow(power_w: int) -> str:
    return _toward(power_w, "in", "out", "still")


def _toward(power_w: int, positive: str, negative: str, nothing: str) -> str:
    if abs(power_w) < STILL_W:
        return nothing
    return positive if power_w > 0 else negative


# --- Today ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TodaySums:
    """The day so far [kWh]."""

    load: str
    sun: str
    imported: str
    exported: str
    own_share: str
    """Percent of the load that did not come from the grid; a dash before there was any."""


def today_sums(rows: Sequence[DayRow]) -> TodaySums:
    """Add up what was measured."""
    load_wh, import_wh = (sum(r.load_wh for r in rows), sum(r.import_wh for r in rows))
    own_permille = 1000 * max(load_wh - import_wh, 0) // load_wh if load_wh else None
    return TodaySums(
        load=kwh(load_wh),
        sun=kwh(sum(r.pv_wh for r in rows)),
        imported=kwh(import_wh),
        exported=kwh(sum(r.export_wh for r in rows)),
        own_share="–" if own_permille is None else percent(own_permille),
    )


def today_chart(
    rows: Sequence[DayRow],
    expected: Sequence[Expected],
    plan: Sequence[PlanRow],
    prices_uc: Mapping[int, int],
    tariff: Tariff,
    capacity_wh: int,
    grid: SlotGrid,
    now_ms: int,
    zone: tzinfo | None,
) -> dict[str, Any]:
    """
    What the charts of a day are drawn from: for each chart its arrays.

    Times are those at a slot's middle (of states of charge: at its end) on the wall; energies in
    kWh, prices in ct/kWh, states of charge in percent.

    Args:
        prices_uc: clearing prices known, by slot [µ¤/kWh]
        capacity_wh: of the battery; 0: there is none
    """

    def middles(slots: Iterable[int]) -> list[str]:
        half_ms = grid.length_s * 500
        return [_axis(grid.start_ms(slot) + half_ms, zone) for slot in slots]

    def ends(slots: Iterable[int]) -> list[str]:
        return [_axis(grid.end_ms(slot), zone) for slot in slots]

    first, last = today(now_ms, grid, zone)
    with_soc = [row for row in rows if row.soc_permille >= 0]
    ahead = [row for row in plan if first <= row.slot <= last]
    known = [
        *((row.slot, row.expected_load_wh, row.expected_pv_wh) for row in rows),
        *((row.slot, row.load_wh, row.pv_wh) for row in expected),
    ]
    return {
        "start": _axis(grid.start_ms(first), zone),
        "end": _axis(grid.end_ms(last), zone),
        "now": _axis(now_ms, zone),
        "actual": {
            "x": middles(row.slot for row in rows),
            "load": [row.load_wh / 1000 for row in rows],
            "sun": [row.pv_wh / 1000 for row in rows],
        },
        "forecast": {
            "x": middles(slot for slot, _, _ in known),
            "load": [load_wh / 1000 for _, load_wh, _ in known],
            "sun": [pv_wh / 1000 for _, _, pv_wh in known],
        },
        "battery": {
            "x": middles(row.slot for row in rows),
            "given": [row.battery_wh / 1000 for row in rows],
            "socX": ends(row.slot for row in with_soc),
            "soc": [row.soc_permille / 10 for row in with_soc],
        },
        "plan": {
            "x": middles(row.slot for row in ahead),
            "given": [(row.discharge_wh - row.charge_wh) / 1000 for row in ahead],
            "socX": ends(row.slot for row in ahead) if capacity_wh else [],
            "soc": [100 * row.soc_wh / capacity_wh for row in ahead] if capacity_wh else [],
        },
        "price": {
            "x": middles(sorted(prices_uc)),
            "clearing": [prices_uc[slot] / 10_000 for slot in sorted(prices_uc)],
            "retail": tariff.retail_uc_per_kwh / 10_000,
            "feedIn": tariff.feed_in_uc_per_kwh / 10_000,
        },
        "hasPlan": bool(ahead),
        "hasBattery": capacity_wh > 0 or bool(with_soc),
    }


@dataclass(frozen=True, slots=True)
class SlotLine:
    """A slot of the day in the table."""

    time: str
    load: str
    sun: str
    battery: str
    net: str
    """Import less export."""
    soc: str
    price: str


def slot_lines(rows: Sequence[DayRow], grid: SlotGrid, zone: tzinfo | None) -> list[SlotLine]:
    """The measured slots, newest first."""
    return [
        SlotLine(
            time=clock(row.slot, grid, zone),
            load=kwh(row.load_wh),
            sun=kwh(row.pv_wh),
            battery=kwh(row.battery_wh),
            net=kwh(row.import_wh - row.export_wh),
            soc="–" if row.soc_permille < 0 else percent(row.soc_permille) + " %",
            price=price(row.price_uc_per_kwh),
        )
        for row in reversed(rows)
    ]


# --- Wallet --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SettledLine:
    """A settled slot."""

    day: str
    time: str
    net: str
    bought: str
    sold: str
    rest: str
    amount: str
    assumed: bool
    """By the market's assumption, as the receipt was missing."""


def settled_lines(
    settled: Sequence[Mapping[str, Any]], grid: SlotGrid, zone: tzinfo | None
) -> list[SettledLine]:
    """Settled slots, newest first."""
    return [
        SettledLine(
            day=moment_of(grid.start_ms(row["slot"]), zone).strftime("%a %-d %b"),
            time=clock(row["slot"], grid, zone),
            net=kwh(row["netWh"]),
            bought=kwh(row["boughtWh"]),
            sold=kwh(row["soldWh"]),
            rest=kwh(row["residualWh"]),
            amount=money(row.get("amountUc", 0)),
            assumed=bool(row.get("assumed", False)),
        )
        for row in reversed(settled)
    ]


CSV_HEAD = (
    "start_utc", "slot", "net_wh", "bought_wh", "sold_wh", "residual_wh", "amount_uc", "assumed",
)  # fmt: skip


def settled_csv(settled: Iterable[Mapping[str, Any]], grid: SlotGrid) -> Iterable[str]:
    """
    All settled slots for a table program, line by line, oldest first.

    Whole Wh and µ¤; nothing in it is text from outside.
    """
    yield ",".join(CSV_HEAD) + "\r\n"
    for row in settled:
        start = moment_of(grid.start_ms(row["slot"]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        numbers = (row[key] for key in ("slot", "netWh", "boughtWh", "soldWh", "residualWh"))
        fields = [start, *numbers, row.get("amountUc", 0), int(row.get("assumed", False))]
        yield ",".join(str(field) for field in fields) + "\r\n"


# --- Trades and decisions ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderLine:
    """An order of ours."""

    side: str
    energy: str
    price: str
    outcome: str


@dataclass(frozen=True, slots=True)
class TradeView:
    """A slot that we traded or decided about."""

    day: str
    time: str
    slot: int
    reason: str
    orders: tuple[OrderLine, ...]
    contracted: tuple[str, ...]
    clearing: str
    battery: str
    """What the battery is to give (+) or take (−); empty: nothing."""


def trade_view(
    row: Mapping[str, Any],
    contracted: Mapping[str, Mapping[str, int]],
    clearing_uc_per_kwh: int | None,
    grid: SlotGrid,
    zone: tzinfo | None,
) -> TradeView:
    """
    One decision and what came of it.

    Args:
        row: as `hem.ems.decisions` keeps it
        contracted: of its slot, by market
    """
    slot, codes = row["slot"], row["codes"]
    return TradeView(
        day=moment_of(grid.start_ms(slot), zone).strftime("%a %-d %b"),
        time=clock(slot, grid, zone),
        slot=slot,
        reason=row.get("text") or row["reason"],
        orders=tuple(
            OrderLine(
                side="Buy" if order["side"] == "buy" else "Sell",
                energy=kwh(order["energyWh"]),
                price=price(order["priceUcPerKwh"]),
                outcome=_outcome(codes.get(str(number))),
            )
            for number, order in enumerate(row["orders"])
        ),
        contracted=tuple(
            f"{_position(amounts['boughtWh'], amounts['soldWh'])} ({MARKETS.get(market, market)})"
            for market, amounts in contracted.items()
        ),
        clearing=price(clearing_uc_per_kwh),
        battery=kwh(row["batteryWh"]) if row["batteryWh"] else "",
    )


def _outcome(code: str | None) -> str:
    if code is None:
        return "waiting for the ledger"
    return OUTCOMES.get(code, f"refused: {code.replace('_', ' ').lower()}")


# --- Rank ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankLine:
    """A validator's home."""

    place: int
    name: str
    cpf: str
    eligible: bool
    ours: bool
    share_permille: int
    """Its CPF, for the bar."""


def rank_lines(standings: Sequence[Standing], validator: str) -> list[RankLine]:
    """
    The validators' homes, best first; equal ones share a place.

    Args:
        validator: ours; empty: none
    """
    values = [row.cpf_q16 for row in standings]
    return [
        RankLine(
            place=values.index(row.cpf_q16) + 1,
            name=f"{row.validator[:7]}…{row.validator[-4:]}",
            cpf=_decimals(row.cpf_q16 * 1_000 // Q16, 1_000),
            eligible=row.eligible,
            ours=bool(validator) and row.validator == validator,
            share_permille=row.cpf_q16 * 1000 // Q16,
        )
        for row in standings
    ]


# --- Devices -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A device."""

    name: str
    kind: str
    where: str
    ok: bool
    status: str


KINDS = {
    "sunspec": "SunSpec device",
    "sunspec-meter": "SunSpec meter",
    "sunspec-inverter": "SunSpec inverter",
    "sunspec-battery": "SunSpec battery",
}


def device_lines(devices: Sequence[DeviceFacts]) -> list[DeviceLine]:
    """The devices, those that need attention first."""
    lines = [
        DeviceLine(
            name=device.name,
            kind=KINDS.get(device.kind, device.kind),
            where=device.where,
            ok=device.status == "ok",
            status={"ok": "answers", "": "not heard yet"}.get(device.status, device.status),
        )
        for device in devices
    ]
    return sorted(lines, key=lambda line: (line.ok, line.name))


def nameplate_lines(plate: Nameplate) -> list[tuple[str, str]]:
    """What the plant can do; what is not known is left out."""
    lines = [
        ("Connection", plate.connection_w, f"{kw(plate.connection_w)} kW"),
        ("Battery", plate.battery_wh, f"{kwh(plate.battery_wh)} kWh"),
        ("Charges with at most", plate.charge_w, f"{kw(plate.charge_w)} kW"),
        ("Gives at most", plate.discharge_w, f"{kw(plate.discharge_w)} kW"),
    ]
    return [(name, text) for name, value, text in lines if value]


# --- Policy --------------------------------------------------------------------------------------


def problem_lines(message: str) -> list[tuple[int, str]]:
    """(line, or 0, and text) of each thing that is wrong with a policy."""
    return [(_line_in(part), part) for part in _parts(message)]


def _parts(message: str) -> list[str]:
    """`file: line 2, a: wrong; correct it; line 5, b: …` in its problems."""
    _, _, text = message.partition(": ")
    return [part for part in re.split(r"; (?=line \d+, )", text) if part]


def _line_in(text: str) -> int:
    found = re.search(r"\bline (\d{1,6})\b", text)
    return int(found[1]) if found else 0


# --- Words ---------------------------------------------------------------------------------------


def clock(slot: int, grid: SlotGrid, zone: tzinfo | None) -> str:
    """When a slot begins, as `18:15`."""
    return moment_of(grid.start_ms(slot), zone).strftime("%H:%M")


def _axis(time_ms: int, zone: tzinfo | None) -> str:
    """A time on the wall, as plotly reads it."""
    return moment_of(time_ms, zone).strftime("%Y-%m-%d %H:%M:%S")


def _decimals(value: int, unit: int) -> str:
    """Two decimals, half away from zero; whole numbers, so that no float rounds."""
    hundredths = (abs(value) * 100 + unit // 2) // unit
    sign = "−" if value < 0 and hundredths else ""
    return f"{sign}{hundredths // 100}.{hundredths % 100:02d}"
