"""
Wallets and offers in memory: the order book of `market.order_book` without a ledger.

For simulations, benchmarks and whoever wants to try an offer before sending it. A wallet has money
and energy assets; a trade moves the money from buyer to seller at once (the ledger keeps it until
the meters have spoken). The offers are also kept by time and by price: `expire` and `best` cost
log n.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from market.assets import EnergyAsset, Holding, Kind, energy_at, merge, subtract
from market.order_book import Offer, Trade, expire_offer
from wire.errors import Refusal


@dataclass(slots=True)
class Wallet:
    """What one address has."""

    free_uc: int = 0
    locked_uc: int = 0
    """Behind its offers."""
    free: dict[Kind, Holding] = field(default_factory=dict)
    """Assets that may be offered or given."""
    bought: Holding = ()
    """Energy it will get, as production."""
    sold: Holding = ()
    """Energy it will deliver, as production."""


class Wallets:
    """A `market.order_book.Books` in memory."""

    def __init__(self) -> None:
        self.wallets: dict[str, Wallet] = {}
        self.offers: dict[str, Offer] = {}
        self._by_time: SortedList[tuple[int, str]] = SortedList()
        self._asks: SortedList[tuple[int, int, str]] = SortedList()
        """(price, arrival, name): the cheapest first."""
        self._bids: SortedList[tuple[int, int, str]] = SortedList()
        """(−price, arrival, name): the dearest first."""
        self._arrival: dict[str, int] = {}
        self._arrivals = 0

    # --- deposits and withdrawals ---------------------------------------------------------------

    def wallet(self, address: str) -> Wallet:
        """The wallet of an address; a new one when it has none."""
        return self.wallets.setdefault(address, Wallet())

    def deposit(self, address: str, amount_uc: int = 0, assets: Iterable[EnergyAsset] = ()) -> None:
        """Put money [µ¤] and assets into a wallet."""
        wallet = self.wallet(address)
        wallet.free_uc += amount_uc
        for asset in assets:
            self._give(address, [asset])

    # --- what the rules ask and do ----------------------------------------------------------------

    def find(self, name: str) -> Offer | None:
        """A standing offer."""
        return self.offers.get(name)

    def refuse(self, address: str, asset: EnergyAsset) -> Refusal | None:
        """INSUFFICIENT_ASSET, or None when the wallet has the asset, free."""
        held = self.wallet(address).free.get(asset.kind, ())
        starts = {asset.start_slot, *(a.end_slot + 1 for a in held), *(a.start_slot for a in held)}
        enough = all(energy_at(held, s) >= asset.energy_wh for s in starts if s in asset.slots)
        return None if enough else Refusal.INSUFFICIENT_ASSET

    def free_uc(self, address: str) -> int:
        """Money that is not locked [µ¤]."""
        return self.wallet(address).free_uc

    def add(self, offer: Offer) -> None:
        """Keep an offer and lock what it offers."""
        self._take(offer.address, [offer.asset])
        self._lock(offer.address, offer.lock_uc)
        self.offers[offer.name] = offer
        self._by_time.add((offer.until_ms, offer.name))
        self._arrival[offer.name] = self._arrivals
        self._arrivals += 1
        self._side(offer).add(self._place(offer))

    def remove(self, offer: Offer) -> None:
        """Forget an offer and unlock what it offered."""
        self._give(offer.address, [offer.asset])
        self._lock(offer.address, -offer.lock_uc)
        self._by_time.remove((offer.until_ms, offer.name))
        self._side(offer).remove(self._place(offer))
        del self.offers[offer.name], self._arrival[offer.name]

    def book(self, trade: Trade) -> None:
        """Use up both sides' assets, move the money, note what is to be delivered."""
        buyer, seller = self.wallet(trade.buyer), self.wallet(trade.seller)
        self._take(trade.seller, trade.traded)
        self._take(trade.buyer, [asset.turned() for asset in trade.traded])
        buyer.free_uc -= trade.amount_uc
        seller.free_uc += trade.amount_uc
        buyer.bought = merge([*buyer.bought, *trade.traded])
        seller.sold = merge([*seller.sold, *trade.traded])

    # --- looking for offers -----------------------------------------------------------------------

    def best(self, kind: Kind) -> Offer | None:
        """The cheapest offer of production, or the dearest of consumption; then the earliest."""
        side = self._asks if kind is Kind.PRODUCTION else self._bids
        return self.offers[side[0][2]] if side else None

    def expire(self, now_ms: int) -> list[Offer]:
        """Remove all offers whose time has come."""
        gone: list[Offer] = []
        while self._by_time and self._by_time[0][0] <= now_ms:
            offer = expire_offer(self, self._by_time[0][1], now_ms)
            assert offer is not None, "an offer that is kept by its time stands"
            gone.append(offer)
        return gone

    # --- helpers ----------------------------------------------------------------------------------

    def _side(self, offer: Offer) -> SortedList[tuple[int, int, str]]:
        return self._bids if offer.buys else self._asks

    def _place(self, offer: Offer) -> tuple[int, int, str]:
        price = offer.price_uc_per_kwh
        return (-price if offer.buys else price, self._arrival[offer.name], offer.name)

    def _lock(self, address: str, amount_uc: int) -> None:
        wallet = self.wallet(address)
        wallet.free_uc -= amount_uc
        wallet.locked_uc += amount_uc
        assert wallet.free_uc >= 0 <= wallet.locked_uc, f"{address} locks what it does not have"

    def _give(self, address: str, assets: Iterable[EnergyAsset]) -> None:
        free = self.wallet(address).free
        for asset in assets:
            free[asset.kind] = merge([*free.get(asset.kind, ()), asset])

    def _take(self, address: str, assets: Iterable[EnergyAsset]) -> None:
        free = self.wallet(address).free
        for asset in assets:
            free[asset.kind] = subtract(free.get(asset.kind, ()), [asset])
