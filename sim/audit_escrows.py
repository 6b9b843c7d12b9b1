"""Escrowed trades in the audit's replay: fees, guarantees, what was blocked and how it ended."""

from __future__ import annotations

from market import escrow
from market.escrow import Payout, Terms
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, Step
from wire.units import cost_uc


class Escrows(Part):
    """Trades that are not over."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._trades: dict[str, Event] = {}

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "escrow-offered": self._offered,
            "escrow-accepted": self._accepted,
            "escrow-revealed": self._revealed,
            "escrow-ended": self._ended,
        }

    def _offered(self, event: Event, _step: Step) -> None:
        rules = self.rules.of_slot(event["slot"]).escrow
        self.ground.expect(event, {"penaltyPermille": rules.penalty_permille})
        true = {"trueWh": event["energyWh"], "truePrice": event["priceUcPerKwh"]}
        self._trades[event["offer"]] = {
            **event, **true, "penaltyPermille": rules.penalty_permille,
        }  # fmt: skip
        self.book.lock(event["seller"], event["guaranteeUc"])
        self.book.pay(event["seller"], self.book.supervisor, rules.fee_uc)

    def _accepted(self, event: Event, _step: Step) -> None:
        trade = self._trades[event["offer"]]
        price_uc = _terms(trade).price_uc
        self.ground.expect(
            event, {"blockedUc": price_uc, "slot": trade["slot"], "seller": trade["seller"]}
        )
        self._trades[event["offer"]] = {**trade, "buyer": event["buyer"]}
        self.book.lock(event["buyer"], price_uc)
        fee_uc = self.rules.of_slot(trade["slot"]).escrow.fee_uc
        self.book.pay(event["buyer"], self.book.supervisor, fee_uc)

    def _revealed(self, event: Event, _step: Step) -> None:
        trade = self._trades[event["offer"]]
        true = {"trueWh": event["energyWh"], "truePrice": event["priceUcPerKwh"]}
        self._trades[event["offer"]] = {**trade, **true}

    def _ended(self, event: Event, step: Step) -> None:
        trade = self._trades.pop(event["offer"])
        terms, seller, buyer = _terms(trade), trade["seller"], trade.get("buyer", "")
        slot, state = trade["slot"], event["state"]
        banned = step.operation is not None and step.operation["op"] == "revoke"
        at_ms = terms.accept_before_ms if banned else self.ground.time_ms
        payout = self._payout(trade, state, at_ms)
        self.ground.expect(
            event,
            {
                "slot": slot, "seller": seller, "buyer": buyer, "buyerUc": payout.buyer_uc,
                "sellerUc": payout.seller_uc, "fundUc": payout.fund_uc,
            },
        )  # fmt: skip
        if (state in ("delivered", "failed")) != bool(buyer):
            self.ground.energy.append(f"{self.ground.at(event)}: {state}, buyer {buyer or 'none'}")
        self.book.lock(seller, -terms.guarantee_uc)
        self.book.free_uc[seller] += payout.seller_uc - terms.guarantee_uc
        if buyer:
            self.book.lock(buyer, -terms.price_uc)
            self.book.free_uc[buyer] += payout.buyer_uc - terms.price_uc
        self.book.free_uc[self.book.supervisor] += payout.fund_uc
        if state == "delivered":
            self._deliver(event, trade)

    def _deliver(self, event: Event, trade: Event) -> None:
        energy_wh, _ = _true(trade)
        sale = self.book.position(trade["slot"], trade["seller"])
        if sale.net_wh is None or not escrow.is_delivered(
            sale.net_wh, sale.bought_wh, sale.sold_wh, energy_wh
        ):
            self.ground.energy.append(
                f"{self.ground.at(event)}: no meter saw {energy_wh} Wh delivered"
            )
        sale.sold_wh += energy_wh
        self.book.position(trade["slot"], trade["buyer"]).bought_wh += energy_wh

    def _payout(self, trade: Event, state: str, at_ms: int) -> Payout:
        """Who gets what of the blocked money when a trade ends in a state."""
        terms = _terms(trade)
        match state:
            case "delivered":
                return escrow.deliver(terms, cost_uc(*_true(trade)))
            case "failed":
                return escrow.fail(terms)
        return escrow.withdraw(terms, at_ms)


def _true(trade: Event) -> tuple[int, int]:
    """Energy [Wh] and price of a trade: as revealed, else as offered."""
    return trade["trueWh"], trade["truePrice"]


def _terms(trade: Event) -> Terms:
    return Terms(
        energy_wh=trade["energyWh"],
        price_uc_per_kwh=trade["priceUcPerKwh"],
        guarantee_uc=trade["guaranteeUc"],
        penalty_permille=trade["penaltyPermille"],
        accept_before_ms=trade["acceptBeforeMs"],
        deliver_before_ms=trade["deliverBeforeMs"],
    )
