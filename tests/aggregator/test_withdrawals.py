"""Withdrawals: what the DSO allows, and private books from which nothing gets lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.brokers import make_key

from aggregator.accounts import Accounts
from aggregator.dso_desk import DsoDesk
from aggregator.withdrawals import SafetyPolicy, Standing, decide, operations
from market.assets import EnergyAsset, Kind, energy_at
from wire.errors import MalformedError
from wire.withdrawal import WantedAsset, Withdrawal, read_withdrawal

HOME, OTHER = make_key("home").id, make_key("other").id
ADDRESS, SECOND = make_key("address").id, make_key("second").id
NOW, SLOT_S = 100, 900
UNITS = 10**6


def wanted(kind, energy_wh, start=101, end=110):
    return WantedAsset(kind, energy_wh, start, end)


def ask(*assets, amount_uc=0, name="w-1", address=ADDRESS):
    return Withdrawal(name, address, amount_uc, list(assets))


def held(kind, energy_wh, start, end):
    return EnergyAsset(Kind(kind), energy_wh, start, end)


def standing(**changes):
    """A prosumer with a connection of 10 kW in (2500 Wh a slot) and 6 kW out (1500 Wh)."""
    facts = {
        "roles": frozenset({"prosumer"}), "banned": "", "feeder": "f", "max_import_w": 10_000,
        "max_export_w": 6_000, "holds_address": True, "registered": True, "balance_uc": UNITS,
        "own": (), "on_feeder": (),
    }  # fmt: skip
    return Standing(**{**facts, **changes})


def verdict(asked, who=None, policy=None, energy=True):
    failed = decide(
        asked, who or standing(), HOME, policy or SafetyPolicy(), NOW, SLOT_S, energy=energy
    )
    return failed and failed.refusal.value


PV = held("production", 1000, 105, 120)


@pytest.mark.parametrize(
    ("asked", "who", "policy", "refusal"),
    [
        (ask(amount_uc=UNITS), {}, {}, None),
        (ask(amount_uc=UNITS + 1), {}, {}, "INSUFFICIENT_FUNDS"),
        (ask(amount_uc=UNITS + 1), {}, {"credit_uc": 1}, None),
        (ask(amount_uc=UNITS), {"owed_uc": 1}, {}, "INSUFFICIENT_FUNDS"),
        (ask(amount_uc=UNITS), {"owed_uc": 1}, {"credit_uc": 1}, None),
        (ask(wanted("consumption", 1)), {"owed_uc": UNITS + 1}, {}, "IN_DEBT"),
        (ask(wanted("consumption", 1)), {"owed_uc": UNITS}, {}, None),
        (ask(wanted("consumption", 1)), {"balance_uc": -1}, {}, "IN_DEBT"),
        (ask(wanted("consumption", 1)), {"balance_uc": -1}, {"credit_uc": 1}, None),
        (ask(), {}, {}, "QUANTITY_OUT_OF_RANGE"),
        (ask(amount_uc=1), {"banned": "meter tampered with"}, {}, "BANNED"),
        (ask(amount_uc=1), {"holds_address": False}, {}, "NOT_ALLOWED"),
        (ask(amount_uc=1), {"registered": False}, {}, "NOT_FOUND"),
        (ask(wanted("production", 0)), {}, {}, "QUANTITY_OUT_OF_RANGE"),
        (ask(wanted("production", 1, 100)), {}, {}, "SLOT_CLOSED"),
        (ask(wanted("production", 1, 101, 5000)), {}, {}, "SLOT_TOO_FAR"),
        (ask(wanted("production", 1)), {"roles": frozenset({"consumer"})}, {}, "NOT_ALLOWED"),
        (ask(wanted("consumption", 1)), {"roles": frozenset({"producer"})}, {}, "NOT_ALLOWED"),
        (ask(wanted("production", 1500)), {}, {}, None),
        (ask(wanted("production", 1501)), {}, {}, "EXPORT_LIMIT"),
        (ask(wanted("consumption", 2500)), {}, {}, None),
        (ask(wanted("consumption", 2501)), {}, {}, "IMPORT_LIMIT"),
        (ask(wanted("production", 800), wanted("production", 701)), {}, {}, "EXPORT_LIMIT"),
        (ask(wanted("production", 501)), {"own": (PV,)}, {}, "EXPORT_LIMIT"),
        (ask(wanted("production", 501, 101, 104)), {"own": (PV,)}, {}, None),
        (ask(wanted("consumption", 2500)), {"own": (PV,)}, {}, None),
        (ask(wanted("production", 1001)), {}, {"plant_w": {HOME: 4000}}, "PRODUCTION_CAPACITY"),
        (ask(wanted("production", 1001)), {}, {"plant_w": {OTHER: 4000}}, None),
        (ask(wanted("production", 501)), {"on_feeder": (PV,)}, {"feeder_w": {"f": 6000}},
         "FEEDER_RATING"),
        (ask(wanted("production", 500)), {"on_feeder": (PV,)}, {"feeder_w": {"f": 6000}}, None),
        (ask(wanted("production", 501)), {"on_feeder": (PV,)}, {"feeder_w": {"g": 0}}, None),
    ],
)  # fmt: skip
def test_a_withdrawal_passes_every_limit_or_fails_by_its_name(asked, who, policy, refusal):
    assert verdict(asked, standing(**who), SafetyPolicy(**policy)) == refusal


def test_where_energy_is_given_at_registration_money_only_is_withdrawn():
    assert verdict(ask(wanted("production", 1)), energy=False) == "NOT_ALLOWED"
    assert verdict(ask(amount_uc=1), energy=False) is None


@pytest.mark.parametrize(
    "broken",
    [
        {}, {"withdrawal": "UP"}, {"withdrawal": ""}, {"address": "me"}, {"amountUc": -1},
        {"amountUc": 2**53}, {"amountUc": 1.5}, {"assets": [{}]},
        {"assets": [{"kind": "heat", "energyWh": 1, "startSlot": 1, "endSlot": 1}]},
        {"assets": [{"kind": "production", "energyWh": 1, "startSlot": 2, "endSlot": 1}]},
        {"assets": [{"kind": "production", "energyWh": 1, "startSlot": 1, "endSlot": 1}] * 17},
    ],
)  # fmt: skip
def test_a_request_of_another_form_is_malformed(broken):
    good = {"withdrawal": "w-1", "address": ADDRESS, "amountUc": 1, "assets": []}
    assert read_withdrawal(good).amount_uc == 1
    with pytest.raises(MalformedError):
        read_withdrawal({**good, **broken} if broken else {})


# --- books ----------------------------------------------------------------------------------------


@pytest.fixture
def accounts():
    opened = Accounts(":memory:", opening_uc=UNITS)
    yield opened
    opened.close()


def withdraw(accounts, asked, participant=HOME, feeder="f"):
    with accounts.atomic():
        return accounts.withdraw(participant, feeder, asked)


def paid_back(amount_uc, address=ADDRESS):
    return {"event": "financial-deposited", "address": address, "amountUc": amount_uc}


def returned(kind, energy_wh, start, end, address=ADDRESS):
    return {
        "event": "asset-deposited", "address": address, "kind": kind, "energyWh": energy_wh,
        "startSlot": start, "endSlot": end,
    }  # fmt: skip


def test_a_withdrawal_becomes_the_supervisors_operations_and_names_no_participant(accounts):
    state = withdraw(accounts, ask(wanted("production", 70), amount_uc=5))
    made = operations(state.asked, state.reference)
    assert made == [
        ("withdraw/1/0", {"op": "add-energy-asset", "address": ADDRESS, "kind": "production",
                          "energyWh": 70, "startSlot": 101, "endSlot": 110}),
        ("withdraw/1/1", {"op": "add-financial-balance", "address": ADDRESS, "amountUc": 5}),
    ]  # fmt: skip
    assert HOME not in str(made)
    assert accounts.balance_uc(HOME) == UNITS - 5


def test_what_the_ledger_refuses_is_booked_back_once(accounts):
    state = withdraw(accounts, ask(wanted("production", 70), amount_uc=5))
    for _ in range(2):
        accounts.finish(state.reference, 0, "NOT_FOUND")
        accounts.finish(state.reference, 1, "NOT_FOUND")
    assert accounts.balance_uc(HOME) == UNITS
    assert accounts.energy(NOW, participant=HOME) == ()
    assert accounts.withdrawal(HOME, "w-1").status == "failed"
    assert accounts.withdrawal(HOME, "w-1").reason == "NOT_FOUND"


def test_unfinished_withdrawals_are_found_again_until_all_parts_are_final(accounts):
    state = withdraw(accounts, ask(wanted("production", 70), amount_uc=5))
    accounts.finish(state.reference, 0, "OK")
    assert [one.reference for one in accounts.unfinished()] == [state.reference]
    accounts.finish(state.reference, 1, "OK")
    assert accounts.unfinished() == []
    assert accounts.withdrawal(HOME, "w-1").status == "done"


def test_a_deposit_is_credited_once_to_whom_the_address_belongs(accounts):
    withdraw(accounts, ask(amount_uc=5))
    for _ in range(2):
        accounts.deposit(7, 0, paid_back(3))
        accounts.deposit(7, 1, paid_back(3))
    assert accounts.balance_uc(HOME) == UNITS + 1
    assert accounts.balance_uc(OTHER) == UNITS


def test_a_deposit_of_an_unknown_address_waits_for_its_owner(accounts):
    accounts.deposit(7, 0, paid_back(9, SECOND))
    assert (accounts.unclaimed_uc(), accounts.unclaimed()) == (9, [SECOND])
    accounts.bind(SECOND, HOME)
    assert (accounts.unclaimed_uc(), accounts.balance_uc(HOME)) == (0, UNITS + 9)


def test_returned_energy_makes_room_and_what_was_not_withdrawn_does_not(accounts):
    withdraw(accounts, ask(wanted("production", 1000, 101, 110)))
    accounts.deposit(7, 0, returned("production", 400, 105, 200))
    own = accounts.energy(NOW, participant=HOME)
    assert [energy_at(own, slot) for slot in (101, 104, 105, 110, 111)] == [
        1000, 1000, 600, 600, 0,
    ]  # fmt: skip
    assert accounts.energy(NOW, feeder="f") == own
    accounts.deposit(8, 0, returned("consumption", 400, 101, 110))
    assert accounts.energy(NOW, participant=HOME) == own


def test_energy_on_a_feeder_is_that_of_all_its_homes(accounts):
    withdraw(accounts, ask(wanted("production", 300)))
    withdraw(accounts, ask(wanted("production", 200), address=SECOND), participant=OTHER)
    withdraw(accounts, ask(wanted("production", 9), name="w-2"), feeder="g")
    assert energy_at(accounts.energy(NOW, feeder="f"), 101) == 500
    assert energy_at(accounts.energy(NOW, participant=HOME), 101) == 309


def test_the_books_survive_a_restart(tmp_path):
    books = Accounts(tmp_path / "accounts.sqlite", UNITS)
    withdraw(books, ask(amount_uc=400))
    books.close()
    again = Accounts(tmp_path / "accounts.sqlite", UNITS)
    assert again.balance_uc(HOME) == UNITS - 400
    assert [one.asked.amount_uc for one in again.unfinished()] == [400]
    again.close()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("out"), st.sampled_from([HOME, OTHER]), st.integers(0, 400_000),
                  st.integers(0, 500)),
        st.tuples(st.just("done"), st.integers(1, 12), st.integers(0, 1),
                  st.sampled_from(["OK", "NOT_FOUND"])),
        st.tuples(st.just("back"), st.integers(1, 12), st.integers(1, 500), st.integers(0, 5)),
    ),
    max_size=25,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(steps)
def test_accounts_and_what_is_on_the_ledger_through_them_add_up(taken):
    """In any order of withdrawals, refusals, deposits and events that are told again."""
    books = Accounts(":memory:", opening_uc=UNITS)
    on_ledger = 0
    withdrawn = 0
    final: set[tuple[int, int]] = set()
    deposits: set[int] = set()
    for number, (what, *facts) in enumerate(taken):
        if what == "out":
            who, amount_uc, energy_wh = facts
            amount_uc = min(amount_uc, books.balance_uc(who))
            assets = [wanted("production", energy_wh)] if energy_wh else []
            address = ADDRESS if who == HOME else SECOND
            asked = ask(*assets, amount_uc=amount_uc, name=f"w-{number}", address=address)
            withdraw(books, asked, participant=who)
            withdrawn += 1
            on_ledger += amount_uc
        elif what == "done":
            reference, part, code = facts
            before = books.balance_uc(HOME) + books.balance_uc(OTHER)
            books.finish(str(reference), part, code)
            back_uc = books.balance_uc(HOME) + books.balance_uc(OTHER) - before
            assert back_uc == 0 or ((reference, part) not in final and code != "OK")
            if reference <= withdrawn:  # of one that does not exist yet nothing is settled
                final.add((reference, part))
            on_ledger -= back_uc
        else:
            height, amount_uc, energy_wh = facts
            amount_uc = min(amount_uc, on_ledger)
            books.deposit(height, 0, paid_back(amount_uc))
            if energy_wh:
                books.deposit(height, 1, returned("production", energy_wh, 100, 105))
            on_ledger -= 0 if height in deposits else amount_uc
            deposits.add(height)
        private = books.balance_uc(HOME) + books.balance_uc(OTHER) + books.unclaimed_uc()
        assert private + on_ledger == 2 * UNITS
        own = [books.energy(NOW, participant=who) for who in (HOME, OTHER)]
        feeder = books.energy(NOW, feeder="f")
        assert energy_at([*own[0], *own[1]], 103) == energy_at(feeder, 103)
    books.close()


def test_a_deposit_that_could_not_be_booked_at_once_is_booked_once(monkeypatch):
    books = Accounts(":memory:", 0)
    desk = DsoDesk.__new__(DsoDesk)
    desk.accounts, desk._deposits_of = books, (-1, 0)
    with books.atomic():
        books.bind("hg1address", "hg1me")
    event = {"event": "financial-deposited", "address": "hg1address", "amountUc": 100}

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(books, "deposit", full)
        desk.take_event(7, event)
    desk.take_event(7, event)  # told again until it is taken
    desk._deposits_of = (-1, 0)  # a restart: height 7 is read again
    desk.take_event(7, event)
    assert books.balance_uc("hg1me") == 100
