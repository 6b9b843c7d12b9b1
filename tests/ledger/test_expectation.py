"""Where addresses change, the first slots of one are settled also when nothing is said in them."""

from __future__ import annotations

import pytest
from support.chain_builder import (
    FIRST_SLOT,
    Chain,
    events_of,
    key,
    make_genesis,
    receipt,
    register,
    slot_ms,
)

from ledger.genesis import Privacy

HOME = key("home")
FIRST = FIRST_SLOT + 4


@pytest.fixture
def changing():
    return Chain(genesis=make_genesis(privacy=Privacy(address_slots=4)))


def registered(chain, at_slot):
    tx = chain.tx(HOME, register(HOME, start_slot=FIRST, end_slot=FIRST + 3))
    assert chain.block(slot_ms(at_slot, 1), tx).receipts[0].codes == ("OK",)


def settled(chain, until_slot):
    found = []
    for slot in range(chain.ledger.slot + 1, until_slot + 1):
        found += events_of(chain.block(slot_ms(slot, 1)), "settled")
    return found


def test_an_address_that_is_registered_ahead_is_expected_from_its_first_slot_on(changing):
    registered(changing, FIRST - 2)
    found = settled(changing, FIRST + 8)
    assert [event["slot"] for event in found] == [FIRST + n for n in range(4)]
    assert all(event["missing"] == [HOME.id] for event in found)


def test_its_late_receipt_pays_the_difference(changing):
    registered(changing, FIRST - 3)
    settled(changing, FIRST + 2)
    said = receipt(HOME, FIRST, 100, changing.chain_id)
    result = changing.block(slot_ms(FIRST + 2, 60), changing.tx(HOME, said))
    (event,) = events_of(result, "trued-up")
    assert event["slot"] == FIRST and event["assumedNetWh"] == 5_000


def test_one_that_comes_late_is_expected_when_it_has_spoken(changing):
    registered(changing, FIRST)
    found = settled(changing, FIRST + 8)
    assert [event["slot"] for event in found] == [FIRST + 2, FIRST + 3]


def test_where_addresses_last_nothing_is_expected_before_the_first_receipt():
    chain = Chain(genesis=make_genesis())
    registered(chain, FIRST - 2)
    assert settled(chain, FIRST + 8) == []
