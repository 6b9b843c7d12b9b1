"""Forward sessions in the audit's replay: schedules, ratings, shares, adjustments."""

from __future__ import annotations

from collections import defaultdict

from market.congestion import BUY, ROOT, Limit, Outcome, Schedule, clear_session
from sim import audit_clearing
from sim.audit_clearing import Bid
from sim.audit_ground import Ground, Handlers, Part
from sim.audit_history import Event, Step
from wire.units import cost_uc


class Sessions(Part):
    """Schedules until they are cleared, and the grid they are cleared for."""

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.schedules: dict[int, dict[str, Bid]] = defaultdict(dict)
        """Orders of a slot's session, by address."""
        self._rounds: dict[int, int] = defaultdict(int)
        self._flows: dict[int, dict[str, int]] = defaultdict(dict)
        self._zones: dict[str, str] = {}
        self._closures: dict[str, list[tuple[int, int]]] = defaultdict(list)

    def handlers(self) -> Handlers:
        """What this part does with the events that it knows."""
        return {
            "schedule-submitted": self._scheduled,
            "session-closed": self._closed,
            "adjustment-opened": self._adjustment,
            "zone-assigned": self._zone_assigned,
            "interconnection-closed": self._link_closed,
        }

    def withdraw(self, slot: int, address: str) -> list[Bid]:
        """Take an address' order out of a session; its money is the caller's to unlock."""
        bid = self.schedules[slot].pop(address, None)
        if bid is not None and not self._rounds[slot]:
            self.book.position(slot, address).scheduled = False
        return [] if bid is None else [bid]

    def _scheduled(self, event: Event, step: Step) -> None:
        slot, address = event["slot"], event["address"]
        self.schedules[slot][address] = self.ground.bid(address, event["side"], event, step.place)
        self.book.position(slot, address).scheduled = True

    def _closed(self, event: Event, _step: Step) -> None:
        slot = event["slot"]
        bids = self.schedules.pop(slot, {})
        schedules = [
            Schedule(bid.side, self._zones.get(address, ROOT), bid.order)
            for address, bid in sorted(bids.items())
        ]
        rules = self.rules.of_slot(slot)
        limits, feeder = self._limits(slot)
        outcome = clear_session(schedules, limits, feeder, rules.tariff, rules.feeder.congestion)
        flows = self._flows[slot]
        for zone, flow_wh in outcome.flows_wh.items():
            flows[zone] = flows.get(zone, 0) + flow_wh
        facts = audit_clearing.session(self._rounds[slot], schedules, outcome, flows)
        self._rounds[slot] += 1
        self.ground.expect(event, facts)
        self.ground.unlock(bids.values())
        self._book(slot, outcome)

    def _book(self, slot: int, outcome: Outcome) -> None:
        """Positions and money of the nodes; the supervisor is the other side of all."""
        supervisor, out_wh, out_uc = self.book.supervisor, 0, 0
        for share in outcome.shares:
            amount_uc = cost_uc(share.energy_wh, share.price_uc_per_kwh)
            held = self.book.position(slot, share.address)
            if share.side == BUY:
                held.bought_wh += share.energy_wh
                self.book.free_uc[share.address] -= amount_uc
                out_wh, out_uc = out_wh - share.energy_wh, out_uc - amount_uc
            else:
                held.sold_wh += share.energy_wh
                held.receivable_uc += amount_uc
                out_wh, out_uc = out_wh + share.energy_wh, out_uc + amount_uc
        if outcome.shares:
            other = self.book.position(slot, supervisor)
            other.bought_wh += max(0, out_wh)
            other.sold_wh += max(0, -out_wh)
            other.receivable_uc += max(0, -out_uc)
            self.book.free_uc[supervisor] -= max(0, out_uc)
            self.book.cover()

    def _adjustment(self, event: Event, _step: Step) -> None:
        self.ground.expect(event, audit_clearing.adjustment(*self._limits(event["slot"])))

    def _limits(self, slot: int) -> tuple[dict[str, Limit], Limit]:
        """What zones and feeder may still carry in a slot."""
        feeder, flows = self.rules.of_slot(slot).feeder, self._flows[slot]
        limits = {}
        for zone in feeder.zones:
            cut = any(start <= slot <= end for start, end in self._closures[zone.name])
            carries_wh = 0 if cut else self._wh(zone.rating_w)
            flow_wh = flows.get(zone.name, 0)
            limits[zone.name] = Limit(carries_wh + flow_wh, carries_wh - flow_wh)
        rating_wh, export_wh = self._wh(feeder.rating_w), sum(flows.values())
        return limits, Limit(rating_wh + export_wh, rating_wh - export_wh)

    def _wh(self, power_w: int) -> int:
        return power_w * self.genesis.slot_length_s // 3600

    def _zone_assigned(self, event: Event, _step: Step) -> None:
        self._zones[event["address"]] = event["zone"]

    def _link_closed(self, event: Event, _step: Step) -> None:
        self._closures[event["zone"]].append((event["startSlot"], event["endSlot"]))
