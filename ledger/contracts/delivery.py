"""
Delivery: meter-signed receipts, settlement, late receipts.

Settlement of a slot pays the sellers from escrow and settles every home's residual with the grid
supervisor (`market.settlement`, ADR 0004). A home with a position and no receipt is settled as if
its meter had not moved; when the receipt comes within 96 slots, the difference is paid. A home that
did not trade is settled too when its meter speaks.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, keys, slots
from ledger.contracts.context import TRUE_UP_SLOTS, Context
from ledger.contracts.operations import DeliveryReceipt
from market.settlement import Settlement, settle, true_up
from wire.errors import Refusal
from wire.keys import from_text
from wire.metering import Receipt, check_record, load_record

MAX_NET_WH = 10_000_000
"""More than any one connection point moves in a slot [Wh]; bounds the money of a settlement."""


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
    if not -MAX_NET_WH <= receipt.net_wh <= MAX_NET_WH:
        return Refusal.QUANTITY_OUT_OF_RANGE
    check_record(receipt, from_text(grant["meterKey"]), ctx.genesis.chain_id)
    slots.open_slot(ctx, slot)
    ctx.state.put(keys.position(slot, ctx.sender), {**held, "netWh": receipt.net_wh})
    ctx.emit("receipt", address=ctx.sender, slot=slot, netWh=receipt.net_wh)
    if slots.is_settled(ctx, slot):
        _true_up(ctx, slot, receipt.net_wh, held)
    return None


def settle_slot(ctx: Context, slot: int) -> None:
    """Settle a slot: escrow to the sellers, residuals against the supervisor."""
    row = ctx.state.get(keys.slot(slot))
    assert row is not None and row["cleared"]
    supervisor = ctx.genesis.supervisor.address
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    released_uc = supervisor_uc = position_wh = contracted_wh = net_wh = residual_wh = 0
    for key, held in ctx.state.scan(keys.positions(slot)):
        address = slots.address_of(key)
        bought_wh, sold_wh = held["boughtWh"], held["soldWh"]
        released_uc += held["receivableUc"]
        position_wh += bought_wh - sold_wh
        if address == supervisor:
            accounts.move(ctx.state, address, held["receivableUc"])
            continue
        if "netWh" not in held:
            if bought_wh == sold_wh == 0:
                continue
            missing.append(address)
        home_net_wh = held.get("netWh", 0)
        result = settle(home_net_wh, bought_wh, sold_wh, ctx.tariff)
        accounts.move(ctx.state, address, held["receivableUc"] - result.amount_uc)
        supervisor_uc += result.amount_uc
        net_wh += home_net_wh
        contracted_wh += bought_wh - sold_wh
        residual_wh += result.residual_wh
        rows.append(_row(address, home_net_wh, bought_wh, sold_wh, result))
    assert released_uc == row["escrowUc"], f"slot {slot}: escrow is not what the sellers are owed"
    assert position_wh == 0, f"slot {slot}: bought and sold energy differ"
    assert net_wh == residual_wh + contracted_wh, f"slot {slot}: energy is not conserved"
    accounts.move(ctx.state, supervisor, supervisor_uc)
    accounts.cover_supervisor(ctx)
    accounts.count(ctx.state, residualWh=residual_wh)
    ctx.state.put(keys.slot(slot), {**row, "settled": True, "escrowUc": 0})
    if rows:
        ctx.emit("settled", slot=slot, rows=rows, missing=missing)


def _true_up(ctx: Context, slot: int, net_wh: int, held: dict[str, Any]) -> None:
    """Pay the difference that a late receipt makes."""
    bought_wh, sold_wh = held["boughtWh"], held["soldWh"]
    owed_uc = true_up(net_wh, bought_wh, sold_wh, ctx.tariff)
    accounts.move(ctx.state, ctx.sender, -owed_uc)
    accounts.move(ctx.state, ctx.genesis.supervisor.address, owed_uc)
    accounts.cover_supervisor(ctx)
    accounts.count(ctx.state, residualWh=net_wh)
    result = settle(net_wh, bought_wh, sold_wh, ctx.tariff)
    ctx.emit(
        "trued-up",
        slot=slot,
        rows=[_row(ctx.sender, net_wh, bought_wh, sold_wh, result)],
        amountUc=-owed_uc,
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
