"""
Delivery: meter-signed receipts, settlement, late receipts.

Settlement of a slot pays the sellers from escrow and settles every home's residual with the grid
supervisor (`market.settlement`, ADR 0004). A home that did not trade is settled too when its meter
speaks. A receipt is expected of every address that ordered something for the slot, and of every
address whose meter spoke in one of the last `ACTIVE_SLOTS` slots and whose grant covers this one;
where addresses change, also of one that was registered for it before (`contracts.expectation`).
Where it is missing the home is settled as if its connection had let in all it can; when the receipt
comes within 96 slots, the exact difference is paid, whichever way it goes.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, escrow, keys, slots
from ledger.contracts.context import TRUE_UP_SLOTS, Context
from ledger.contracts.expectation import EXPECTED
from ledger.contracts.grants import CONNECTION_MAX_WH
from ledger.contracts.operations import DeliveryReceipt
from market.scheduling import deviation_tariff
from market.settlement import Settlement, Tariff, assumed_net_wh, settle, true_up
from wire.errors import Refusal
from wire.keys import from_text
from wire.metering import Receipt, check_record, load_record

SETTLED_WITH = frozenset({"netWh", EXPECTED})
"""A position with one of these is settled although nothing was ordered."""
ACTIVE_SLOTS = 4
"""How long after its last receipt an address that orders nothing is still expected to send one. As
long as a gateway closes missed slots by default: a shorter outage costs a home nothing."""


def deliver(ctx: Context, op: DeliveryReceipt) -> Refusal | None:
    """Take the receipt of the sender's meter for a slot that has ended."""
    receipt = load_record(Receipt, op.receipt)
    if receipt.address != ctx.sender:
        return Refusal.NOT_ALLOWED
    grant = ctx.state.get(keys.grant(ctx.sender))
    if grant is None:
        return Refusal.UNKNOWN_SENDER
    slot = receipt.slot
    if slot < 0 or not grant["startSlot"] <= slot <= grant["endSlot"]:
        return Refusal.NOT_ALLOWED
    if ctx.genesis.grid.end_ms(slot) > ctx.time_ms:
        return Refusal.FUTURE_DATED
    if slot + TRUE_UP_SLOTS < ctx.slot:
        return Refusal.EXPIRED
    held = slots.position(ctx.state, slot, ctx.sender)
    if "netWh" in held:
        return Refusal.DUPLICATE
    if not -CONNECTION_MAX_WH <= receipt.net_wh <= CONNECTION_MAX_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    check_record(receipt, from_text(grant["meterKey"]), ctx.genesis.chain_id)
    slots.open_slot(ctx, slot)
    ctx.state.put(keys.position(slot, ctx.sender), {**held, "netWh": receipt.net_wh})
    ctx.emit("receipt", address=ctx.sender, slot=slot, netWh=receipt.net_wh)
    escrow.on_receipt(ctx, slot, ctx.sender)
    if slots.is_settled(ctx, slot):
        _true_up(ctx, slot, receipt.net_wh, held)
        _expect_more(ctx, slot)
    return None


def settle_slot(ctx: Context, slot: int) -> None:
    """Settle a slot: escrow to the sellers, residuals against the supervisor."""
    row = ctx.state.get(keys.slot(slot))
    assert row is not None and row["cleared"]
    supervisor = ctx.genesis.supervisor.address
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    released_uc = supervisor_uc = position_wh = contracted_wh = net_wh = residual_wh = 0
    for address, held in _due(ctx, slot):
        bought_wh, sold_wh = held["boughtWh"], held["soldWh"]
        released_uc += held["receivableUc"]
        position_wh += bought_wh - sold_wh
        if address == supervisor:
            accounts.move(ctx.state, address, held["receivableUc"])
            continue
        assumed = "netWh" not in held
        home_net_wh = _assume(ctx, slot, address, held) if assumed else held["netWh"]
        if assumed:
            missing.append(address)
        result = settle(home_net_wh, bought_wh, sold_wh, _tariff(ctx, slot, held))
        accounts.move(ctx.state, address, held["receivableUc"] - result.amount_uc)
        supervisor_uc += result.amount_uc
        net_wh += home_net_wh
        contracted_wh += bought_wh - sold_wh
        residual_wh += result.residual_wh
        home = _row(address, home_net_wh, bought_wh, sold_wh, result)
        rows.append({**home, "assumed": True} if assumed else home)
    assert released_uc == row["escrowUc"], f"slot {slot}: escrow is not what the sellers are owed"
    assert position_wh == 0, f"slot {slot}: bought and sold energy differ"
    assert net_wh == residual_wh + contracted_wh, f"slot {slot}: energy is not conserved"
    accounts.move(ctx.state, supervisor, supervisor_uc)
    accounts.cover_supervisor(ctx)
    accounts.count(ctx.state, residualWh=residual_wh)
    ctx.state.put(keys.slot(slot), {**row, "settled": True, "escrowUc": 0})
    if rows:
        ctx.emit("settled", slot=slot, rows=rows, missing=missing)
    _expect_more(ctx, slot)


def _due(ctx: Context, slot: int) -> list[tuple[str, dict[str, Any]]]:
    """Who is settled in a slot, in the order of addresses: positions, receipts, expected ones."""
    active = _active(ctx, slot)
    held = {slots.address_of(k): row for k, row in ctx.state.scan(keys.positions(slot))}
    found = dict.fromkeys(active, slots.NEW_POSITION) | held
    counts = ("bids", "boughtWh", "soldWh", "receivableUc")
    return [
        (address, row)
        for address, row in sorted(found.items())
        if any(row[name] for name in counts) or address in active or SETTLED_WITH & row.keys()
    ]


def _active(ctx: Context, slot: int) -> set[str]:
    """Addresses whose meter spoke shortly before a slot and whose grant covers it."""
    found = set()
    for earlier in range(slot - ACTIVE_SLOTS, slot):
        for key, held in ctx.state.scan(keys.positions(earlier)):
            if "netWh" in held:
                found.add(slots.address_of(key))
    return {address for address in found if _covers(ctx.state.get(keys.grant(address)), slot)}


def _tariff(ctx: Context, slot: int, held: dict[str, Any]) -> Tariff:
    """By what a home is settled; who scheduled pays for deviations (`market.scheduling`)."""
    tariff = ctx.tariff(slot)
    return deviation_tariff(tariff) if held.get("scheduled") else tariff


def _covers(grant: dict[str, Any] | None, slot: int) -> bool:
    return grant is not None and grant["startSlot"] <= slot <= grant["endSlot"]


def _assume(ctx: Context, slot: int, address: str, held: dict[str, Any]) -> int:
    """Settle without a receipt: the most that may have flowed [Wh], kept for the true-up."""
    grant = ctx.state.get(keys.grant(address))
    assert grant is not None, f"{address} ordered in slot {slot} without a grant"
    most_wh = assumed_net_wh(grant["maxBuyWh"], grant["maxSellWh"], held["boughtWh"])
    net_wh = min(most_wh, CONNECTION_MAX_WH)
    ctx.state.put(keys.position(slot, address), {**held, "assumedNetWh": net_wh})
    return net_wh


def _expect_more(ctx: Context, slot: int) -> None:
    """
    Put the settlement of the next slot on the calendar although nobody ordered anything in it.

    Otherwise the only home of a quiet slot could make the slot itself disappear by silence. Time
    in which the ledger stood still is left out: nobody could deliver a receipt then.
    """
    for later in range(slot + 1, slot + 1 + ACTIVE_SLOTS):
        if slots.is_settled(ctx, later):
            continue
        known = ctx.state.get(keys.slot(later)) is not None
        if not known and slots.is_closed(ctx, later) and _active(ctx, later):
            slots.open_slot(ctx, later)
        return


def _true_up(ctx: Context, slot: int, net_wh: int, held: dict[str, Any]) -> None:
    """Pay the difference that a late receipt makes to what was assumed."""
    bought_wh, sold_wh = held["boughtWh"], held["soldWh"]
    assumed_wh = held.get("assumedNetWh", 0)
    owed_uc = true_up(net_wh, bought_wh, sold_wh, _tariff(ctx, slot, held), assumed_wh)
    accounts.move(ctx.state, ctx.sender, -owed_uc)
    accounts.move(ctx.state, ctx.genesis.supervisor.address, owed_uc)
    accounts.cover_supervisor(ctx)
    accounts.count(ctx.state, residualWh=net_wh - assumed_wh)
    result = settle(net_wh, bought_wh, sold_wh, _tariff(ctx, slot, held))
    before = {"assumedNetWh": assumed_wh} if "assumedNetWh" in held else {}
    ctx.emit(
        "trued-up",
        slot=slot,
        rows=[_row(ctx.sender, net_wh, bought_wh, sold_wh, result)],
        amountUc=-owed_uc,
        **before,
    )


def _row(
    address: str, net_wh: int, bought_wh: int, sold_wh: int, result: Settlement
) -> dict[str, Any]:
    """A home's settlement in an event; `amountUc` is what the home received."""
    return {
        "address": address,
        "netWh": net_wh,
        "boughtWh": bought_wh,
        "soldWh": sold_wh,
        "residualWh": result.residual_wh,
        "amountUc": -result.amount_uc,
    }
