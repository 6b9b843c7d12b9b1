"""
The wallet: what finalised events say about our address. Nothing else ever changes it.

Every event is folded in so that folding it twice changes nothing, and how far the ledger was read
is kept with it: after a crash the wallet resumes where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.ports import Store
from wire.canonical import decode, encode

KEEP_SLOTS = 4 * 96
FORWARD = "forward/"
"""Auctions in which homes buy, by name, remembered from their opening."""


@dataclass(frozen=True, slots=True)
class Position:
    """Contracted energy of one slot [Wh]."""

    bought_wh: int = 0
    sold_wh: int = 0

    @property
    def net_wh(self) -> int:
        """Net import that fulfils it exactly."""
        return self.bought_wh - self.sold_wh


class Wallet:
    """
    Balance, positions and history of one address.

    Args:
        store: kept between starts
        address: ours
    """

    def __init__(self, store: Store, address: str) -> None:
        self._store = store
        self.address = address

    @classmethod
    def kept(cls, store: Store) -> Wallet:
        """The wallet in a store, for reading: that of the address registered last."""
        raw = store.get("registered")
        return cls(store, "" if raw is None else decode(raw).get("address", ""))

    async def take_event(self, height: int, event: dict[str, Any]) -> None:
        """Handler for finalised events (`ledger.client`)."""
        match event["event"]:
            case "balance" if event["address"] == self.address:
                self._put("balance", {**event, "height": height})
            case "address-registered" if event["address"] == self.address:
                self._put("registered", {"address": self.address, "height": height})
            case "cleared":
                self._take_clearing(event)
            case "auction-opened" if event["template"] == "forward":
                self._put(_forward_key(event["auction"]), {"slot": event["slot"]})
            case "auction-cleared":
                self._take_auction(event)
            case "settled" | "trued-up":
                self._take_settlement(event)

    def resume(self) -> dict[str, int]:
        """How far the ledger was read, per contract."""
        raw = self._store.get("read")
        heights: dict[str, int] = {} if raw is None else decode(raw)
        return heights

    def keep_heights(self, heights: dict[str, int]) -> None:
        """Remember how far the ledger was read."""
        if heights != self.resume():
            self._put("read", heights)

    def validators(self) -> dict[str, Any]:
        """Who speaks for the ledger (`ledger.client.Validators.to_json`); empty: the founders."""
        return self._get("validators")

    def keep_validators(self, validators: dict[str, Any]) -> None:
        """Remember who speaks for the ledger."""
        if validators != self.validators():
            self._put("validators", validators)

    @property
    def registered(self) -> bool:
        """Our address is known on the ledger."""
        return self._get("registered").get("address") == self.address

    @property
    def balance(self) -> dict[str, int]:
        """`{balanceUc, lockedUc}` [µ¤]."""
        found = self._get("balance")
        return {name: int(found.get(name, 0)) for name in ("balanceUc", "lockedUc")}

    def position(self, slot: int) -> Position | None:
        """What we bought and sold for a slot; None before it was cleared, or without awards."""
        found = self._get(f"position/{slot:012d}")
        if not found:
            return None
        auctions: list[int] = list(found.get("auctions", {}).values())
        return Position(
            bought_wh=found.get("boughtWh", 0) - sum(wh for wh in auctions if wh < 0),
            sold_wh=found.get("soldWh", 0) + sum(wh for wh in auctions if wh > 0),
        )

    def price(self, slot: int) -> int | None:
        """Clearing price of a slot [µ¤/kWh]; None when nothing was traded."""
        found = self._get(f"price/{slot:012d}")
        return found.get("priceUcPerKwh")

    def settlements(self) -> list[dict[str, Any]]:
        """Our settled slots, oldest first; `assumed` is true where our receipt was missing."""
        return [decode(raw) for _, raw in self._store.scan("settled/")]

    def forget_before(self, slot: int) -> None:
        """Drop positions, prices and auctions of slots long past."""
        oldest = slot - KEEP_SLOTS
        with self._store.atomic():
            for prefix in ("position/", "price/"):
                for key, _ in list(self._store.scan(prefix)):
                    if int(key.removeprefix(prefix)) < oldest:
                        self._store.delete(key)
            for key, raw in list(self._store.scan(FORWARD)):
                if decode(raw)["slot"] < oldest:
                    self._store.delete(key)

    def _take_clearing(self, event: dict[str, Any]) -> None:
        slot = event["slot"]
        key = f"position/{slot:012d}"
        mine = [a for a in event["awards"] if a["address"] == self.address]
        with self._store.atomic():
            if event["tradedWh"]:
                price = {"priceUcPerKwh": event["priceUcPerKwh"], "tradedWh": event["tradedWh"]}
                self._store.put(f"price/{slot:012d}", encode(price))
            if mine:
                found = self._get(key)
                found["boughtWh"] = sum(a["energyWh"] for a in mine if a["side"] == "buy")
                found["soldWh"] = sum(a["energyWh"] for a in mine if a["side"] == "sell")
                self._store.put(key, encode(found))

    def _take_auction(self, event: dict[str, Any]) -> None:
        key = f"position/{event['slot']:012d}"
        mine = [a for a in event["awards"] if a["address"] == self.address]
        if not mine:
            return
        found = self._get(key)
        # the clearing does not repeat who sells: in a forward auction the aggregator does
        sign = -1 if self._get(_forward_key(event["auction"])) else 1
        energy_wh = sign * sum(a["energyWh"] for a in mine)
        found["auctions"] = {**found.get("auctions", {}), event["auction"]: energy_wh}
        self._put(key, found)

    def _take_settlement(self, event: dict[str, Any]) -> None:
        for row in event["rows"]:
            if row["address"] == self.address:
                self._put(f"settled/{event['slot']:012d}", {**row, "slot": event["slot"]})

    def _get(self, key: str) -> dict[str, Any]:
        raw = self._store.get(key)
        found: dict[str, Any] = {} if raw is None else decode(raw)
        return found

    def _put(self, key: str, value: dict[str, Any]) -> None:
        with self._store.atomic():
            self._store.put(key, encode(value))


def _forward_key(auction: str) -> str:
    return FORWARD + auction
