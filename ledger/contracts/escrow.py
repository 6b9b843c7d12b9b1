"""
Escrowed trades on the ledger (`market.escrow`): offers, acceptances, what the meters make of them.

A trade is about one slot. The seller's energy and the buyer's money are locked like any order's;
what is blocked lies in the two accounts' `lockedUc`. The confirmation of receipt (Nazari's ERC) are
the delivery receipts of both meters: when both are in and the seller's shows that the energy left,
beyond all else the seller had contracted, the money moves at once. At the delivery deadline the
seller's receipt alone decides, so a buyer cannot keep its money by silence, and what the buyer did
not use is the buyer's to sell (ADR 0004).

**Once settled.** A delivered trade becomes a position of both sides before its slot is settled; a
trade that failed or was never accepted never does. So a failed sale is not charged at the imbalance
price on top of the penalty, and its buyer's consumption is settled at retail.

An address is on one side only in a slot: then what a seller had contracted beside its escrowed
sales is known when its receipt comes. Of several sales the one accepted first is served first.

The fields of Nazari's Table I: T_ID is the transaction's id; Time Stamp its block's time; Expiry
Time `acceptBeforeMs` and `deliverBeforeMs`; Cost energy × price; Contract Hash `commitment`; PK and
Signature those of the transaction.
"""

from __future__ import annotations

import re
from typing import Any

from ledger.contracts import accounts, bans, keys, orders, slots
from ledger.contracts.context import Context
from ledger.contracts.operations import AcceptEscrow, GiveUp, MakeOffer, RevealEscrow
from market import escrow as rules
from market.escrow import Payout, State, Terms
from wire.errors import Refusal
from wire.units import cost_uc

_NAME = re.compile(r"[a-z0-9-]{1,64}")
_HASH = re.compile(r"([0-9a-f]{64})?")
_OVER = {State.EXPIRED: Refusal.EXPIRED, State.WITHDRAWN: Refusal.NOT_FOUND}
MIN_SALT, MAX_SALT = 16, 128


def make_offer(ctx: Context, op: MakeOffer) -> Refusal | None:
    """Nazari's CTS: offer energy of a slot, with a guarantee."""
    seller, _, name = op.offer.partition(":")
    if not (_NAME.fullmatch(name) and _HASH.fullmatch(op.commitment)):
        return Refusal.MALFORMED
    if seller != ctx.sender:
        return Refusal.NOT_ALLOWED
    if ctx.state.get(keys.escrow(op.offer)) is not None:
        return Refusal.DUPLICATE
    admitted = orders.admit(ctx, "sell", op.slot, op.energy_wh, op.price_uc_per_kwh)
    if isinstance(admitted, Refusal):
        return admitted
    row = {
        "seller": ctx.sender,
        "buyer": "",
        "slot": op.slot,
        "energyWh": op.energy_wh,
        "priceUcPerKwh": op.price_uc_per_kwh,
        "guaranteeUc": op.guarantee_uc,
        "penaltyPermille": ctx.parameters(op.slot).escrow.penalty_permille,
        "acceptBeforeMs": op.accept_before_ms,
        "deliverBeforeMs": op.deliver_before_ms,
        "commitment": op.commitment,
        "state": State.OPEN.value,
    }
    refusal = (
        _check_deadlines(ctx, op)
        or _check_guarantee(ctx, op.slot, _terms_of(row))
        or _take_side(ctx, op.slot, "sell")
        or accounts.lock(ctx.state, ctx.sender, op.guarantee_uc)
        or _pay_fee(ctx, op.slot)
    )
    if refusal is not None:
        return refusal
    ctx.state.put(keys.escrow(op.offer), row)
    ctx.state.put(keys.due_trade(op.accept_before_ms, op.offer), True)
    drop_ms = slots.drop_ms(ctx.genesis, op.slot)
    ctx.state.put(keys.drop(drop_ms, keys.escrow(op.offer)), True)
    ctx.emit("escrow-offered", offer=op.offer, **{k: row[k] for k in row if k != "buyer"})
    return None


def accept(ctx: Context, op: AcceptEscrow) -> Refusal | None:
    """Nazari's CTP: accept an offer as it stands, and block its price."""
    row = _find(ctx, op.offer)
    if row is None:
        return Refusal.NOT_FOUND
    if row["state"] != State.OPEN:
        return _OVER.get(State(row["state"]), Refusal.DUPLICATE)
    seen = (op.energy_wh, op.price_uc_per_kwh, op.commitment)
    if seen != (row["energyWh"], row["priceUcPerKwh"], row["commitment"]):
        return Refusal.TERMS_DIFFER
    if bans.is_banned(ctx, row["seller"]):
        return Refusal.BANNED
    slot = row["slot"]
    admitted = orders.admit(ctx, "buy", slot, op.energy_wh, op.price_uc_per_kwh)
    if isinstance(admitted, Refusal):
        return admitted
    refusal = _take_side(ctx, slot, "buy") or _pay_fee(ctx, slot)
    if refusal is not None:
        return refusal
    for address in (ctx.sender, row["seller"]):
        side = ctx.state.get(keys.escrow_side(slot, address))
        assert side is not None
        listed = {**side, "offers": [*side["offers"], op.offer]}
        ctx.state.put(keys.escrow_side(slot, address), listed)
    ctx.state.put(
        keys.escrow(op.offer), {**row, "buyer": ctx.sender, "state": State.ACCEPTED.value}
    )
    ctx.state.put(keys.due_trade(row["deliverBeforeMs"], op.offer), True)
    ctx.emit(
        "escrow-accepted", offer=op.offer, slot=slot, seller=row["seller"], buyer=ctx.sender,
        energyWh=op.energy_wh, priceUcPerKwh=op.price_uc_per_kwh,
        blockedUc=_terms_of(row).price_uc,
    )  # fmt: skip
    return None


def give_up(ctx: Context, op: GiveUp) -> Refusal | None:
    """Nazari's CCS: the seller takes back an offer that nobody has accepted."""
    row = _find(ctx, op.offer)
    if row is None:
        return Refusal.NOT_FOUND
    if row["seller"] != ctx.sender:
        return Refusal.NOT_ALLOWED
    if row["state"] != State.OPEN:
        return _OVER.get(State(row["state"]), Refusal.NOT_ALLOWED)
    _end(ctx, op.offer, row, rules.withdraw(_terms_of(row), ctx.time_ms))
    return None


def take_out(ctx: Context, seller: str) -> None:
    """End the offers of an address that nobody has accepted; it keeps its guarantees."""
    for key, row in ctx.state.scan(keys.escrow(seller + ":")):
        if row["state"] == State.OPEN:
            offer = key.removeprefix(keys.ESCROW)
            _end(ctx, offer, row, rules.withdraw(_terms_of(row), row["acceptBeforeMs"]))


def reveal(ctx: Context, op: RevealEscrow) -> Refusal | None:
    """Open the commitment of an accepted trade; either side may."""
    row = _find(ctx, op.offer)
    if row is None:
        return Refusal.NOT_FOUND
    if ctx.sender not in (row["seller"], row["buyer"]) or not row["commitment"]:
        return Refusal.NOT_ALLOWED
    if row["state"] != State.ACCEPTED:
        return _OVER.get(State(row["state"]), Refusal.NOT_ALLOWED)
    if "trueEnergyWh" in row:
        return Refusal.DUPLICATE
    if not MIN_SALT <= len(op.salt) <= MAX_SALT:
        return Refusal.MALFORMED
    made = rules.commitment(op.offer, op.energy_wh, op.price_uc_per_kwh, op.salt)
    if made != row["commitment"]:
        return Refusal.BAD_PREIMAGE
    if not 1 <= op.energy_wh <= row["energyWh"]:
        return Refusal.QUANTITY_OUT_OF_RANGE
    if not 0 <= op.price_uc_per_kwh <= row["priceUcPerKwh"]:
        return Refusal.PRICE_OUT_OF_RANGE
    revealed = {**row, "trueEnergyWh": op.energy_wh, "truePriceUcPerKwh": op.price_uc_per_kwh}
    ctx.state.put(keys.escrow(op.offer), revealed)
    ctx.emit(
        "escrow-revealed", offer=op.offer, energyWh=op.energy_wh,
        priceUcPerKwh=op.price_uc_per_kwh,
    )  # fmt: skip
    _serve(ctx, row["slot"], row["seller"])
    return None


def on_receipt(ctx: Context, slot: int, address: str) -> None:
    """A meter has spoken: release what is now proved on both sides."""
    side = ctx.state.get(keys.escrow_side(slot, address))
    if side is None:
        return
    sellers = {_row(ctx, offer)["seller"] for offer in side["offers"]}
    for seller in sorted(sellers):
        _serve(ctx, slot, seller)


def at_deadline(ctx: Context, offer: str) -> None:
    """A deadline has come: an offer expires, or a trade is delivered or has failed."""
    row = _row(ctx, offer)
    if row["state"] == State.OPEN and ctx.time_ms >= row["acceptBeforeMs"]:
        _end(ctx, offer, row, rules.withdraw(_terms_of(row), row["acceptBeforeMs"]))
    elif row["state"] == State.ACCEPTED and ctx.time_ms >= row["deliverBeforeMs"]:
        _serve(ctx, row["slot"], row["seller"], due=offer)
        row = _row(ctx, offer)
        if row["state"] == State.ACCEPTED:
            _end(ctx, offer, row, rules.fail(_terms_of(row)))


def drop(ctx: Context, offer: str) -> None:
    """Forget a trade that is long over."""
    row = _row(ctx, offer)
    assert row["state"] not in (State.OPEN, State.ACCEPTED), f"{offer} would be forgotten open"
    for address in (row["seller"], row["buyer"]):
        ctx.state.delete(keys.escrow_side(row["slot"], address))
    ctx.state.delete(keys.escrow(offer))


# --- helpers --------------------------------------------------------------------------------------


def _serve(ctx: Context, slot: int, seller: str, due: str = "") -> None:
    """
    Release the sales of one seller that its receipt covers, in the order they were accepted.

    Args:
        due: the offer whose deadline has come: it needs no receipt of its buyer any more
    """
    side = ctx.state.get(keys.escrow_side(slot, seller))
    held = slots.position(ctx.state, slot, seller)
    if side is None or "netWh" not in held:
        return
    sold_wh = held["soldWh"]
    for offer in side["offers"]:
        row = _row(ctx, offer)
        if row["state"] != State.ACCEPTED:
            continue  # delivered ones are in soldWh already
        hidden = bool(row["commitment"]) and "trueEnergyWh" not in row
        energy_wh, price_uc = _true(row)
        if not rules.is_delivered(held["netWh"], held["boughtWh"], sold_wh, energy_wh):
            continue
        sold_wh += energy_wh
        received = "netWh" in slots.position(ctx.state, slot, row["buyer"])
        if not hidden and (received or offer == due):
            _deliver(ctx, offer, row, energy_wh, price_uc)


def _deliver(ctx: Context, offer: str, row: dict[str, Any], energy_wh: int, price_uc: int) -> None:
    slots.add_to_position(ctx.state, row["slot"], row["seller"], soldWh=energy_wh)
    slots.add_to_position(ctx.state, row["slot"], row["buyer"], boughtWh=energy_wh)
    accounts.count(ctx.state, tradedWh=energy_wh)
    _end(ctx, offer, row, rules.deliver(_terms_of(row), price_uc))


def _end(ctx: Context, offer: str, row: dict[str, Any], payout: Payout) -> None:
    """Pay out what was blocked, and note the end."""
    terms = _terms_of(row)
    blocked_uc = terms.guarantee_uc + (terms.price_uc if row["buyer"] else 0)
    assert payout.buyer_uc + payout.seller_uc + payout.fund_uc == blocked_uc
    accounts.move(ctx.state, row["seller"], payout.seller_uc, -terms.guarantee_uc)
    if row["buyer"]:
        accounts.move(ctx.state, row["buyer"], payout.buyer_uc, -terms.price_uc)
    else:
        slots.add_to_position(
            ctx.state, row["slot"], row["seller"], sellLockedWh=-row["energyWh"], bids=-1
        )
    accounts.move(ctx.state, ctx.genesis.supervisor.address, payout.fund_uc)
    ctx.state.put(keys.escrow(offer), {**row, "state": payout.state.value})
    ctx.emit(
        "escrow-ended",
        offer=offer,
        state=payout.state.value,
        slot=row["slot"],
        seller=row["seller"],
        buyer=row["buyer"],
        buyerUc=payout.buyer_uc,
        sellerUc=payout.seller_uc,
        fundUc=payout.fund_uc,
    )
    if payout.penalties:
        bans.penalise(ctx, row["seller"], ctx.parameters(row["slot"]).escrow)


def _check_deadlines(ctx: Context, op: MakeOffer) -> Refusal | None:
    """Acceptance before the gate closes; delivery after the slot, before it is settled."""
    if op.accept_before_ms <= ctx.time_ms:
        return Refusal.EXPIRED
    if op.accept_before_ms > ctx.gate_ms(op.slot):
        return Refusal.SLOT_CLOSED
    ends_ms, settles_ms = ctx.genesis.grid.end_ms(op.slot), ctx.genesis.settle_ms(op.slot)
    if not ends_ms < op.deliver_before_ms <= settles_ms:
        return Refusal.SLOT_CLOSED
    return None


def _check_guarantee(ctx: Context, slot: int, terms: Terms) -> Refusal | None:
    least_uc = rules.least_guarantee_uc(
        terms.price_uc, ctx.parameters(slot).escrow.guarantee_permille
    )
    if least_uc <= terms.guarantee_uc <= accounts.DEPOSITS_MAX_UC:
        return None
    return Refusal.QUANTITY_OUT_OF_RANGE


def _take_side(ctx: Context, slot: int, side: str) -> Refusal | None:
    """Note on which side of a slot the sender is; refuse it the other one."""
    key = keys.escrow_side(slot, ctx.sender)
    before = ctx.state.get(key)
    if before is None:
        ctx.state.put(key, {"side": side, "offers": []})
    elif before["side"] != side:
        return Refusal.NOT_ALLOWED
    return None


def _pay_fee(ctx: Context, slot: int) -> Refusal | None:
    """The sender's fee goes to the supervisor, and is not given back."""
    fee_uc = ctx.parameters(slot).escrow.fee_uc
    if accounts.read(ctx.state, ctx.sender)["balanceUc"] < fee_uc:
        return Refusal.INSUFFICIENT_FUNDS
    accounts.move(ctx.state, ctx.sender, -fee_uc)
    accounts.move(ctx.state, ctx.genesis.supervisor.address, fee_uc)
    return None


def _terms_of(row: dict[str, Any]) -> Terms:
    return Terms(
        energy_wh=row["energyWh"],
        price_uc_per_kwh=row["priceUcPerKwh"],
        guarantee_uc=row["guaranteeUc"],
        penalty_permille=row["penaltyPermille"],
        accept_before_ms=row["acceptBeforeMs"],
        deliver_before_ms=row["deliverBeforeMs"],
    )


def _true(row: dict[str, Any]) -> tuple[int, int]:
    """Energy [Wh] and what it costs [µ¤]: as revealed, else the bounds."""
    energy_wh = row.get("trueEnergyWh", row["energyWh"])
    price = row.get("truePriceUcPerKwh", row["priceUcPerKwh"])
    return energy_wh, cost_uc(energy_wh, price)


def _find(ctx: Context, offer: str) -> dict[str, Any] | None:
    row: dict[str, Any] | None = ctx.state.get(keys.escrow(offer))
    return row


def _row(ctx: Context, offer: str) -> dict[str, Any]:
    row = _find(ctx, offer)
    assert row is not None, f"{offer} was forgotten too early"
    return row
