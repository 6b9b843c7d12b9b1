"""
The order book between neighbours: an offer stands until one accepts it, whole or in part.

    post     locks the offer's asset and, when it buys, its worst-case cost
    rescind  the owner takes it back: everything is unlocked
    accept   somebody gives assets of the opposite kind: in every common slot the smaller energy
             changes hands at the offer's price; all else goes back to its owner; the offer is gone
    expire   nobody accepted it in time: everything is unlocked

An offer that nobody could accept is refused when it is posted: without an asset or the money behind
it, for slots that are closed, or until a time that is past. Slots that close while it stands drop
out of it: they cannot be accepted any more, and when none is left it has expired.

The rules are functions over a `Books`, which says what an address has and keeps the offers; the
ledger's state is one, `market.wallets.Wallets` another. They ask everything before they change
anything, so a refusal leaves no trace. Finding, adding and removing an offer costs no more than
log n of the offers that stand.

There is no least acceptance, as there is none in PETra: an address' trades of a slot add up to one
position, so small ones leave no dust, and a minimum would leave rests that nobody may trade.

Source: PETra section 4.2 (postOffer, rescindOffer, acceptOffer). Deviations: assets of a kind are
alike, so they have no ids and are named by what they are; an offer ends at a stated time.
Rounding: each slot's cost is rounded once (`wire.units.cost_uc`), toward zero; buyer and seller
see the same amount, and no part costs more than was locked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from market.assets import EnergyAsset, Holding, Kind, exchange, is_sound, merge
from wire.errors import Refusal
from wire.units import cost_uc

MAX_ASSETS = 8
"""Assets that may be given for one offer."""


class Calendar(msgspec.Struct, frozen=True):
    """The time of an operation."""

    now_ms: int
    first_slot: int
    """The first slot whose gate is open."""
    last_slot: int
    """The last slot for which offers are taken."""
    price_max_uc_per_kwh: int


class Offer(msgspec.Struct, frozen=True, gc=False):
    """A standing offer: production is for sale, consumption asks for energy."""

    name: str
    """Unique."""
    address: str
    """Whose it is."""
    asset: EnergyAsset
    price_uc_per_kwh: int
    until_ms: int
    """From this market time on nobody can accept it."""

    @property
    def buys(self) -> bool:
        """True when it asks for energy."""
        return self.asset.kind is Kind.CONSUMPTION

    @property
    def lock_uc(self) -> int:
        """Money locked behind it: its cost if it is accepted as a whole [µ¤]."""
        return cost_of(self.asset, self.price_uc_per_kwh) if self.buys else 0


class Trade(msgspec.Struct, frozen=True):
    """An accepted offer."""

    offer: Offer
    accepted_by: str
    traded: Holding
    """What changed hands, as production."""
    offer_rest: Holding
    """What went back to the owner of the offer."""
    assets_rest: Holding
    """What went back to the one who accepted it."""
    amount_uc: int
    """What the buyer pays [µ¤]."""

    @property
    def buyer(self) -> str:
        """Who gets the energy."""
        return self.offer.address if self.offer.buys else self.accepted_by

    @property
    def seller(self) -> str:
        """Who gets the money."""
        return self.accepted_by if self.offer.buys else self.offer.address

    @property
    def energy_wh(self) -> int:
        """Energy over all slots [Wh]."""
        return sum(asset.total_wh for asset in self.traded)


class Books(Protocol):
    """Who has what, and which offers stand."""

    def find(self, name: str) -> Offer | None:
        """A standing offer."""
        ...

    def refuse(self, address: str, asset: EnergyAsset) -> Refusal | None:
        """Why an address may not trade an asset now; None: it has it, free of other orders."""
        ...

    def free_uc(self, address: str) -> int:
        """Money of an address that is not locked [µ¤]."""
        ...

    def add(self, offer: Offer) -> None:
        """Keep an offer; its asset and `lock_uc` are locked from now on."""
        ...

    def remove(self, offer: Offer) -> None:
        """Forget an offer; its asset and `lock_uc` are free again."""
        ...

    def book(self, trade: Trade) -> None:
        """Enter a trade: the buyer pays, both have positions in each slot of `trade.traded`."""
        ...


def cost_of(asset: EnergyAsset, price_uc_per_kwh: int) -> int:
    """What an asset costs, each slot rounded by itself [µ¤]."""
    return cost_uc(asset.energy_wh, price_uc_per_kwh) * len(asset.slots)


def post_offer(books: Books, offer: Offer, calendar: Calendar) -> Refusal | None:
    """
    Let an offer stand.

    Returns:
        DUPLICATE, MALFORMED (no interval), QUANTITY_OUT_OF_RANGE, SLOT_CLOSED (already the first
        slot is), SLOT_TOO_FAR, PRICE_OUT_OF_RANGE, EXPIRED (before anybody can accept it), what
        `Books.refuse` says of the asset, INSUFFICIENT_FUNDS; or None.
    """
    if books.find(offer.name) is not None:
        return Refusal.DUPLICATE
    refusal = _check_asset(books, offer.address, offer.asset, calendar)
    if refusal is not None:
        return refusal
    if not 0 <= offer.price_uc_per_kwh <= calendar.price_max_uc_per_kwh:
        return Refusal.PRICE_OUT_OF_RANGE
    if offer.until_ms <= calendar.now_ms:
        return Refusal.EXPIRED
    if offer.buys and books.free_uc(offer.address) < offer.lock_uc:
        return Refusal.INSUFFICIENT_FUNDS
    books.add(offer)
    return None


def rescind_offer(books: Books, name: str, sender: str) -> Refusal | None:
    """
    Take an offer back; its owner's to do.

    Returns:
        NOT_FOUND, NOT_ALLOWED, or None.
    """
    offer = books.find(name)
    if offer is None:
        return Refusal.NOT_FOUND
    if offer.address != sender:
        return Refusal.NOT_ALLOWED
    books.remove(offer)
    return None


def accept_offer(
    books: Books, name: str, sender: str, assets: Sequence[EnergyAsset], calendar: Calendar
) -> Trade | Refusal:
    """
    Exchange an offer's asset for `assets`, where they overlap in slots that are open.

    Args:
        assets: of the sender, of the kind opposite to the offer's; together they may hold more or
            less than the offer, in other slots too

    Returns:
        The trade; or NOT_FOUND, EXPIRED, NOT_ALLOWED (one's own offer), MALFORMED (no assets, too
        many, the wrong kind), NO_OVERLAP, SLOT_CLOSED (they overlap in closed slots only), what
        posting says of an asset, INSUFFICIENT_FUNDS (a buyer's).
    """
    offer = books.find(name)
    if offer is None:
        return Refusal.NOT_FOUND
    if offer.until_ms <= calendar.now_ms:
        return Refusal.EXPIRED
    if offer.address == sender:
        return Refusal.NOT_ALLOWED
    refusal = _check_form(offer, assets)
    if refusal is not None:
        return refusal
    open_part = offer.asset.within(calendar.first_slot, offer.asset.end_slot)
    given = merge(assets)
    common = [open_part.within(a.start_slot, a.end_slot) for a in given] if open_part else []
    if not any(common):
        meets = any(offer.asset.within(a.start_slot, a.end_slot) for a in given)
        return Refusal.SLOT_CLOSED if meets else Refusal.NO_OVERLAP
    assert open_part is not None
    for asset in given:
        live = asset.within(calendar.first_slot, asset.end_slot)
        refusal = _check_asset(books, sender, live, calendar) if live else None
        if refusal is not None:
            return refusal
    result = exchange(open_part, given)
    trade = Trade(
        offer=offer,
        accepted_by=sender,
        traded=tuple(a.turned() if offer.buys else a for a in result.traded),
        offer_rest=result.first_rest,
        assets_rest=result.second_rest,
        amount_uc=sum(cost_of(asset, offer.price_uc_per_kwh) for asset in result.traded),
    )
    if not offer.buys and books.free_uc(sender) < trade.amount_uc:
        return Refusal.INSUFFICIENT_FUNDS
    books.remove(offer)
    books.book(trade)
    return trade


def expire_offer(books: Books, name: str, now_ms: int) -> Offer | None:
    """Remove an offer whose time has come; None when it is gone already, or stands longer."""
    offer = books.find(name)
    if offer is None or offer.until_ms > now_ms:
        return None
    books.remove(offer)
    return offer


def _check_form(offer: Offer, assets: Sequence[EnergyAsset]) -> Refusal | None:
    if not 1 <= len(assets) <= MAX_ASSETS:
        return Refusal.MALFORMED
    wanted = offer.asset.kind.opposite
    for asset in assets:
        if asset.kind is not wanted:
            return Refusal.MALFORMED
        refusal = _check_size(asset)
        if refusal is not None:
            return refusal
    return None


def _check_size(asset: EnergyAsset) -> Refusal | None:
    if asset.energy_wh < 1:
        return Refusal.QUANTITY_OUT_OF_RANGE
    return None if is_sound(asset) else Refusal.MALFORMED


def _check_asset(
    books: Books, address: str, asset: EnergyAsset, calendar: Calendar
) -> Refusal | None:
    refusal = _check_size(asset)
    if refusal is not None:
        return refusal
    if asset.start_slot < calendar.first_slot:
        return Refusal.SLOT_CLOSED
    if asset.end_slot > calendar.last_slot:
        return Refusal.SLOT_TOO_FAR
    return books.refuse(address, asset)
