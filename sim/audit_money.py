"""
The market's part of the audit: every position and every balance follows from what was signed.

The whole history is replayed (`sim.audit_replay`) in the audit's own books, over all markets of a
slot together. Two checks come of it:

    positions  events say what their operations said; clearings, trades and settlements are those
               of the orders, and what a home bought and sold in a slot is the sum over all markets
    money      every balance at every block, free and locked, is the books'; in the end each home
               holds its deposits less its bill, and the bills of homes and supervisor add up to
               zero, but for what waits for a settlement or in the pool of rewards
"""

from __future__ import annotations

from collections.abc import Iterable

from ledger.contracts import keys
from sim.audit_book import Book
from sim.audit_history import History
from sim.audit_replay import Replay
from sim.audit_trail import Check, Trail, verdict


def check_market(trail: Trail) -> list[Check]:
    """The checks `positions` and `money`."""
    replay, differing = replayed(trail, trail.chain.history)
    return [_positions(trail, replay, differing), _money(trail, replay)]


def replayed(trail: Trail, history: Iterable[History]) -> tuple[Replay, list[str]]:
    """The books at the end of a history, and where its events differ from what was signed."""
    replay, differing = Replay(trail.genesis), list[str]()
    for block in history:
        differing += block.faults
        replay.take(block)
    return replay, differing


def _positions(trail: Trail, replay: Replay, differing: list[str]) -> Check:
    traded = [held.sold_wh for slot in replay.book.positions.values() for held in slot.values()]
    faults = [*differing, *replay.energy]
    faults += [
        f"slot {slot}: {bought_wh} Wh bought and {sold_wh} Wh sold"
        for slot, bought_wh, sold_wh in _sums(replay.book)
        if bought_wh != sold_wh
    ]
    text = (
        f"{sum(traded)} Wh sold in all markets and slots are as much bought; every position that"
        f" was settled in {len(trail.chain.settled)} slots is the sum of its trades"
    )
    return verdict("positions", faults, text, {"soldWh": sum(traded)})


def _sums(book: Book) -> Iterable[tuple[int, int, int]]:
    for slot, held in sorted(book.positions.items()):
        yield slot, sum(p.bought_wh for p in held.values()), sum(p.sold_wh for p in held.values())


def _money(trail: Trail, replay: Replay) -> Check:
    book, faults = replay.book, list(replay.money)
    owners = {address: home.name for home in trail.homes for address in home.addresses}
    owners[book.supervisor] = "the supervisor"
    accounts = {*book.free_uc, *book.locked_uc, *_accounts(trail)}
    for address in sorted(accounts):
        free_uc, locked_uc = _held(trail, address)
        expected = book.free_uc.get(address, 0), book.locked_uc.get(address, 0)
        name = owners.get(address)
        if name is None and (any(expected) or book.bill_uc(address)):
            faults.append(f"{address} has a bill and no home")
        elif (free_uc, locked_uc) != expected:
            faults.append(
                f"{name or address} holds {free_uc} µ¤ and {locked_uc} µ¤ locked; {expected[0]} and"
                f" {expected[1]} follow"
            )
    homes_uc = sum(book.bill_uc(a) for home in trail.homes for a in home.addresses)
    supervisor_uc, locked_uc = book.bill_uc(book.supervisor), sum(replay.locked_uc().values())
    between_uc = book.waiting_uc + book.pool_uc
    if homes_uc + supervisor_uc != between_uc:
        faults.append(
            f"the bills of homes and supervisor add up to {homes_uc + supervisor_uc} µ¤,"
            f" {between_uc} µ¤ wait for settlements and in the pool"
        )
    text = (
        f"every balance at every block follows; deposits less bill in the end: the homes' bills"
        f" {homes_uc / 1e6:.6f} ¤ and the supervisor's {supervisor_uc / 1e6:.6f} ¤ add up"
        f" to {f'{between_uc} µ¤ that wait' if between_uc else 'zero'}; {locked_uc} µ¤ still locked"
    )
    return verdict("money", faults, text, {"lockedUc": locked_uc})


def _accounts(trail: Trail) -> list[str]:
    prefix = keys.ACCOUNT
    return [key.removeprefix(prefix) for key in trail.chain.state if key.startswith(prefix)]


def _held(trail: Trail, address: str) -> tuple[int, int]:
    row = trail.chain.state.get(keys.account(address))
    return (0, 0) if row is None else (int(row["balanceUc"]), int(row["lockedUc"]))
