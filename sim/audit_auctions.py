"""Auctions in the audit's replay: open and sealed bids, the slot's and those that were deployed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ledger.contracts.flexibility import HOME_SIDE
from ledger.contracts.scheduling import SESSION
from market.double_auction import Piece
from sim import audit_clearing
from sim.audit_clearing import Bid
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, Step
from sim.audit_sessions import Sessions
from wire.units import cost_uc


class Auctions(Part):
    """
    Orders until they are cleared, and what is cleared.

    Args:
        ground: common to all parts
        sessions: where a sealed schedule is revealed to
    """

    def __init__(self, ground: Ground, sessions: Sessions) -> None:
        super().__init__(ground)
        self._sessions = sessions
        self._bids: dict[int, list[Bid]] = defaultdict(list)
        self._auctions: dict[str, Event] = {}
        self._auction_bids: dict[str, list[Bid]] = defaultdict(list)
        self._commits: dict[tuple[int, str, str], dict[str, tuple[int, tuple[int, ...]]]] = (
            defaultdict(dict)
        )

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "bid-committed": self._committed,
            "bid-revealed": self._revealed,
            "bid-forfeited": self._forfeited,
            "bid-withdrawn": self._withdrawn,
            "cleared": self._cleared,
            "auction-opened": self._opened,
            "auction-cleared": self._auction_cleared,
        }

    def operate(self, step: Step) -> None:
        """An open bid: no event tells its energy and price."""
        operation = step.operation or {}
        if operation.get("op") == "bid-offer":
            bid = self.ground.bid(step.sender, operation["side"], operation, step.place)
            self._bids[operation["slot"]].append(bid)
        elif operation.get("op") == "auction-bid":
            opened = self._auctions[operation["auction"]]
            side = operation.get("side") or HOME_SIDE[opened["template"]]
            bid = self.ground.bid(step.sender, side, operation, step.place)
            self._auction_bids[operation["auction"]].append(bid)

    def _committed(self, event: Event, step: Step) -> None:
        key = (event["slot"], event["auction"], event["address"])
        deposit_uc = self.rules.of_slot(event["slot"]).auctions.bid_deposit_uc
        self._commits[key][event["commitment"]] = (deposit_uc, step.place)
        self.book.lock(event["address"], deposit_uc)

    def _revealed(self, event: Event, _step: Step) -> None:
        slot, auction, address = event["slot"], event["auction"], event["address"]
        found = self._commits[slot, auction, address].pop(event["commitment"], None)
        if found is None:
            self.ground.energy.append(f"{self.ground.at(event)}: revealed, and never committed")
            return
        deposit_uc, place = found
        self.book.lock(address, -deposit_uc)
        if auction == SESSION:
            scheduled = self._sessions.schedules[slot][address]
            order = {"energyWh": scheduled.energy_wh, "priceUcPerKwh": scheduled.price_uc_per_kwh}
            self.ground.expect(event, {"side": scheduled.side, **order})
            self._sessions.schedules[slot][address] = Bid(
                address, scheduled.side, scheduled.energy_wh, scheduled.price_uc_per_kwh,
                scheduled.lock_uc, place,
            )  # fmt: skip
            return
        bid = self.ground.bid(address, event["side"], event, place)
        (self._auction_bids[auction] if auction else self._bids[slot]).append(bid)

    def _forfeited(self, event: Event, _step: Step) -> None:
        lost = self._commits.pop((event["slot"], event["auction"], event["address"]), {})
        amount_uc = sum(deposit_uc for deposit_uc, _ in lost.values())
        self.ground.expect(event, {"bids": len(lost), "amountUc": amount_uc})
        self.book.lock(event["address"], -amount_uc)
        self.book.pay(event["address"], self.book.supervisor, amount_uc)

    def _withdrawn(self, event: Event, _step: Step) -> None:
        """A banned address' orders are taken out, and all that they locked is free."""
        slot, auction, address = event["slot"], event["auction"], event["address"]
        kept = self._auction_bids[auction] if auction else self._bids[slot]
        bids = [bid for bid in kept if bid.address == address]
        kept[:] = [bid for bid in kept if bid.address != address]
        if auction == SESSION:
            bids += self._sessions.withdraw(slot, address)
        commits = self._commits.pop((slot, auction, address), {})
        self.ground.expect(event, {"bids": len(bids) + len(commits)})
        self.ground.unlock(bids)
        self.book.lock(address, -sum(deposit_uc for deposit_uc, _ in commits.values()))

    def _cleared(self, event: Event, _step: Step) -> None:
        bids = self._bids.pop(event["slot"], [])
        facts, traded = audit_clearing.slot_auction(bids)
        self.ground.expect(event, facts)
        self.ground.unlock(bids)
        self._trade(event["slot"], traded)

    def _opened(self, event: Event, _step: Step) -> None:
        self._auctions[event["auction"]] = event
        self.book.lock(self.book.supervisor, _auction_lock_uc(event))

    def _auction_cleared(self, event: Event, _step: Step) -> None:
        name = event["auction"]
        opened = self._auctions.pop(name, None)
        if opened is None:
            self.ground.energy.append(f"{self.ground.at(event)}: cleared, and never opened")
            return
        bids = self._auction_bids.pop(name, [])
        supervisor = self.book.supervisor
        facts, traded = audit_clearing.deployed_auction(supervisor, opened, bids)
        self.ground.expect(event, facts)
        self.book.lock(supervisor, -_auction_lock_uc(opened))
        self.ground.unlock(bids)
        self._trade(event["slot"], traded)

    def _trade(self, slot: int, traded: Iterable[Piece]) -> None:
        for one in traded:
            amount_uc = cost_uc(one.energy_wh, one.price_uc_per_kwh)
            self.book.trade(slot, one.buyer, one.seller, one.energy_wh, amount_uc)


def _auction_lock_uc(opened: Event) -> int:
    buys = opened["template"] == "reverse"
    return cost_uc(opened["energyWh"], opened["priceUcPerKwh"]) if buys else 0
