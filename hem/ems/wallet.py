"""
The wallet: what finalised events say about our addresses. Nothing else ever changes it.

Every event is folded in so that folding it twice changes nothing, and how far the ledger was read
is kept with it: after a crash the wallet resumes where it stopped.

What we contracted for a slot is kept by its source, one of

    market                the slot's double auction
    auction/<name>        one that the aggregator deployed
    offer/<name>          an accepted offer of the order book
    escrow/<offer>        an accepted escrowed trade; it goes when the trade fails
    session/<round>       the forward session: what was scheduled, and adjustments of it

and the position is their sum. A slot belongs to one of our addresses (`hem.ems.addresses`), so
positions, prices and settlements are kept by slot; money is kept by address.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

from hem.ems.addresses import kept_grants
from runtime.ports import Store
from wire.canonical import decode, encode

KEEP_SLOTS = 4 * 96
POSITION = "position/"
BALANCE = "balance/"
OLD_BALANCE = "balance"
"""Where homes of earlier releases kept their only balance."""
REGISTERED = "registered"
IN_USE = "in-use"
ESCROW = "escrow/"
"""Escrowed trades of ours, by offer."""
MARKET = "market"
"""The source of what the slot's double auction gave us."""


@dataclass(frozen=True, slots=True)
class Position:
    """Contracted energy of one slot, all markets together [Wh]."""

    bought_wh: int = 0
    sold_wh: int = 0

    @property
    def net_wh(self) -> int:
        """Net import that fulfils it exactly."""
        return self.bought_wh - self.sold_wh


class Wallet:
    """
    Balance, positions and history of our addresses.

    Args:
        store: kept between starts
        address: the one in use (`turn_to`)
        ours: all of them, as it is now; by default only the one in use
    """

    def __init__(self, store: Store, address: str, ours: Container[str] | None = None) -> None:
        self._store = store
        self.address = address
        self._ours = ours

    @classmethod
    def kept(cls, store: Store) -> Wallet:
        """The wallet in a store, for reading: the address in use, or registered last."""
        found = decode(store.get(IN_USE) or store.get(REGISTERED) or b"{}")
        ours = [grant.address for grant in kept_grants(store)]
        return cls(store, found.get("address", ""), ours or None)

    def turn_to(self, address: str) -> None:
        """Another of our addresses is in use from now on."""
        if address != self.address:
            self.address = address
            self._put(IN_USE, {"address": address})

    def is_ours(self, address: str) -> bool:
        """Is it one of our addresses?"""
        return address == self.address or (self._ours is not None and address in self._ours)

    async def take_event(self, height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events (`ledger.client`)."""
        match event["event"]:
            case "balance" if self.is_ours(event["address"]):
                self._put(BALANCE + event["address"], {**event, "height": height})
            case "address-registered" if self.is_ours(event["address"]):
                self._take_registration({"address": event["address"], "height": height})
            case "cleared":
                self._take_clearing(event)
            case "auction-cleared":
                self._take_awards(f"auction/{event['auction']}", event["slot"], event["awards"])
            case "offer-accepted" if self.is_ours(event["seller"]) or self.is_ours(event["buyer"]):
                self._take_offer(event)
            case "escrow-accepted" if self.is_ours(event["seller"]) or self.is_ours(event["buyer"]):
                self._take_escrow(event, event["energyWh"])
            case "escrow-revealed":
                self._take_escrow(self._get(_escrow_key(event["offer"])), event["energyWh"])
            case "escrow-ended" if event["state"] != "delivered":
                self._take_escrow(self._get(_escrow_key(event["offer"])), 0)
            case "session-closed":
                self._take_awards(f"session/{event['round']}", event["slot"], event["shares"])
            case "settled" | "trued-up":
                self._take_settlement(event)

    def resume(self) -> dict[str, int]:
        """How far the ledger was read, per contract."""
        raw = self._store.get("read")
        heights: dict[str, int] = {} if raw is None else decode(raw)
        return heights

    def validators(self) -> dict[str, Any]:
        """Who speaks for the ledger (`ledger.client.Validators.to_json`); empty: the founders."""
        return self._get("validators")

    def keep_place(self, heights: dict[str, int], validators: dict[str, Any]) -> None:
        """Remember how far the ledger was read, and who spoke for it there: both or neither."""
        with self._store.atomic():
            for key, new, kept in (
                ("read", heights, self.resume()),
                ("validators", validators, self.validators()),
            ):
                if new != kept:
                    self._store.put(key, encode(new))

    @property
    def registered(self) -> bool:
        """The address in use is known on the ledger."""
        return self.is_registered(self.address)

    def is_registered(self, address: str) -> bool:
        """An address of ours is known on the ledger."""
        return bool(
            self._get(f"{REGISTERED}/{address}") or self._get(REGISTERED).get("address") == address
        )

    @property
    def balance(self) -> dict[str, int]:
        """`{balanceUc, lockedUc}` [µ¤] of all our addresses together."""
        found = [self.balance_of(address) for address in self._held()]
        return {name: sum(one[name] for one in found) for name in ("balanceUc", "lockedUc")}

    def balance_of(self, address: str) -> dict[str, int]:
        """`{balanceUc, lockedUc}` [µ¤]; nothing while the ledger has not told of an address."""
        found = self._balance_row(address)
        return {name: int(found.get(name, 0)) for name in ("balanceUc", "lockedUc")}

    @property
    def balance_height(self) -> int:
        """Of the block that changed the money of the address in use last."""
        return self.height_of(self.address)

    def height_of(self, address: str) -> int:
        """Of the block that changed the money of an address last; 0: none that we know of."""
        return int(self._balance_row(address).get("height", 0))

    def position(self, slot: int) -> Position | None:
        """What we bought and sold for a slot; None while we have nothing there."""
        found = self.contracted(slot)
        if not found:
            return None
        return Position(
            bought_wh=sum(bought for bought, _ in found.values()),
            sold_wh=sum(sold for _, sold in found.values()),
        )

    def sold_wh(self, slot: int, source: str) -> int | None:
        """What we sold for a slot in one market [Wh]; None when it gave us nothing."""
        found = self.contracted(slot).get(source)
        return None if found is None else found[1]

    def net_wh(self) -> dict[int, int]:
        """Bought less sold of every slot that is kept [Wh]."""
        found = {}
        for key, raw in self._store.scan(POSITION):
            amounts = decode(raw).values()
            found[int(key.removeprefix(POSITION))] = sum(b - s for b, s in amounts)
        return found

    def contracted(self, slot: int) -> dict[str, tuple[int, int]]:
        """(bought, sold) of a slot by source [Wh]."""
        found = self._get(_position_key(slot))
        return {name: (int(bought), int(sold)) for name, (bought, sold) in found.items()}

    def price(self, slot: int) -> int | None:
        """Clearing price of a slot [µ¤/kWh]; None when nothing was traded."""
        found = self._get(f"price/{slot:012d}")
        return found.get("priceUcPerKwh")

    def settlements(self, last: int | None = None) -> list[dict[str, Any]]:
        """
        Our settled slots, oldest first; `assumed` is true where our receipt was missing.

        Args:
            last: only so many, the newest
        """
        rows = list(self._store.scan("settled/"))
        return [decode(raw) for _, raw in (rows if last is None else rows[-last:])]

    def forget_before(self, slot: int) -> None:
        """Drop positions, prices and escrowed trades of slots long past."""
        oldest = slot - KEEP_SLOTS
        with self._store.atomic():
            for prefix in (POSITION, "price/"):
                for key, _ in list(self._store.scan(prefix)):
                    if int(key.removeprefix(prefix)) < oldest:
                        self._store.delete(key)
            for key, raw in list(self._store.scan(ESCROW)):
                if decode(raw)["slot"] < oldest:
                    self._store.delete(key)

    def forget(self, address: str) -> None:
        """Drop an address of ours that is over."""
        with self._store.atomic():
            self._store.delete(BALANCE + address)
            self._store.delete(f"{REGISTERED}/{address}")

    def _held(self) -> set[str]:
        """Our addresses of whose money the ledger has told."""
        told = {key.removeprefix(BALANCE) for key, _ in self._store.scan(BALANCE)}
        return {address for address in told if self.is_ours(address)} | {self.address}

    def _balance_row(self, address: str) -> dict[str, Any]:
        found = self._get(BALANCE + address)
        if not found and self._get(OLD_BALANCE).get("address") == address:
            return self._get(OLD_BALANCE)
        return found

    def _take_registration(self, row: dict[str, Any]) -> None:
        with self._store.atomic():
            self._store.put(REGISTERED, encode(row))
            self._store.put(f"{REGISTERED}/{row['address']}", encode(row))

    def _take_clearing(self, event: dict[str, Any]) -> None:
        slot = event["slot"]
        if event["tradedWh"]:
            price = {"priceUcPerKwh": event["priceUcPerKwh"], "tradedWh": event["tradedWh"]}
            self._put(f"price/{slot:012d}", price)
        self._take_awards(MARKET, slot, event["awards"])

    def _take_awards(self, source: str, slot: int, awards: list[dict[str, Any]]) -> None:
        """Note our share of a clearing: rows of address, side and energy."""
        mine = [award for award in awards if self.is_ours(award["address"])]
        if mine:
            bought_wh, sold_wh = (
                sum(award["energyWh"] for award in mine if award["side"] == side)
                for side in ("buy", "sell")
            )
            self._contract([slot], source, bought_wh, sold_wh)

    def _take_offer(self, event: dict[str, Any]) -> None:
        for part in event["traded"]:
            slots = range(part["startSlot"], part["endSlot"] + 1)
            self._contract(slots, f"offer/{event['offer']}", *self._sides(event, part["energyWh"]))

    def _take_escrow(self, trade: dict[str, Any], energy_wh: int) -> None:
        """
        Note an escrowed trade of ours (an empty one is another's).

        Where the amounts were hidden its energy is an upper bound until it is revealed. What failed
        is delivered no longer.
        """
        if trade:
            facts = {name: trade[name] for name in ("offer", "slot", "seller", "buyer")}
            self._put(_escrow_key(trade["offer"]), facts)
            source = f"escrow/{trade['offer']}"
            self._contract([trade["slot"]], source, *self._sides(trade, energy_wh))

    def _sides(self, trade: dict[str, Any], energy_wh: int) -> tuple[int, int]:
        """(bought, sold) of a trade of ours [Wh]."""
        return (energy_wh, 0) if self.is_ours(trade["buyer"]) else (0, energy_wh)

    def _contract(self, slots: Iterable[int], source: str, bought_wh: int, sold_wh: int) -> None:
        """Set what one source gives us in some slots, all of them or none."""
        with self._store.atomic():
            for slot in slots:
                sources = {**self.contracted(slot), source: (bought_wh, sold_wh)}
                rows = {name: list(amounts) for name, amounts in sources.items() if any(amounts)}
                if rows:
                    self._store.put(_position_key(slot), encode(rows))
                else:
                    self._store.delete(_position_key(slot))

    def _take_settlement(self, event: dict[str, Any]) -> None:
        for row in event["rows"]:
            if self.is_ours(row["address"]):
                self._put(f"settled/{event['slot']:012d}", {**row, "slot": event["slot"]})

    def _get(self, key: str) -> dict[str, Any]:
        raw = self._store.get(key)
        found: dict[str, Any] = {} if raw is None else decode(raw)
        return found

    def _put(self, key: str, value: dict[str, Any]) -> None:
        with self._store.atomic():
            self._store.put(key, encode(value))


def _position_key(slot: int) -> str:
    return f"{POSITION}{slot:012d}"


def _escrow_key(offer: str) -> str:
    return ESCROW + offer
