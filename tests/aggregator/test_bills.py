"""Debts of ended addresses become their owner's bill, once, and no fresh address runs from them."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.brokers import make_key
from support.chain_builder import (
    FIRST_SLOT,
    START_MS,
    SUPERVISOR,
    Chain,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)
from typer.testing import CliRunner

from aggregator import cli
from aggregator.accounts import Accounts
from aggregator.bills import Bills, Statement
from aggregator.dso_desk import DsoDesk
from aggregator.process import ACCOUNTS, read_accounts
from aggregator.withdrawals import operations
from ledger.genesis import Privacy
from wire.withdrawal import Withdrawal

HOME, OTHER = make_key("home").id, make_key("other").id
OWNERS = {make_key(f"address {n}").id: (HOME, OTHER)[n % 2] for n in range(4)}
ADDRESSES = list(OWNERS)
OPENING_UC = 10**6


@pytest.fixture
def books():
    opened = Accounts(":memory:", OPENING_UC)
    yield opened
    opened.close()


def desk_on(books):
    desk = DsoDesk.__new__(DsoDesk)
    desk.accounts, desk.bills, desk._deposits_of = books, Bills(books), (-1, 0)
    return desk


def closed(address, amount_uc):
    return {"event": "account-closed", "address": address, "amountUc": amount_uc}


def balance(address, amount_uc):
    return {"event": "balance", "address": address, "balanceUc": amount_uc, "lockedUc": 0}


def test_an_addresses_debt_counts_against_its_owner_until_it_is_billed(books):
    desk, (address, *_) = desk_on(books), ADDRESSES
    desk.take_event(5, balance(address, -300))
    assert desk.bills.owed_uc(HOME) == 0, "nobody knows yet whose it is"
    desk.claim(OWNERS.get)
    assert (books.balance_uc(HOME), desk.bills.owed_uc(HOME)) == (OPENING_UC, 300)
    desk.take_event(6, balance(address, -1_200_000))
    assert Bills(books).owed_uc(HOME) == 1_200_000, "also after a restart"
    for _ in range(2):
        desk.take_event(9, closed(address, -1_200_000))
        desk.take_event(9, balance(address, 0))
        desk._deposits_of = (-1, 0)  # told again after a restart
    assert (books.balance_uc(HOME), desk.bills.owed_uc(HOME)) == (OPENING_UC - 1_200_000, 0)


def test_what_a_lost_device_left_behind_comes_back_to_its_owner(books):
    desk = desk_on(books)
    desk.take_event(9, closed(ADDRESSES[1], 70))
    assert books.unclaimed_uc() == 70
    desk.claim(OWNERS.get)
    assert (books.unclaimed_uc(), books.balance_uc(OTHER)) == (0, OPENING_UC + 70)


def test_two_accounts_closed_in_one_block_are_both_booked(books):
    desk = desk_on(books)
    for address in ADDRESSES[:2]:
        desk.take_event(9, closed(address, -5))
    desk.claim(OWNERS.get)
    assert [books.balance_uc(who) for who in (HOME, OTHER)] == [OPENING_UC - 5] * 2


def test_a_payment_is_booked_once_under_its_reference(books):
    bills = Bills(books)
    assert bills.pay(HOME, 500, "invoice 7", 1)
    assert not bills.pay(HOME, 500, "invoice 7", 2)
    assert bills.pay(HOME, -200, "paid out 1", 3)
    assert bills.statements() == [Statement(HOME, OPENING_UC + 300, 0)]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["withdraw", "fail", "deposit", "close", "owe", "pay", "claim"]),
        st.integers(0, 3),
        st.integers(0, 300_000),
        st.sampled_from(["", "crash", "twice", "restart"]),
    ),
    max_size=30,
)


class History:
    """Books, what is on the ledger through them, and steps that may be interrupted or repeated."""

    def __init__(self):
        self.books = Accounts(":memory:", OPENING_UC)
        self.desk = desk_on(self.books)
        for who in (HOME, OTHER):
            self.books.credit(who, 0)
        self.on_ledger = dict.fromkeys(ADDRESSES, 0)
        self.paid_uc = 0
        self.parts = []
        """Withdrawals on their way: reference, address, amount."""

    def possible_uc(self, what, address, amount_uc):
        """An amount that can be: no more than there is, or all there is, less a debt."""
        if what == "withdraw":
            return max(0, min(amount_uc, self.books.balance_uc(OWNERS[address])))
        if what == "deposit":
            return min(amount_uc, max(0, self.on_ledger[address]))
        if what == "close":
            return self.on_ledger[address] - amount_uc * (ADDRESSES.index(address) % 2)
        return amount_uc

    def book(self, what, number, address, amount_uc):
        """One step, to be done inside a transaction."""
        owner = OWNERS[address]
        match what:
            case "withdraw" if self.books.withdrawal(owner, f"w-{number}") is None:
                self.books.withdraw(owner, "f", Withdrawal(f"w-{number}", address, amount_uc, []))
            case "fail" if self.parts:
                self.books.finish(self.parts[-1][0], 0, "NOT_FOUND")
            case "deposit" | "close":
                name = {"deposit": "financial-deposited", "close": "account-closed"}[what]
                self.books.deposit(number, 0, {**closed(address, amount_uc), "event": name})
            case "owe":
                self.desk.bills.take_balance(address, -amount_uc)
            case "pay":
                self.desk.bills.pay(owner, amount_uc, f"p-{number}", number)
            case "claim":
                self.desk.claim(OWNERS.get)

    def happen(self, what, number, address, amount_uc, mishap):
        """One step, with what may come in between."""
        if mishap == "crash":
            with pytest.raises(ZeroDivisionError), self.books.atomic():
                self.book(what, number, address, amount_uc)
                1 / 0  # noqa: B018
        for _ in range(2 if mishap == "twice" else 1):
            with self.books.atomic():
                self.book(what, number, address, amount_uc)
        if mishap in ("crash", "restart"):
            self.desk = desk_on(self.books)

    def follow(self, what, number, address, amount_uc):
        """What is on the ledger after it."""
        match what:
            case "withdraw":
                self.on_ledger[address] += amount_uc
                if amount_uc:
                    state = self.books.withdrawal(OWNERS[address], f"w-{number}")
                    self.parts.append((state.reference, address, amount_uc))
            case "fail" if self.parts:
                _, failed, back_uc = self.parts.pop()
                self.on_ledger[failed] -= back_uc
            case "deposit" | "close":
                self.on_ledger[address] -= amount_uc
            case "pay":
                self.paid_uc += amount_uc

    @property
    def all_uc(self):
        private_uc = sum(self.books.balance_uc(who) for who in (HOME, OTHER))
        return private_uc + self.books.unclaimed_uc() + sum(self.on_ledger.values())


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_accounts_unclaimed_and_what_is_on_the_ledger_stay_constant(steps):
    """But for payments; told twice, after crashes and restarts, with debts and lost devices."""
    world = History()
    for number, (what, which, wanted_uc, mishap) in enumerate(steps):
        address = ADDRESSES[which]
        amount_uc = world.possible_uc(what, address, wanted_uc)
        world.happen(what, number, address, amount_uc, mishap)
        world.follow(what, number, address, amount_uc)
        assert world.all_uc == 2 * OPENING_UC + world.paid_uc
    world.books.close()


class Outbox:
    def __init__(self):
        self.sent = []

    def add(self, operations):
        self.sent.append([key for key, _ in operations])


def test_where_addresses_are_fresh_withdrawals_leave_together_in_an_order_by_lot():
    class Rng:
        def __init__(self):
            self.drawn = 0

        def bytes(self, size):
            self.drawn += 1
            return bytes([self.drawn]) * size

    desk = DsoDesk.__new__(DsoDesk)
    desk._batch_ms, desk._ready, desk._outbox, desk._rng = 20_000, {}, Outbox(), Rng()
    asked = [f"withdraw/{number}/0" for number in range(20)]
    for _ in range(2):
        for name in asked:
            desk._send([(name, {})])
            desk._send([(name, {})])  # asked again meanwhile
        assert desk._ready
        desk.send_batch()
        assert not desk._ready
    first, second = desk._outbox.sent
    assert sorted(first) == sorted(second) == sorted(asked)
    assert asked != first != second


def test_the_operator_sees_bills_and_books_what_was_paid(tmp_path, books):
    config = tmp_path / "aggregator.toml"
    config.write_text(
        '[market]\ngenesis = "genesis.json"\ncsmdb_box = "' + "A" * 43 + '"\n'
        "[accounts]\nopening_uc = 1000\ncredit_uc = 50\n"
    )
    assert tomllib.loads(config.read_text())["accounts"]["credit_uc"] == 50
    run = CliRunner().invoke
    assert "has not run yet" in str(run(cli.app, ["accounts", str(config)]).exception)
    (tmp_path / "data").mkdir()
    kept = Accounts(tmp_path / "data" / ACCOUNTS, 1000)
    kept.bind(ADDRESSES[0], HOME)
    desk = desk_on(kept)
    desk.take_event(3, closed(ADDRESSES[0], -1_600))
    assert f"{HOME}: -600 µ¤" in run(cli.app, ["accounts", str(config)]).output
    paying = ["pay", str(config), HOME, "600", "--reference", "invoice 1", "--json"]
    for booked in (True, False):
        assert json.loads(run(cli.app, paying).output) == {"booked": booked}
    out = run(cli.app, ["pay", str(config), HOME, "-5", "--reference", "back 1"]).output
    assert out == "booked\n"
    assert read_accounts(config) == [{"participant": HOME, "balanceUc": -5, "owedUc": 0}]
    kept.close()


def test_what_the_ledger_closes_is_what_the_owners_accounts_get():
    """From the chain's own blocks: a home in debt and one with money, both gone for a day."""
    rich, poor = key("rich"), key("poor")
    chain = Chain(genesis=make_genesis(privacy=Privacy(address_slots=4)))
    books = Accounts(":memory:", OPENING_UC)
    desk = desk_on(books)

    def told(time_ms, *txs):
        result = chain.block(time_ms, *txs)
        for event in result.events:
            desk.take_event(result.height, event)

    end = FIRST_SLOT + 3
    told(START_MS + 1, *(chain.tx(one, register(one, end_slot=end)) for one in (rich, poor)))
    with books.atomic():
        state = books.withdraw(HOME, "f", Withdrawal("w-1", rich.id, 70_000, []))
    [(_, operation)] = operations(state.asked, state.reference)
    told(START_MS + 2, chain.tx(SUPERVISOR, operation))
    for slot in range(FIRST_SLOT, end + 1):
        used = {rich: 0, poor: 1_000 if slot == FIRST_SLOT else 0}
        if slot == end:
            del used[poor]
        said = [chain.tx(one, receipt(one, slot, wh, chain.chain_id)) for one, wh in used.items()]
        told(slot_ms(slot + 1, 1), *said)
    owner = {rich.id: HOME, poor.id: OTHER}
    desk.claim(owner.get)
    assert desk.bills.owed_uc(OTHER) == 300_000
    told(slot_ms(end + 99))
    assert books.balance_uc(HOME) == OPENING_UC
    assert books.balance_uc(OTHER) == OPENING_UC - 1_800_000, "and a slot in silence"
    assert desk.bills.owed_uc(OTHER) == 0
    money = [chain.account(one) for one in (rich, poor)]
    assert money == [(0, 0), (0, 0)]
    books.close()
