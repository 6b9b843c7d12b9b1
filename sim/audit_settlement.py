"""Delivery in the audit's replay: receipts, settlements at the slot's tariff, late receipts."""

from __future__ import annotations

from ledger.contracts.grants import CONNECTION_MAX_WH
from market.scheduling import deviation_tariff
from market.settlement import Tariff, assumed_net_wh, settle, true_up
from sim.audit_book import Position
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, Step


class Delivery(Part):
    """What flowed, and what it cost."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self._grants: dict[str, Event] = {}

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "address-registered": self._registered,
            "receipt": self._receipt,
            "settled": self._settled,
            "trued-up": self._trued_up,
        }

    def _registered(self, event: Event, _step: Step) -> None:
        self._grants[event["address"]] = event

    def _receipt(self, event: Event, step: Step) -> None:
        signed = (step.operation or {}).get("receipt", {})
        net_wh = signed.get("net_wh", event["netWh"])
        self.book.position(event["slot"], event["address"]).net_wh = net_wh

    def _settled(self, event: Event, _step: Step) -> None:
        slot, supervisor, owed_uc = event["slot"], self.book.supervisor, 0
        held_by = self.book.positions.setdefault(slot, {})
        for row in event["rows"]:
            address = row["address"]
            held = self.book.position(slot, address)
            if held.net_wh is None:
                held.assumed_wh = self._assume(held, address)
            net_wh = held.assumed_wh if held.net_wh is None else held.net_wh
            assert net_wh is not None, "assumed just now"
            facts, amount_uc = self._settlement(slot, held, net_wh)
            self.ground.expect(event, facts, row, address)
            self.book.free_uc[address] -= amount_uc
            owed_uc += amount_uc
            self.book.release(slot, address)
        told = {row["address"] for row in event["rows"]} | {supervisor}
        self.ground.energy += [
            f"{self.ground.at(event)}: {address} has a position and is not settled"
            for address, held in sorted(held_by.items())
            if address not in told and (held.bought_wh or held.sold_wh)
        ]
        self.book.release(slot, supervisor)
        self.book.free_uc[supervisor] += owed_uc
        self.book.cover()

    def _trued_up(self, event: Event, _step: Step) -> None:
        slot, (row,) = event["slot"], event["rows"]
        address = row["address"]
        held = self.book.position(slot, address)
        if held.net_wh is None:
            self.ground.energy.append(
                f"{self.ground.at(event)}: trued up without a receipt of {address}"
            )
            return
        facts, _ = self._settlement(slot, held, held.net_wh)
        self.ground.expect(event, facts, row, address)
        owed_uc = true_up(
            held.net_wh, held.bought_wh, held.sold_wh, self._tariff(slot, held),
            held.assumed_wh or 0,
        )  # fmt: skip
        before = {} if held.assumed_wh is None else {"assumedNetWh": held.assumed_wh}
        self.ground.expect(event, {"amountUc": -owed_uc, **before})
        self.book.pay(address, self.book.supervisor, owed_uc)
        self.book.cover()

    def _assume(self, held: Position, address: str) -> int:
        grant = self._grants[address]
        most_wh = assumed_net_wh(grant["maxBuyWh"], grant["maxSellWh"], held.bought_wh)
        return min(most_wh, CONNECTION_MAX_WH)

    def _settlement(self, slot: int, held: Position, net_wh: int) -> tuple[Event, int]:
        """A row of a settlement, and what the home pays by it."""
        result = settle(net_wh, held.bought_wh, held.sold_wh, self._tariff(slot, held))
        facts = {
            "netWh": net_wh, "boughtWh": held.bought_wh, "soldWh": held.sold_wh,
            "residualWh": result.residual_wh, "amountUc": -result.amount_uc,
        }  # fmt: skip
        return facts, result.amount_uc

    def _tariff(self, slot: int, held: Position) -> Tariff:
        tariff = self.rules.tariff(slot)
        return deviation_tariff(tariff) if held.scheduled else tariff
