"""
Forward sessions on the ledger (`market.scheduling`, `market.congestion`): one for each slot.

    submit-schedule …  |  gate closure: clearing  |  open-adjustment … deadline: clearing  |  start

Nodes submit one schedule each for a slot, admitted and locked like any order; where the market's
bids are sealed, they are committed and revealed as bids of the auction `@session`. At the slot's
gate closure expected demand and production are added up and cleared under the ratings. What a node
got becomes its position, with the supervisor as the counterparty of all: it pays or keeps what the
zones' prices and the rounding leave, and takes what goes to or comes from the grid above.

**Once settled.** A position from a schedule is settled with the slot like one from an auction, an
offer or an escrowed trade, and they add up: residual = net − (bought − sold). A home may use
several contracts in a slot; having scheduled only decides the price of its deviation
(`market.scheduling.deviation_tariff`).

**Adjustment.** When an interconnection is closed, or the expected balance cannot be kept, the
supervisor reopens the session until the slot starts. Nodes may then give back what they got: buy
back what they were to produce, sell back what they were to consume. That needs no asset, and it is
cleared under what the ratings still allow, given what flows already.

Zones of addresses are public, which tells roughly where a pseudonym lives; a feeder without zones
needs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.contracts import accounts, bans, keys, orders, slots
from ledger.contracts.context import Context
from ledger.contracts.operations import (
    AssignZone,
    CloseInterconnection,
    OpenAdjustment,
    SubmitSchedule,
)
from market.congestion import BUY, ROOT, SELL, Limit, Outcome, Schedule, clear_session
from market.orders import Order
from market.scheduling import balance
from wire.errors import Refusal
from wire.units import cost_uc

SESSION = "@session"
"""What a sealed schedule names as its auction; no deployed auction can have this name."""
MAX_ROUNDS = 4
"""Adjustments of one slot."""
MAX_CLOSURES = 16
"""Of one interconnection, now and to come."""
LONGEST_CLOSURE_SLOTS = 100_000
SIDE, ENERGY, PRICE, LOCK, SEQ = 0, 1, 2, 3, 4
"""Places in a schedule's row."""
_NEW: dict[str, Any] = {"rounds": 0, "adjustUntilMs": 0, "flows": {}}


def submit(ctx: Context, op: SubmitSchedule) -> Refusal | None:
    """Take the sender's schedule, or its adjustment while one is open."""
    session = ctx.state.get(keys.session(op.slot))
    if session is not None and ctx.time_ms < session["adjustUntilMs"]:
        return _adjust(ctx, op)
    if ctx.parameters(op.slot).auctions.sealed:
        return Refusal.SEALED_BIDS_ONLY
    return add(ctx, op.slot, op.side, op.energy_wh, op.price_uc_per_kwh)


def add(
    ctx: Context,
    slot: int,
    side: str,
    energy_wh: int,
    price_uc_per_kwh: int,
    committed: list[int] | None = None,
) -> Refusal | None:
    """
    Admit the sender's schedule for a slot.

    Args:
        slot, side, energy_wh, price_uc_per_kwh: the schedule [Wh, µ¤/kWh]
        committed: of a sealed one, the place at which it was committed
    """
    if ctx.state.get(keys.schedules(slot) + ctx.sender) is not None:
        return Refusal.DUPLICATE
    admitted = orders.admit(ctx, side, slot, energy_wh, price_uc_per_kwh, committed is not None)
    if isinstance(admitted, Refusal):
        return admitted
    if ctx.state.get(keys.session(slot)) is None:
        ctx.state.put(keys.session(slot), _NEW)
    held = slots.position(ctx.state, slot, ctx.sender)
    ctx.state.put(keys.position(slot, ctx.sender), {**held, "scheduled": True})
    row = [side, energy_wh, price_uc_per_kwh, admitted, *(committed or ctx.seq)]
    ctx.state.put(keys.schedules(slot) + ctx.sender, row)
    ctx.emit(
        "schedule-submitted", address=ctx.sender, slot=slot, side=side, energyWh=energy_wh,
        priceUcPerKwh=price_uc_per_kwh,
    )  # fmt: skip
    return None


def take_out(ctx: Context, slot: int, address: str) -> int:
    """Take the schedule of an address, or its adjustment, out of an open session; gives 0 or 1."""
    key = keys.schedules(slot) + address
    row = ctx.state.get(key)
    if row is None:
        return 0
    ctx.state.delete(key)
    held = slots.position(ctx.state, slot, address)
    session = ctx.state.get(keys.session(slot))
    assert session is not None, f"a schedule without a session in {slot}"
    if session["rounds"]:  # an adjustment locked no energy
        accounts.move(ctx.state, address, row[LOCK], -row[LOCK])
        return 1
    left = {name: value for name, value in held.items() if name != "scheduled"}
    ctx.state.put(keys.position(slot, address), left)
    orders.release(ctx, slot, address, row)
    return 1


def close(ctx: Context, slot: int) -> None:
    """Clear the session of a slot: at its gate closure, and at the end of an adjustment."""
    session = ctx.state.get(keys.session(slot))
    if session is None:
        return
    rows = {slots.address_of(key): row for key, row in ctx.state.scan(keys.schedules(slot))}
    schedules = [
        Schedule(
            side=row[SIDE],
            zone=zone_of(ctx, address),
            order=Order(address, row[ENERGY], row[PRICE], tuple(row[SEQ:])),
        )
        for address, row in rows.items()
    ]
    flows: dict[str, int] = session["flows"]
    limits, feeder = _limits(ctx, slot, flows)
    rules = ctx.parameters(slot)
    outcome = clear_session(schedules, limits, feeder, rules.tariff, rules.feeder.congestion)
    _book(ctx, slot, rows, outcome)
    after = {zone: flows.get(zone, 0) + flow for zone, flow in outcome.flows_wh.items()}
    ctx.state.put(
        keys.session(slot),
        {"rounds": session["rounds"] + 1, "adjustUntilMs": 0, "flows": after},
    )
    _announce(ctx, slot, session["rounds"], schedules, outcome, after)


def assign_zone(ctx: Context, op: AssignZone) -> Refusal | None:
    """Say in which zone an address is; the supervisor's or the DSO's to say."""
    if not _operates_grid(ctx):
        return Refusal.NOT_ALLOWED
    if ctx.state.get(keys.grant(op.address)) is None:
        return Refusal.NOT_FOUND
    if op.zone != ROOT and op.zone not in _zones(ctx):
        return Refusal.NOT_FOUND
    if op.zone == ROOT:
        ctx.state.delete(keys.zone(op.address))
    else:
        ctx.state.put(keys.zone(op.address), op.zone)
    ctx.emit("zone-assigned", address=op.address, zone=op.zone)
    return None


def close_interconnection(ctx: Context, op: CloseInterconnection) -> Refusal | None:
    """Take an interconnection out of service for sessions to be cleared from now on."""
    if not _operates_grid(ctx):
        return Refusal.NOT_ALLOWED
    if op.zone not in _zones(ctx):
        return Refusal.NOT_FOUND
    if op.end_slot < ctx.slot:
        return Refusal.EXPIRED
    if not 0 <= op.start_slot <= op.end_slot <= ctx.slot + LONGEST_CLOSURE_SLOTS:
        return Refusal.MALFORMED
    held = ctx.state.get(keys.link(op.zone)) or []
    live = [row for row in held if row[1] >= ctx.slot]
    if len(live) >= MAX_CLOSURES:
        return Refusal.RATE_LIMITED
    ctx.state.put(keys.link(op.zone), [*live, [op.start_slot, op.end_slot]])
    ctx.emit("interconnection-closed", zone=op.zone, startSlot=op.start_slot, endSlot=op.end_slot)
    return None


def open_adjustment(ctx: Context, op: OpenAdjustment) -> Refusal | None:
    """Reopen the session of a slot that was cleared and has not begun."""
    if not _operates_grid(ctx):
        return Refusal.NOT_ALLOWED
    session = ctx.state.get(keys.session(op.slot))
    if session is None:
        return Refusal.NOT_FOUND
    if not slots.is_closed(ctx, op.slot):
        return Refusal.TOO_SOON
    if session["adjustUntilMs"]:
        return Refusal.DUPLICATE
    if not ctx.time_ms < op.deadline_ms <= ctx.genesis.grid.start_ms(op.slot):
        return Refusal.SLOT_CLOSED
    if session["rounds"] > MAX_ROUNDS:
        return Refusal.RATE_LIMITED
    ctx.state.put(keys.session(op.slot), {**session, "adjustUntilMs": op.deadline_ms})
    ctx.state.put(keys.due(op.deadline_ms, keys.ADJUST, op.slot), True)
    limits, feeder = _limits(ctx, op.slot, session["flows"])
    ctx.emit(
        "adjustment-opened",
        slot=op.slot,
        deadlineMs=op.deadline_ms,
        feeder={"inWh": feeder.in_wh, "outWh": feeder.out_wh},
        zones=[
            {"zone": zone, "inWh": limit.in_wh, "outWh": limit.out_wh}
            for zone, limit in sorted(limits.items())
        ],
    )
    return None


def zone_of(ctx: Context, address: str) -> str:
    """The zone that an address is in; the root when nobody said."""
    found: str | None = ctx.state.get(keys.zone(address))
    return ROOT if found is None else found


# --- helpers --------------------------------------------------------------------------------------


def _adjust(ctx: Context, op: SubmitSchedule) -> Refusal | None:
    """Take an order that gives scheduled energy back, in whole or in part."""
    held = slots.position(ctx.state, op.slot, ctx.sender)
    if not held.get("scheduled"):
        return Refusal.NOT_ALLOWED
    if bans.is_banned(ctx, ctx.sender):
        return Refusal.BANNED
    if ctx.state.get(keys.schedules(op.slot) + ctx.sender) is not None:
        return Refusal.DUPLICATE
    sold_wh = held["soldWh"] - held["boughtWh"]
    if not 1 <= op.energy_wh <= (sold_wh if op.side == BUY else -sold_wh):
        return Refusal.INSUFFICIENT_ASSET
    refusal = orders.check_price(op.price_uc_per_kwh)
    if refusal is not None:
        return refusal
    lock_uc = cost_uc(op.energy_wh, op.price_uc_per_kwh) if op.side == BUY else 0
    refusal = accounts.lock(ctx.state, ctx.sender, lock_uc)
    if refusal is not None:
        return refusal
    row = [op.side, op.energy_wh, op.price_uc_per_kwh, lock_uc, *ctx.seq]
    ctx.state.put(keys.schedules(op.slot) + ctx.sender, row)
    ctx.emit(
        "schedule-submitted", address=ctx.sender, slot=op.slot, side=op.side,
        energyWh=op.energy_wh, priceUcPerKwh=op.price_uc_per_kwh,
    )  # fmt: skip
    return None


def _limits(ctx: Context, slot: int, flows: Mapping[str, int]) -> tuple[dict[str, Limit], Limit]:
    """What zones and feeder may still carry in a slot, given what flows out of each zone."""
    feeder = ctx.parameters(slot).feeder
    limits = {}
    for zone in feeder.zones:
        carries_wh = 0 if _is_cut(ctx, zone.name, slot) else _wh(ctx, zone.rating_w)
        flow_wh = flows.get(zone.name, 0)
        limits[zone.name] = Limit(carries_wh + flow_wh, carries_wh - flow_wh)
    rating_wh, export_wh = _wh(ctx, feeder.rating_w), sum(flows.values())
    return limits, Limit(rating_wh + export_wh, rating_wh - export_wh)


def _wh(ctx: Context, power_w: int) -> int:
    """The energy of a power over a slot, rounded down: to the safe side."""
    return power_w * ctx.genesis.slot_length_s // 3600


def _is_cut(ctx: Context, zone: str, slot: int) -> bool:
    closures = ctx.state.get(keys.link(zone)) or ()
    return any(start <= slot <= end for start, end in closures)


def _zones(ctx: Context) -> set[str]:
    return {zone.name for zone in ctx.genesis.feeder_rules.zones}


def _operates_grid(ctx: Context) -> bool:
    return ctx.is_supervisor or ctx.is_dso


def _book(ctx: Context, slot: int, rows: Mapping[str, list[Any]], outcome: Outcome) -> None:
    """Turn shares into positions and money; free what was locked; forget the schedules."""
    paid_uc = earned_uc = bought_wh = sold_wh = 0
    shares = {share.address: share for share in outcome.shares}
    for address, row in rows.items():
        share = shares.get(address)
        amount_uc = cost_uc(share.energy_wh, share.price_uc_per_kwh) if share else 0
        if row[SIDE] == BUY:
            accounts.move(ctx.state, address, row[LOCK] - amount_uc, -row[LOCK])
            paid_uc += amount_uc
        else:
            earned_uc += amount_uc
        if share is not None and share.side == BUY:
            bought_wh += share.energy_wh
            slots.add_to_position(ctx.state, slot, address, boughtWh=share.energy_wh)
        elif share is not None:
            sold_wh += share.energy_wh
            slots.add_to_position(
                ctx.state, slot, address, soldWh=share.energy_wh, receivableUc=amount_uc
            )
        ctx.state.delete(keys.schedules(slot) + address)
    if not shares:
        return
    supervisor = ctx.genesis.supervisor.address
    kept_uc, lacking_uc = max(0, paid_uc - earned_uc), max(0, earned_uc - paid_uc)
    accounts.move(ctx.state, supervisor, -lacking_uc)
    accounts.cover_supervisor(ctx)
    slots.add_to_position(
        ctx.state, slot, supervisor, boughtWh=max(0, sold_wh - bought_wh),
        soldWh=max(0, bought_wh - sold_wh), receivableUc=kept_uc,
    )  # fmt: skip
    market_row = ctx.state.get(keys.slot(slot))
    assert market_row is not None
    escrow_uc = market_row["escrowUc"] + paid_uc + lacking_uc
    ctx.state.put(keys.slot(slot), {**market_row, "escrowUc": escrow_uc})
    accounts.count(ctx.state, tradedWh=max(bought_wh, sold_wh))


def _announce(
    ctx: Context,
    slot: int,
    number: int,
    schedules: list[Schedule],
    outcome: Outcome,
    flows: Mapping[str, int],
) -> None:
    expected = balance(
        [one.order for one in schedules if one.side == BUY],
        [one.order for one in schedules if one.side == SELL],
    )
    got = {share.address: share.energy_wh for share in outcome.shares}
    ctx.emit(
        "session-closed",
        slot=slot,
        round=number,
        demandWh=expected.demand_wh,
        productionWh=expected.production_wh,
        netWh=expected.net_wh,
        exportWh=sum(flows.values()),
        zones=[
            {
                "zone": zone,
                "priceUcPerKwh": outcome.prices[zone],
                "outWh": flows[zone],
                "congested": zone in outcome.congested,
            }
            for zone in sorted(outcome.prices)
        ],
        shares=[
            {
                "address": one.order.address,
                "side": one.side,
                "scheduledWh": one.order.energy_wh,
                "energyWh": got.get(one.order.address, 0),
                "priceUcPerKwh": outcome.prices[one.zone],
            }
            for one in schedules
        ],
    )
