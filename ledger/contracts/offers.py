"""
The order book between neighbours (PETra): offers that stand until somebody accepts them.

The rules are `market.order_book`; here the state is their `Books`. An offer's asset is not moved
while it stands: it counts as locked (`assets.locked_wh`), so one watt-hour cannot stand behind two
orders, of whatever market. A trade becomes positions, and the buyer's money goes to the escrow of
each slot, exactly as after a double auction: delivery and settlement know no difference.

An offer is named by its sender, the nonce of its transaction and its place in it, so that its owner
knows the name beforehand. It lives in three rows: itself, the list of its owner's offers, and the
index of due work. While it stands it costs a slot nothing, however long its interval.
"""

from __future__ import annotations

from typing import Any

from ledger.contracts import accounts, assets, bans, keys, orders, slots
from ledger.contracts.context import SLOTS_AHEAD_MAX, Context
from ledger.contracts.operations import AcceptOffer, PostOffer, RescindOffer
from ledger.genesis import MAX_PRICE_UC_PER_KWH
from market import order_book
from market.assets import EnergyAsset, Holding, Kind
from market.order_book import Calendar, Offer, Trade
from wire.errors import Refusal
from wire.units import cost_uc

MAX_OFFERS = 16
"""Offers of one address that may stand at a time."""


def post_offer(ctx: Context, op: PostOffer) -> Refusal | None:
    """Let an offer of the sender stand."""
    asset = EnergyAsset(Kind(op.kind), op.energy_wh, op.start_slot, op.end_slot)
    calendar = _calendar(ctx)
    offer = Offer(
        name=f"{ctx.sender}-{accounts.read(ctx.state, ctx.sender)['nonce'] - 1}-{ctx.op_index}",
        address=ctx.sender,
        asset=asset,
        price_uc_per_kwh=op.price_uc_per_kwh,
        until_ms=_until_ms(ctx, op, calendar),
    )
    if len(ctx.state.get(keys.offers_of(ctx.sender)) or ()) >= MAX_OFFERS:
        return Refusal.RATE_LIMITED
    refusal = order_book.post_offer(_StateBooks(ctx), offer, calendar)
    if refusal is not None:
        return refusal
    ctx.emit("offer-posted", **_facts(offer))
    return None


def rescind_offer(ctx: Context, op: RescindOffer) -> Refusal | None:
    """Take an offer of the sender back."""
    refusal = order_book.rescind_offer(_StateBooks(ctx), op.offer, ctx.sender)
    if refusal is not None:
        return refusal
    ctx.emit("offer-rescinded", offer=op.offer, address=ctx.sender)
    return None


def accept_offer(ctx: Context, op: AcceptOffer) -> Refusal | None:
    """Exchange assets of the sender (and a buyer's money) for those of a standing offer."""
    books = _StateBooks(ctx)
    offer = books.find(op.offer)
    if offer is None:
        return Refusal.NOT_FOUND
    if bans.is_banned(ctx, offer.address):
        return Refusal.BANNED
    kind = offer.asset.kind.opposite
    given = [EnergyAsset(kind, one.energy_wh, one.start_slot, one.end_slot) for one in op.assets]
    done = order_book.accept_offer(books, op.offer, ctx.sender, given, _calendar(ctx))
    if isinstance(done, Refusal):
        return done
    ctx.emit(
        "offer-accepted",
        offer=op.offer,
        address=offer.address,
        acceptedBy=ctx.sender,
        seller=done.seller,
        buyer=done.buyer,
        priceUcPerKwh=offer.price_uc_per_kwh,
        energyWh=done.energy_wh,
        amountUc=done.amount_uc,
        traded=_rows(done.traded),
        offerRest=_rows(done.offer_rest),
        assetsRest=_rows(done.assets_rest),
    )
    return None


def take_out(ctx: Context, address: str) -> None:
    """Take all offers of an address back."""
    books = _StateBooks(ctx)
    for name, *_ in ctx.state.get(keys.offers_of(address)) or ():
        offer = books.find(name)
        assert offer is not None, f"{name} is listed and does not stand"
        books.remove(offer)
        ctx.emit("offer-rescinded", offer=name, address=address)


def expire(ctx: Context, name: str) -> None:
    """Begin-block work: an offer's time has come."""
    gone = order_book.expire_offer(_StateBooks(ctx), name, ctx.time_ms)
    assert gone is not None, f"offer {name} is due and does not stand"
    ctx.emit("offer-expired", offer=name, address=gone.address)


class _StateBooks:
    """`market.order_book.Books` on the ledger's state, for operations of the sender."""

    def __init__(self, ctx: Context) -> None:
        self._ctx, self._state = ctx, ctx.state

    def find(self, name: str) -> Offer | None:
        """A standing offer."""
        row = self._state.get(keys.offer(name))
        if row is None:
            return None
        asset = EnergyAsset(Kind(row["kind"]), row["energyWh"], row["startSlot"], row["endSlot"])
        return Offer(name, row["address"], asset, row["priceUcPerKwh"], row["untilMs"])

    def refuse(self, address: str, asset: EnergyAsset) -> Refusal | None:
        """UNKNOWN_SENDER, REWARDS_ONLY, NOT_ALLOWED, QUANTITY_OUT_OF_RANGE, INSUFFICIENT_ASSET."""
        side = "buy" if asset.kind is Kind.CONSUMPTION else "sell"
        refusal = orders.check_trader(self._ctx, side)
        if refusal is not None:
            return refusal
        grant = self._state.get(keys.grant(address))
        assert grant is not None
        if not grant["startSlot"] <= asset.start_slot <= asset.end_slot <= grant["endSlot"]:
            return Refusal.NOT_ALLOWED
        limit_wh = grant["maxBuyWh" if side == "buy" else "maxSellWh"]
        for slot in asset.slots:
            wanted_wh = assets.locked_wh(self._state, address, side, slot) + asset.energy_wh
            if wanted_wh > limit_wh:
                return Refusal.QUANTITY_OUT_OF_RANGE
            if wanted_wh > assets.granted_wh(self._state, address, asset.kind.value, slot):
                return Refusal.INSUFFICIENT_ASSET
        return None

    def free_uc(self, address: str) -> int:
        """Money that is not locked [µ¤]."""
        return int(accounts.read(self._state, address)["balanceUc"])

    def add(self, offer: Offer) -> None:
        """Write an offer's three rows and lock its money."""
        accounts.move(self._state, offer.address, -offer.lock_uc, offer.lock_uc)
        facts = _facts(offer)
        self._state.put(keys.offer(offer.name), {k: v for k, v in facts.items() if k != "offer"})
        standing = self._state.get(keys.offers_of(offer.address)) or []
        self._state.put(keys.offers_of(offer.address), [*standing, _entry(offer)])
        self._state.put(keys.due_expiry(offer.until_ms, offer.name), True)

    def remove(self, offer: Offer) -> None:
        """Delete an offer's three rows and unlock its money."""
        accounts.move(self._state, offer.address, offer.lock_uc, -offer.lock_uc)
        self._state.delete(keys.offer(offer.name))
        standing = self._state.get(keys.offers_of(offer.address)) or []
        left = [entry for entry in standing if entry[0] != offer.name]
        if left:
            self._state.put(keys.offers_of(offer.address), left)
        else:
            self._state.delete(keys.offers_of(offer.address))
        self._state.delete(keys.due_expiry(offer.until_ms, offer.name))

    def book(self, trade: Trade) -> None:
        """Positions and escrow in every slot of a trade."""
        for asset in trade.traded:
            amount_uc = cost_uc(asset.energy_wh, trade.offer.price_uc_per_kwh)
            for slot in asset.slots:
                self._book_slot(trade, slot, asset.energy_wh, amount_uc)
        accounts.move(self._state, trade.buyer, -trade.amount_uc)
        accounts.count(self._state, tradedWh=trade.energy_wh)

    def _book_slot(self, trade: Trade, slot: int, energy_wh: int, amount_uc: int) -> None:
        row = slots.open_slot(self._ctx, slot)
        self._state.put(keys.slot(slot), {**row, "escrowUc": row["escrowUc"] + amount_uc})
        slots.add_to_position(
            self._state, slot, trade.buyer, boughtWh=energy_wh, buyLockedWh=energy_wh
        )
        slots.add_to_position(
            self._state, slot, trade.seller,
            soldWh=energy_wh, sellLockedWh=energy_wh, receivableUc=amount_uc,
        )  # fmt: skip


def _calendar(ctx: Context) -> Calendar:
    last_slot = ctx.slot + SLOTS_AHEAD_MAX
    # The gate's lead may differ from slot to slot: what follows the last closed slot is open.
    closed = (slot for slot in range(last_slot, ctx.slot - 1, -1) if slots.is_closed(ctx, slot))
    return Calendar(
        now_ms=ctx.time_ms,
        first_slot=next(closed, ctx.slot - 1) + 1,
        last_slot=last_slot,
        price_max_uc_per_kwh=MAX_PRICE_UC_PER_KWH,
    )


def _until_ms(ctx: Context, op: PostOffer, calendar: Calendar) -> int:
    """When an offer ends: at the stated time, at the latest when its last slot closes."""
    if not 0 <= op.end_slot <= calendar.last_slot:
        return calendar.now_ms  # refused for its slots
    gate_ms = ctx.gate_ms(op.end_slot)
    return gate_ms if op.until_ms is None else min(op.until_ms, gate_ms)


def _facts(offer: Offer) -> dict[str, Any]:
    """An offer as its row and its event have it."""
    return {
        "offer": offer.name,
        "address": offer.address,
        "kind": offer.asset.kind.value,
        "energyWh": offer.asset.energy_wh,
        "startSlot": offer.asset.start_slot,
        "endSlot": offer.asset.end_slot,
        "priceUcPerKwh": offer.price_uc_per_kwh,
        "untilMs": offer.until_ms,
    }


def _entry(offer: Offer) -> list[Any]:
    """An offer in the list of its owner's; see `assets.offered_wh`."""
    asset = offer.asset
    return [offer.name, asset.kind.value, asset.energy_wh, asset.start_slot, asset.end_slot]


def _rows(holding: Holding) -> list[dict[str, int]]:
    return [
        {"energyWh": one.energy_wh, "startSlot": one.start_slot, "endSlot": one.end_slot}
        for one in holding
    ]
