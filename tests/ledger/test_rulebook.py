"""The rules as a participant knows them are those by which the chain settles."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chain_builder import FIRST_SLOT, make_genesis

from ledger.contracts import parameters
from ledger.rulebook import KEEP_SLOTS, RuleBook

RETAIL = "prices.retailUcPerKwh"
GENESIS = make_genesis()


def approved(path, value, slot):
    return {
        "event": "change-approved", "change": "c", "path": path, "value": value,
        "activationSlot": slot,
    }  # fmt: skip


def test_without_changes_the_genesis_holds():
    rules = RuleBook(GENESIS)
    assert rules.tariff(FIRST_SLOT).retail_uc_per_kwh == GENESIS.prices.retail_uc_per_kwh
    assert rules.gate_ms(FIRST_SLOT) == GENESIS.gate_ms(FIRST_SLOT)
    assert rules.reveal_ms(FIRST_SLOT) < rules.gate_ms(FIRST_SLOT)


def test_a_change_holds_from_its_slot_on_and_not_before():
    rules = RuleBook(GENESIS)
    before = rules.gate_ms(FIRST_SLOT + 10)
    assert rules.take_event(approved("gateLeadS", GENESIS.gate_lead_s + 60, FIRST_SLOT + 10))
    assert rules.gate_ms(FIRST_SLOT + 10) == before - 60_000
    assert rules.gate_ms(FIRST_SLOT + 9) == GENESIS.gate_ms(FIRST_SLOT + 9)


def test_an_event_told_twice_changes_nothing():
    rules = RuleBook(GENESIS)
    event = approved(RETAIL, 310_000, FIRST_SLOT + 5)
    assert rules.take_event(event) and not rules.take_event(event)
    assert rules.to_json() == {RETAIL: [[FIRST_SLOT + 5, 310_000]]}
    assert not rules.take_event({"event": "cleared", "slot": FIRST_SLOT})


def test_what_is_kept_is_read_again_and_nonsense_is_refused():
    rules = RuleBook(GENESIS)
    rules.take_event(approved(RETAIL, 310_000, FIRST_SLOT))
    again = RuleBook.kept(GENESIS, rules.to_json())
    assert again.tariff(FIRST_SLOT).retail_uc_per_kwh == 310_000
    with pytest.raises(msgspec.ValidationError):
        RuleBook.kept(GENESIS, {RETAIL: "310000"})


@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(250_000, 400_000)), max_size=8),
    st.integers(0, 900),
)
def test_forgetting_changes_no_slot_that_is_still_asked_for(changes, now):
    full, short = RuleBook(GENESIS), RuleBook(GENESIS)
    for slot, value in dict(changes).items():
        full.take_event(approved(RETAIL, value, slot))
        short.take_event(approved(RETAIL, value, slot))
    short.forget_before(now)
    for slot in range(max(0, now - KEEP_SLOTS), now + 100):
        assert short.of_slot(slot) == full.of_slot(slot)
        assert full.of_slot(slot) == parameters.parameters_of(
            GENESIS, parameters.values(full.to_json(), GENESIS, slot)
        )
