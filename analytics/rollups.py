"""
The fold: finalised events, block statements and home states become the rows a page shows.

Pure: time arrives as an argument. Every row carries the revision at which it last changed, so that
"what is new since revision n" costs only what is new.

Power over a slot is the time-weighted mean of the homes' states: between two states of a home power
is taken to change linearly, and the energy of that stretch is put into the slots it covers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from analytics.facts import MarketFacts
from analytics.money import MoneyBook
from analytics.trades import FLEXIBILITY, Terms, Trade, Volume, by_kind, trades_of, volumes_of
from ledger.rulebook import RuleBook

K = TypeVar("K", bound=Hashable)
Row = dict[str, Any]

MAX_STATE_GAP_SLOTS = 2
"""Longest stretch between two states that is interpolated."""
KEEP_DAYS = 2
LATEST_TRADES = 400
LATEST_BLOCKS = 1500
"""A live picture holds so many: a fast ledger must not fill the memory."""


class Table(Generic[K]):
    """Rows by key, in the order in which they last changed."""

    def __init__(self) -> None:
        self._rows: dict[K, tuple[int, Row]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: K, row: Row, revision: int) -> None:
        """Set a row; it becomes the one that changed last."""
        self._rows.pop(key, None)
        self._rows[key] = (revision, row)

    def get(self, key: K) -> Row | None:
        """The row of `key`, or None."""
        found = self._rows.get(key)
        return found[1] if found else None

    def values(self) -> Iterator[Row]:
        """All rows, the one that changed last at the end."""
        return (row for _, row in self._rows.values())

    def last(self) -> Row | None:
        """The row that changed last, or None."""
        newest = next(reversed(self._rows.values()), None)
        return newest[1] if newest else None

    def since(self, revision: int) -> list[Row]:
        """Rows that changed after `revision`, oldest change first."""
        fresh: list[Row] = []
        for stamp, row in reversed(self._rows.values()):
            if stamp <= revision:
                break
            fresh.append(row)
        return fresh[::-1]

    def drop_oldest(self, keep: int) -> None:
        """Forget all but the `keep` rows that changed last."""
        while len(self._rows) > keep:
            del self._rows[next(iter(self._rows))]

    def drop(self, keys: list[K]) -> None:
        """Forget these rows."""
        for key in keys:
            self._rows.pop(key, None)


@dataclass(frozen=True, slots=True)
class HomeState:
    """What a home said of itself. Power [W]: grid + import, battery + discharge."""

    home: str
    time_ms: int
    online: bool
    grid_w: int = 0
    pv_w: int = 0
    battery_w: int = 0
    load_w: int = 0
    soc_permille: int = -1
    """State of charge, −1 without a battery."""
    lost: tuple[str, ...] = ()
    """Devices that do not answer."""
    measured: bool = False
    """True when the power fields were in the message."""


@dataclass(slots=True)
class _Power:
    """Energy collected for one slot [W·ms]."""

    load: int = 0
    pv: int = 0
    battery: int = 0
    grid: int = 0


@dataclass(slots=True)
class Rollup:
    """All that is known of a market, ready to be shown. `keep_days` = 0 forgets nothing."""

    facts: MarketFacts
    keep_days: int = KEEP_DAYS
    revision: int = 0
    height: int = 0
    txs: int = 0
    slots: Table[int] = field(default_factory=Table)
    trades: Table[tuple[int, int, str, str]] = field(default_factory=Table)
    auctions: Table[str] = field(default_factory=Table)
    blocks: Table[int] = field(default_factory=Table)
    validators: Table[str] = field(default_factory=Table)
    homes: Table[str] = field(default_factory=Table)
    balances: dict[str, int] = field(default_factory=dict)
    """Money of an address, free and locked [µ¤]."""
    settlements: dict[int, dict[str, Row]] = field(default_factory=dict)
    scheduled: set[tuple[int, str]] = field(default_factory=set)
    """(slot, address) of who scheduled: its deviations are settled at the imbalance price."""
    rules: RuleBook = field(init=False)
    """What holds in each slot, the tariff first of all."""
    money: MoneyBook = field(init=False)
    refusals: dict[tuple[str, str], int] = field(default_factory=dict)
    """Refused messages by (component, reason)."""
    _node_refusals: dict[tuple[str, str, str], int] = field(default_factory=dict)
    _power: dict[int, _Power] = field(default_factory=dict)
    _last_state: dict[str, HomeState] = field(default_factory=dict)
    _missing: dict[int, set[str]] = field(default_factory=dict)
    _terms: Terms = field(default_factory=Terms)
    _volumes: dict[int, dict[tuple[str, str], Volume]] = field(default_factory=dict)
    """By slot, market and reference: an event that is told again changes nothing."""
    _sequence: int = 0

    def __post_init__(self) -> None:
        self.rules = RuleBook(self.facts.genesis)
        self.money = MoneyBook(self.facts.supervisor)
        for name, controller in self.facts.validators.items():
            row = {"id": name, "controller": controller, "turns": 0, "txs": 0}
            self.validators.put(name, row, self.revision)

    # -- finalised events -------------------------------------------------------------------------

    def fold_event(self, height: int, event: Row) -> None:
        """Take one finalised event; names that are not known change nothing."""
        name = event.get("event", "")
        if name not in _EVENTS:
            return
        self.revision += 1
        self.height = max(self.height, height)
        event = self._terms.complete(event)
        take = _EVENTS[name]
        if take is not None:
            take(self, event)
        trades = trades_of(event)
        self._traded(trades, volumes_of(event, trades))
        self.money.take(event, trades, self.rules)

    def _cleared(self, event: Row) -> None:
        row = self._slot(event["slot"])
        row.update(bids=event["bids"], offers=event["offers"], welfareUc=event.get("welfareUc", 0))
        if event["tradedWh"] > 0:
            row["priceUc"] = event["priceUcPerKwh"]
        self._put_slot(event["slot"], row)

    def _auction_opened(self, event: Row) -> None:
        row = {
            "auction": event["auction"],
            "template": event["template"],
            "slot": event["slot"],
            "startMs": self.facts.grid.start_ms(event["slot"]),
            "energyWh": event["energyWh"],
            "limitUc": event["priceUcPerKwh"],
            "status": "open",
            "boughtWh": 0,
            "awards": 0,
        }
        self.auctions.put(event["auction"], row, self.revision)

    def _auction_cleared(self, event: Row) -> None:
        old = self.auctions.get(event["auction"])
        row = dict(old) if old else _unknown_auction(event, self.facts)
        awards = event["awards"]
        bought = event["boughtWh"]
        spent = sum(a["energyWh"] * a["priceUcPerKwh"] for a in awards)
        row.update(status="cleared", boughtWh=bought, awards=len(awards))
        if bought > 0:
            row["meanUc"] = spent // sum(a["energyWh"] for a in awards)
        self.auctions.put(event["auction"], row, self.revision)

    def _traded(self, trades: list[Trade], volumes: list[Volume]) -> None:
        """The trades of an event, and what they moved in each slot's markets."""
        for trade in trades:
            self._trade(trade)
        for volume in volumes:
            of_slot = self._volumes.setdefault(volume.slot, {})
            of_slot[volume.kind, volume.reference] = volume
        for slot in sorted({volume.slot for volume in volumes}):
            markets = by_kind(self._volumes[slot].values())
            local_wh = sum(market["localWh"] for market in markets.values())
            flex_wh = markets.get(FLEXIBILITY, {}).get("energyWh", 0)
            row = self._slot(slot)
            row.update(markets=markets, tradedWh=local_wh, flexWh=flex_wh)
            self._put_slot(slot, row)

    def _trade(self, trade: Trade) -> None:
        """One trade, known by its slot and its number in its event: an address may have two."""
        self._sequence += 1
        row = {
            "seq": self._sequence,
            "slot": trade.slot,
            "startMs": self.facts.grid.start_ms(trade.slot),
            "address": trade.address,
            "side": trade.side,
            "kind": trade.kind,
            "reference": trade.reference,
            "energyWh": trade.energy_wh,
            "priceUc": trade.price_uc_per_kwh,
            "amountUc": trade.amount_uc,
        }
        key = (trade.slot, trade.number, trade.kind, trade.reference)
        self.trades.put(key, row, self.revision)
        if self.keep_days:
            self.trades.drop_oldest(LATEST_TRADES)

    def _schedule_submitted(self, event: Row) -> None:
        self.scheduled.add((event["slot"], event["address"]))

    def _change_approved(self, event: Row) -> None:
        self.rules.take_event(event)

    def _settled(self, event: Row) -> None:
        slot = event["slot"]
        by_address = self.settlements.setdefault(slot, {})
        missing = self._missing.setdefault(slot, set())
        for item in event["rows"]:
            by_address[item["address"]] = item
            missing.discard(item["address"])  # a late receipt settles its home again
        missing.update(event.get("missing", ()))
        nets = self.metered_nets(slot)
        row = self._slot(slot)
        row.update(
            netWh=sum(nets),
            homeImportWh=sum(net for net in nets if net > 0),
            homeExportWh=-sum(net for net in nets if net < 0),
            settled=len(by_address),
            missing=len(self._missing.get(slot, ())),
        )
        self._put_slot(slot, row)

    def volumes(self) -> list[Volume]:
        """What every clearing, offer and trade moved, by slot."""
        return [v for slot in sorted(self._volumes) for v in self._volumes[slot].values()]

    def metered_nets(self, slot: int) -> list[int]:
        """
        Net energy of the homes whose receipt is there [Wh].

        What is assumed of the others is a price, not energy: it has no place in a balance.
        """
        rows = self.settlements.get(slot, {}).values()
        return [row["netWh"] for row in rows if not row.get("assumed")]

    def _cpf(self, event: Row) -> None:
        row = self._validator(event["validator"])
        row.update(
            cpfQ16=event["cpfQ16"],
            eligible=event["eligible"],
            endSlot=event["endSlot"],
            cpfSum=row.get("cpfSum", 0) + event["cpfQ16"],
            cpfCount=row.get("cpfCount", 0) + 1,
            eligibleCount=row.get("eligibleCount", 0) + int(event["eligible"]),
        )
        self.validators.put(event["validator"], row, self.revision)

    def _tx(self, event: Row) -> None:
        self.txs += 1
        refused = [code for code in event.get("codes", []) if code != "OK"]
        if not refused and event["code"] != "OK":
            refused = [event["code"]]
        for code in refused:
            self.refusals["ledger", code] = self.refusals.get(("ledger", code), 0) + 1

    def _balance(self, event: Row) -> None:
        self.balances[event["address"]] = event["balanceUc"] + event.get("lockedUc", 0)

    # -- what single nodes say --------------------------------------------------------------------

    def fold_block(self, block: Row) -> None:
        """Take one block on which enough nodes agree (see `analytics.statements`)."""
        if self.blocks.get(block["height"]) is not None:
            return
        self.revision += 1
        self.height = max(self.height, block["height"])
        self.blocks.put(block["height"], block, self.revision)
        if self.keep_days:
            self.blocks.drop_oldest(LATEST_BLOCKS)
        row = self._validator(block["proposer"])
        row.update(turns=row["turns"] + 1, txs=row["txs"] + block["nTx"])
        self.validators.put(block["proposer"], row, self.revision)

    def fold_refused(self, node: str, component: str, counts: dict[str, int]) -> None:
        """
        Take a node's counts of refused messages.

        A message reaches every node and each refuses it, so the largest count of one node is shown,
        not their sum.
        """
        self.revision += 1
        for reason, count in counts.items():
            self._node_refusals[node, component, reason] = count
            largest = max(
                n for (_, c, r), n in self._node_refusals.items() if (c, r) == (component, reason)
            )
            self.refusals[component, reason] = largest

    # -- homes ------------------------------------------------------------------------------------

    def fold_state(self, state: HomeState) -> None:
        """Take what a home says of itself."""
        before = self._last_state.get(state.home)
        if before is not None and state.online and state.time_ms < before.time_ms:
            return
        self.revision += 1
        if state.measured:
            if before is not None and before.measured and before.online:
                self._integrate(before, state)
            self._last_state[state.home] = state
        elif before is not None:
            self._last_state.pop(state.home)
        old = self.homes.get(state.home) or {"id": state.home}
        row = {**old, "online": state.online, "timeMs": state.time_ms, "shares": state.measured}
        if state.online:
            row["lost"] = list(state.lost)
        if state.measured:
            row.update(
                gridW=state.grid_w,
                pvW=state.pv_w,
                batteryW=state.battery_w,
                loadW=state.load_w,
                socPermille=state.soc_permille,
            )
        self.homes.put(state.home, row, self.revision)

    def _integrate(self, before: HomeState, after: HomeState) -> None:
        span_ms = after.time_ms - before.time_ms
        slot_ms = self.facts.grid.length_s * 1000
        if not 0 < span_ms <= MAX_STATE_GAP_SLOTS * slot_ms:
            return
        at_ms = before.time_ms
        while at_ms < after.time_ms:
            slot = self.facts.grid.slot_at(at_ms)
            until_ms = min(after.time_ms, self.facts.grid.end_ms(slot))
            power = self._power.setdefault(slot, _Power())
            # linear in between: the mean over a part of the stretch is the value at its middle
            middle = (at_ms + until_ms) // 2 - before.time_ms
            length = until_ms - at_ms
            for name in ("load", "pv", "battery", "grid"):
                a, b = getattr(before, f"{name}_w"), getattr(after, f"{name}_w")
                mean_w = a + (b - a) * middle // span_ms
                setattr(power, name, getattr(power, name) + mean_w * length)
            row = self._slot(slot)
            row.update(
                loadW=power.load // slot_ms,
                pvW=power.pv // slot_ms,
                batteryW=power.battery // slot_ms,
                gridW=power.grid // slot_ms,
            )
            self._put_slot(slot, row)
            at_ms = until_ms

    # -- housekeeping -----------------------------------------------------------------------------

    def forget_before(self, time_ms: int) -> None:
        """Forget slots and blocks that began before `time_ms`."""
        limit = self.facts.grid.slot_at(time_ms)
        self.slots.drop([r["slot"] for r in self.slots.values() if r["slot"] < limit])
        self.blocks.drop([r["height"] for r in self.blocks.values() if r["timeMs"] < time_ms])
        old = [r["auction"] for r in self.auctions.values() if r["slot"] < limit]
        self.auctions.drop(old)
        for slot in [s for s in self.settlements if s < limit]:
            del self.settlements[slot]
        for slot in [s for s in self._power if s < limit]:
            del self._power[slot]
        for slot in [s for s in self._missing if s < limit]:
            del self._missing[slot]
        for slot in [s for s in self._volumes if s < limit]:
            del self._volumes[slot]
        self.scheduled = {entry for entry in self.scheduled if entry[0] >= limit}

    def energy_wh(self, name: str, slots: Iterable[int]) -> int:
        """Energy of `load`, `pv`, `battery` or `grid` in these slots [Wh]."""
        known = (self._power[slot] for slot in slots if slot in self._power)
        collected: int = sum(getattr(power, name) for power in known)
        return collected // 3_600_000

    def _slot(self, slot: int) -> Row:
        row = self.slots.get(slot)
        return row if row else {"slot": slot, "startMs": self.facts.grid.start_ms(slot)}

    def _put_slot(self, slot: int, row: Row) -> None:
        self.slots.put(slot, row, self.revision)

    def _validator(self, name: str) -> Row:
        row = self.validators.get(name)
        return row if row else {"id": name, "controller": "", "turns": 0, "txs": 0}


def _unknown_auction(event: Row, facts: MarketFacts) -> Row:
    """An auction whose opening was before our time: what its result tells."""
    return {
        "auction": event["auction"],
        "template": event.get("template", "reverse"),
        "slot": event["slot"],
        "startMs": facts.grid.start_ms(event["slot"]),
        "energyWh": event["boughtWh"],
        "limitUc": 0,
    }


_EVENTS: dict[str, Callable[[Rollup, Row], None] | None] = {
    "cleared": Rollup._cleared,
    "auction-opened": Rollup._auction_opened,
    "auction-cleared": Rollup._auction_cleared,
    "offer-accepted": None,
    "escrow-offered": None,
    "escrow-accepted": None,
    "escrow-revealed": None,
    "escrow-ended": None,
    "schedule-submitted": Rollup._schedule_submitted,
    "session-closed": None,
    "bid-forfeited": None,
    "settled": Rollup._settled,
    "trued-up": Rollup._settled,
    "change-approved": Rollup._change_approved,
    "rewards": None,
    "financial-deposited": None,
    "account-closed": None,
    "cpf": Rollup._cpf,
    "tx": Rollup._tx,
    "balance": Rollup._balance,
}
"""What is known, and what beside trades and money it changes."""
