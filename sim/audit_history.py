"""
The chain's history as the audit replays it: what was signed, and what was announced because of it.

A block announces first what was due at its time (clearings, settlements, deadlines), then what its
operations did. Events do not name their operation, but come in its order: so each operation is
given the events that follow the one it begins with. An event that names other amounts, slots or
parties than the operation that was signed is a fault, and so is an operation of which none tells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ledger.store import LedgerStore
from wire.transactions import parse_transaction

Event = dict[str, Any]

TOLD_BY = {
    "bid-offer": "bid-accepted", "receipt": "receipt", "commit-bid": "bid-committed",
    "reveal-bid": "bid-revealed", "deploy-auction": "auction-opened",
    "post-offer": "offer-posted", "rescind-offer": "offer-rescinded",
    "accept-offer": "offer-accepted", "make-offer": "escrow-offered",
    "accept-escrow": "escrow-accepted", "reveal-escrow": "escrow-revealed",
    "give-up": "escrow-ended", "submit-schedule": "schedule-submitted",
    "assign-zone": "zone-assigned", "close-interconnection": "interconnection-closed",
    "open-adjustment": "adjustment-opened", "propose-change": "change-proposed",
    "approve-change": "change-supported", "add-energy-asset": "asset-added",
    "deposit-energy-asset": "asset-deposited", "register-address": "address-registered",
    "deposit-financial-balance": "financial-deposited",
}  # fmt: skip
"""The event with which the chain tells of an operation; others change no market."""
_CONSEQUENCES = {
    "revoke": {"offer-rescinded", "escrow-ended", "bid-withdrawn"},
    "receipt": {"escrow-ended", "banned", "trued-up"},
    "reveal-escrow": {"escrow-ended", "banned"},
    "propose-change": {"change-supported", "change-approved"},
    "approve-change": {"change-approved"},
}
"""What may be announced after it, by the same operation."""
_NAMES = ("offer", "auction", "slot", "zone", "change", "address", "kind", "commitment")
"""Facts by which the event of an operation is found; if others differ it is a fault."""
_NOT_ALIKE = frozenset({"op", "untilMs"})
"""An offer ends when its last slot closes, whatever it asked for."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation with its events; without one, what was due."""

    place: tuple[int, int, int]
    """Height, transaction, operation; it decides between equal orders."""
    sender: str = ""
    operation: dict[str, Any] | None = None
    events: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class History:
    """A block: its steps in order, the balances it ended with, and where the two records differ."""

    height: int
    time_ms: int
    steps: list[Step]
    closing: list[Event]
    """Rewards, then the balances of all accounts that changed."""
    faults: list[str]


def read_history(store: LedgerStore) -> Iterator[History]:
    """All blocks of a store, in order."""
    for height in range(1, store.height + 1):
        block = store.get_block(height)
        assert block is not None
        events = {name: store.events(height, name) for name in ("market", "wallet", "poe")}
        yield history_of(height, block.header.time_ms, list(accepted(store, height)), events)


def history_of(
    height: int, time_ms: int, signed: list[Step], events: dict[str, list[Event]]
) -> History:
    """
    A block.

    Args:
        height, time_ms: of the block
        signed: its accepted operations, in order, without events
        events: as they are stored, by contract
    """
    balances = [event for event in events["wallet"] if event["event"] == "balance"]
    rewards = [event for event in events["poe"] if event["event"] == "rewards"]
    steps, faults = steps_of(
        height,
        signed,
        events["market"],
        [event for event in events["wallet"] if event["event"] not in ("balance", "tx")],
    )
    return History(height, time_ms, steps, [*rewards, *balances], faults)


def deposits_of(history: Iterable[History]) -> dict[str, int]:
    """What the supervisor credited to each address [µ¤]; what was withdrawn is not taken off."""
    found: dict[str, int] = defaultdict(int)
    for block in history:
        for step in block.steps:
            operation = step.operation or {}
            if operation.get("op") == "add-financial-balance":
                found[operation["address"]] += operation["amountUc"]
    return found


def steps_of(
    height: int, signed: list[Step], market: list[Event], wallet: list[Event]
) -> tuple[list[Step], list[str]]:
    """
    Give every operation of a block its events.

    Args:
        height: of the block
        signed: its accepted operations, in order, without events
        market, wallet: the events of the block, in order

    Returns:
        The steps, the first of them what was due; and what operations and events disagree in.
    """
    due = Step((height, -1, -1))
    steps, faults, began = [due], list[str](), False
    streams = {"market": list(market), "wallet": list(wallet)}
    for one in signed:
        step = Step(one.place, one.sender, one.operation)
        steps.append(step)
        operation = step.operation or {}
        opener = _opener(operation)
        if opener is None:
            continue
        said = _said(operation, step.sender)
        for name, rest in streams.items():
            place = next((i for i, e in enumerate(rest) if _is_of(e, opener, said)), None)
            if place is None:
                continue
            before, event = rest[:place], rest[place]
            if name == "market" and not began:
                due.events.extend(before)
                began = True
            else:
                step.events.extend(before)
            step.events.append(event)
            after = place + 1
            while after < len(rest) and rest[after]["event"] in _CONSEQUENCES.get(
                operation["op"], ()
            ):
                step.events.append(rest[after])
                after += 1
            del rest[:after]
            faults += _differences(height, event, said)
            break
        else:
            faults.append(
                f"block {height}: nothing tells of the {operation['op']} of {step.sender}"
            )
    rest = [*streams["market"], *streams["wallet"]]
    (steps[-1] if began else due).events.extend(rest)
    return steps, faults


def accepted(store: LedgerStore, height: int) -> Iterator[Step]:
    """The operations of a block that were executed, out of its signed transactions."""
    for tx_index, done in enumerate(store.receipts(height)):
        raw = store.get_body(bytes.fromhex(done["txid"])) if done["codes"] else None
        operations = parse_transaction(raw).operations if raw is not None else ()
        for index, (operation, code) in enumerate(zip(operations, done["codes"], strict=False)):
            if code == "OK":
                yield Step((height, tx_index, index), done["sender"], operation)


def _opener(operation: dict[str, Any]) -> str | None:
    """The event with which the chain tells of an operation."""
    if operation.get("op") == "revoke":
        return "banned" if operation["revocation"]["banned"] else "reinstated"
    return TOLD_BY.get(operation.get("op", ""))


def _said(operation: dict[str, Any], sender: str) -> dict[str, Any]:
    """What an operation says, by the names that events use."""
    match operation["op"]:
        case "receipt":
            record = operation["receipt"]
            return {name: record[key] for name, key in _RECEIPT.items()}
        case "register-address":
            return {name: operation["grant"][key] for name, key in _GRANT.items()}
        case "revoke":
            return {name: operation["revocation"][name] for name in _REVOCATION}
        case "give-up":
            return {"offer": operation["offer"], "seller": sender}
        case "bid-offer":
            return {"address": sender, "slot": operation["slot"]}
        case "accept-offer":
            return {"offer": operation["offer"], "acceptedBy": sender}
        case "add-energy-asset" | "assign-zone":
            owner = {}
        case "make-offer":
            owner = {"seller": sender}
        case "accept-escrow":
            owner = {"buyer": sender}
        case "propose-change":
            owner = {"proposer": sender}
        case _:
            owner = {"address": sender}
    return {**{k: v for k, v in operation.items() if k not in _NOT_ALIKE}, **owner}


_REVOCATION = ("address", "number", "reason", "advisory", "knowledge")
_RECEIPT = {"address": "address", "slot": "slot", "netWh": "net_wh"}
_GRANT = {
    "address": "address", "maxBuyWh": "max_buy_wh", "maxSellWh": "max_sell_wh",
    "startSlot": "start_slot", "endSlot": "end_slot",
}  # fmt: skip


def _is_of(event: Event, name: str, said: dict[str, Any]) -> bool:
    return event["event"] == name and all(
        event[key] == said[key] for key in _NAMES if key in said and key in event
    )


def _differences(height: int, event: Event, said: dict[str, Any]) -> list[str]:
    return [
        f"block {height}: {event['event']} announces {key} {event[key]}, {said[key]} was signed"
        for key in said
        if key in event and event[key] != said[key]
    ]
