"""
The notice board: offers of neighbours that stand, as finalised events tell.

It is kept in memory only. After a restart the offers posted before it are not known; they lapse
within some slots, and what we contracted is in the wallet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hem.controller.forward import StandingOffer

MAX_OFFERS = 10_000
"""More are not looked at: nobody may fill our memory."""


class Board:
    """Standing offers of the order book and of escrowed trade."""

    def __init__(self) -> None:
        self._offers: dict[str, StandingOffer] = {}

    def take_event(self, event: dict[str, Any]) -> None:
        """Fold an event in."""
        match event["event"]:
            case "offer-posted" if event["kind"] == "production":
                self._add(
                    StandingOffer(
                        market="order-book",
                        name=event["offer"],
                        seller=event["address"],
                        energy_wh=event["energyWh"],
                        start_slot=event["startSlot"],
                        end_slot=event["endSlot"],
                        price_uc_per_kwh=event["priceUcPerKwh"],
                        until_ms=event["untilMs"],
                    )
                )
            case "escrow-offered" if not event["commitment"]:
                self._add(
                    StandingOffer(
                        market="escrow",
                        name=event["offer"],
                        seller=event["seller"],
                        energy_wh=event["energyWh"],
                        start_slot=event["slot"],
                        end_slot=event["slot"],
                        price_uc_per_kwh=event["priceUcPerKwh"],
                        until_ms=event["acceptBeforeMs"],
                    )
                )
            case (
                "offer-accepted"
                | "offer-rescinded"
                | "offer-expired"
                | "escrow-accepted"
                | "escrow-ended"
            ):
                self._offers.pop(event["offer"], None)

    def offers(self, market: str, now_ms: int, ours: Callable[[str], bool]) -> list[StandingOffer]:
        """
        Offers of others in a market that stand.

        Args:
            ours: is an address one of ours?
        """
        return [
            offer
            for offer in self._offers.values()
            if offer.market == market and offer.until_ms > now_ms and not ours(offer.seller)
        ]

    def forget_before(self, now_ms: int) -> None:
        """Drop what has lapsed."""
        self._offers = {
            name: offer for name, offer in self._offers.items() if offer.until_ms > now_ms
        }

    def _add(self, offer: StandingOffer) -> None:
        if len(self._offers) < MAX_OFFERS:
            self._offers[offer.name] = offer
