"""The order book in the audit's replay: offers, what is locked behind them, who accepted them."""

from __future__ import annotations

from ledger.contracts.context import SLOTS_AHEAD_MAX
from sim import audit_clearing
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, Step
from wire.units import cost_uc


class Offers(Part):
    """Offers that stand."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._offers: dict[str, Event] = {}

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "offer-posted": self._posted,
            "offer-rescinded": self._gone,
            "offer-expired": self._gone,
            "offer-accepted": self._accepted,
        }

    def _posted(self, event: Event, _step: Step) -> None:
        self._offers[event["offer"]] = event
        self.book.lock(event["address"], _offer_lock_uc(event))

    def _gone(self, event: Event, _step: Step) -> None:
        posted = self._offers.pop(event["offer"])
        self.book.lock(posted["address"], -_offer_lock_uc(posted))

    def _accepted(self, event: Event, step: Step) -> None:
        posted = self._offers[event["offer"]]
        self._gone(event, step)
        given = step.operation["assets"] if step.operation else []
        facts, traded = audit_clearing.accepted_offer(posted, given, self._first_open_slot())
        parties = posted["address"], event["acceptedBy"]
        buys = posted["kind"] == "consumption"
        buyer, seller = parties if buys else parties[::-1]
        self.ground.expect(
            event, {"address": parties[0], "buyer": buyer, "seller": seller, **facts}
        )
        for asset in traded:
            amount_uc = cost_uc(asset.energy_wh, posted["priceUcPerKwh"])
            for slot in asset.slots:
                self.book.trade(slot, buyer, seller, asset.energy_wh, amount_uc)

    def _first_open_slot(self) -> int:
        """What follows the last slot whose gate has closed."""
        now = self.genesis.grid.slot_at(self.ground.time_ms)
        ahead = range(now + SLOTS_AHEAD_MAX, now - 1, -1)
        closed = (slot for slot in ahead if self.rules.gate_ms(slot) <= self.ground.time_ms)
        return next(closed, now - 1) + 1


def _offer_lock_uc(posted: Event) -> int:
    if posted["kind"] != "consumption":
        return 0
    slots = int(posted["endSlot"] - posted["startSlot"] + 1)
    return cost_uc(posted["energyWh"], posted["priceUcPerKwh"]) * slots
