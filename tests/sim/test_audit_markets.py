"""
The audit's books over a chain in which every market was used: whole, and with one number altered.

What the events of a block announce is changed by one µ¤ or one Wh, everywhere, one by one; the
chain is replayed with it, and a named fault must come of it. Execution is not asked: these are the
checks beside `ledger verify`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.all_markets import ACTIVE, HOMES, SLOT, all_markets
from support.chain_builder import SUPERVISOR, Chain, make_genesis, receipt, slot_ms

from ledger.genesis import Supervisor
from ledger.store import LedgerStore
from sim.audit import UNREADABLE
from sim.audit_history import History, Step, accepted, history_of, read_history
from sim.audit_money import check_market
from sim.audit_replay import Replay
from sim.audit_trail import HomeRecord, Trail, read_chain
from wire.keys import to_text

CONTRACTS = ("market", "wallet", "poe")
AMOUNTS = ("Wh", "Uc", "UcPerKwh")
Place = tuple[int, str, int, tuple[Any, ...]]
"""Height, contract, number of the event in it, and the way to a number in the event."""


@pytest.fixture(scope="module")
def chain() -> Chain:
    return all_markets()


@pytest.fixture(scope="module")
def history(chain: Chain) -> list[History]:
    return list(read_history(chain.store))


def replayed(chain: Chain, history: list[History]) -> tuple[Replay, list[str]]:
    """The books, and every fault."""
    replay, faults = Replay(chain.genesis), list[str]()
    for block in history:
        faults += block.faults
        replay.take(block)
    return replay, [*faults, *replay.energy, *replay.money]


def numbers(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all amounts in an event."""
    if isinstance(value, dict):
        for key, inner in value.items():
            is_amount = key.endswith(AMOUNTS) or (way == () and key == "value")
            if type(inner) is int and is_amount:
                yield (*way, key)
            else:
                yield from numbers(inner, (*way, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from numbers(inner, (*way, place))


def places(chain: Chain) -> Iterator[tuple[str, Place]]:
    """Every amount of the chain, with the name of its event."""
    for height in range(1, chain.store.height + 1):
        for contract in CONTRACTS:
            for number, event in enumerate(chain.store.events(height, contract)):
                for way in numbers(event):
                    yield event["event"], (height, contract, number, way)


def altered(chain: Chain, history: list[History], place: Place, by: int) -> list[History]:
    """The history with one number changed."""
    height, contract, number, way = place
    events = {name: copy.deepcopy(chain.store.events(height, name)) for name in CONTRACTS}
    holder = events[contract][number]
    for step in way[:-1]:
        holder = holder[step]
    holder[way[-1]] += by
    signed: list[Step] = list(accepted(chain.store, height))
    block = history_of(height, history[height - 1].time_ms, signed, events)
    return [*history[: height - 1], block, *history[height:]]


def found_out(chain: Chain, changed: list[History]) -> bool:
    """Does a fault come of it, each in one line?"""
    _, faults = replayed(chain, changed)
    return bool(faults) and all(line and "\n" not in line for line in faults)


def test_every_market_was_used(chain: Chain):
    names = {
        event["event"] + "/" + event.get("state", "")
        for height in range(1, chain.store.height + 1)
        for event in chain.store.events(height, "market")
    }
    wanted = {
        "cleared/", "auction-cleared/", "offer-accepted/", "offer-rescinded/", "offer-expired/",
        "escrow-ended/delivered", "escrow-ended/failed", "escrow-ended/withdrawn",
        "escrow-ended/expired", "escrow-revealed/", "bid-forfeited/", "session-closed/",
        "adjustment-opened/", "trued-up/", "change-approved/",
    }  # fmt: skip
    assert wanted <= names
    supervisor = chain.genesis.supervisor.address
    settled = [e for h in range(1, chain.store.height + 1) for e in chain.store.events(h, "market")
               if e["event"] == "settled"]  # fmt: skip
    assert any(row.get("assumed") for event in settled for row in event["rows"])
    assert chain.ledger.query(f"account/{supervisor}")["lockedUc"] > 0, "an auction is open"


def test_every_balance_of_every_block_follows_from_what_was_signed(chain, history):
    replay, faults = replayed(chain, history)
    assert faults == []
    for home in HOMES:
        assert (replay.book.free_uc[home.id], replay.book.locked_uc[home.id]) == chain.account(home)
    assert sum(replay.locked_uc().values()) > 0, "orders, deposits and guarantees are still open"
    assert replay.book.waiting_uc > 0, "a trade waits for its settlement"
    bills_uc = sum(replay.book.bill_uc(address) for address in replay.book.free_uc)
    assert bills_uc == replay.book.waiting_uc + replay.book.pool_uc


def test_a_position_is_the_sum_over_all_markets(chain, history):
    replay, _ = replayed(chain, history)
    eve, bob = (replay.book.positions[SLOT + 1][h.id] for h in (HOMES[4], HOMES[1]))
    assert (eve.sold_wh, eve.bought_wh) == (201 + 97, 0), "both escrowed trades; one was hidden"
    assert (bob.sold_wh, bob.bought_wh) == (0, 0)
    ann = replay.book.positions[SLOT][HOMES[0].id]
    assert ann.sold_wh == 268 + 91 + 17, "double auction, the aggregator's, order book"


def test_a_supervisor_without_money_deposits_what_it_lacks():
    poor = Supervisor(address=SUPERVISOR.id, key=to_text(SUPERVISOR.public), balance_uc=7)
    chain = Chain(genesis=make_genesis(supervisor=poor))
    chain.settle_in(HOMES[0])
    chain.block(
        slot_ms(SLOT + 1, 5), chain.tx(HOMES[0], receipt(HOMES[0], SLOT, -500, chain.chain_id))
    )
    chain.block(slot_ms(SLOT + 3))
    replay, faults = replayed(chain, list(read_history(chain.store)))
    assert faults == []
    assert replay.book.deposited_uc[poor.address] == 500 * 80


def test_slots_are_settled_at_their_own_tariff(chain, history):
    replay, _ = replayed(chain, history)
    assert replay.rules.tariff(ACTIVE - 1).retail_uc_per_kwh == 300_001
    assert replay.rules.tariff(ACTIVE).retail_uc_per_kwh == 345_677
    blind = Replay(chain.genesis)
    blind.rules.take_event = lambda _event: False  # type: ignore[method-assign]
    for block in history:
        blind.take(block)
    assert any("settled" in fault for fault in blind.money)
    assert any("lockedUc" in fault or "balanceUc" in fault for fault in blind.money)


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> Trail:
    """What the audit reads of the chain, out of a validator's folder."""
    folder = tmp_path_factory.mktemp("ledger")
    chain = all_markets(LedgerStore.in_folder(folder))
    chain.store.close()
    homes = [HomeRecord(f"home-{i}", "", "", frozenset({one.id})) for i, one in enumerate(HOMES)]
    return Trail(chain.genesis, range(SLOT, SLOT + 8), homes, {}, read_chain(folder))


def test_the_checks_pass_with_open_orders_at_the_end_and_say_so(trail):
    positions, money = check_market(trail)
    assert (positions.passed, money.passed) == (True, True), (positions.line, money.line)
    assert "µ¤ still locked" in money.text and money.facts["lockedUc"] > 0
    assert "that wait" in money.text, "a trade is not settled, and the pool is not empty"


@pytest.mark.parametrize("name", ["balanceUc", "lockedUc"])
@pytest.mark.parametrize("who", [HOMES[4], SUPERVISOR])
def test_a_balance_in_the_end_that_does_not_follow_fails(trail, who, name):
    key = f"account/{who.id}"
    row = trail.chain.state[key]
    state = {**trail.chain.state, key: {**row, name: row[name] + 1}}
    changed = replace(trail, chain=replace(trail.chain, state=state))
    positions, money = check_market(changed)
    assert (positions.passed, money.passed) == (True, False)
    assert "holds" in money.line


def test_money_of_an_address_that_no_home_has_fails(trail):
    _, money = check_market(replace(trail, homes=trail.homes[:-1]))
    assert "has a bill and no home" in money.line


KINDS = sorted({kind for kind, _ in places(all_markets())})


@pytest.mark.parametrize("kind", KINDS)
def test_an_amount_that_is_altered_by_one_is_found(chain, history, kind):
    """Every amount of every event of a kind, one more and one less."""
    missed = [
        (place, by)
        for name, place in places(chain)
        if name == kind
        for by in (1, -1)
        if not found_out(chain, altered(chain, history, place, by))
    ]
    assert missed == []


@pytest.mark.parametrize(
    "kind",
    ["cleared", "auction-cleared", "offer-accepted", "escrow-ended", "session-closed", "settled",
     "bid-forfeited", "bid-revealed", "escrow-offered", "financial-deposited"],
)  # fmt: skip
def test_an_event_that_is_left_out_is_found(chain, history, kind):
    for height in range(1, chain.store.height + 1):
        events = {name: chain.store.events(height, name) for name in CONTRACTS}
        for stream in events.values():
            place = next((i for i, e in enumerate(stream) if e["event"] == kind), None)
            if place is None:
                continue
            del stream[place]
            signed = list(accepted(chain.store, height))
            block = history_of(height, history[height - 1].time_ms, signed, events)
            try:
                found = found_out(chain, [*history[: height - 1], block, *history[height:]])
            except UNREADABLE:
                found = True  # the check that cannot be carried out has failed
            assert found, height
