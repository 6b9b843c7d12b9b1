"""The book of addresses: each slot has one address, for ever, whatever happens in between."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chain_builder import FIRST_SLOT, ISSUER, MARKET

from hem.ems.addresses import BATCH, AddressBook, OneAddress, kept_grants
from hem.ems.keyring import Keyring
from runtime.rng import SystemRng
from runtime.store import MemoryStore
from wire.certificates import AddressGrant, seal
from wire.keys import to_text
from wire.rotation import Rotation
from wire.slots import SlotGrid

CHAIN = "hg-test-1"
RULE = Rotation(SlotGrid(), 4, 2)


@pytest.fixture(scope="module")
def keyring(tmp_path_factory):
    return Keyring(tmp_path_factory.mktemp("keys"), SystemRng())


def granted(book, period, slot):
    """What the CSM-DB answers."""
    key, (first, last) = book.key(period), book.window(period, slot)
    grant = AddressGrant(
        address=key.id, key=to_text(key.public), meter_key=to_text(key.derive("meter").public),
        can_buy=True, can_sell=True, max_buy_wh=1_000, max_sell_wh=1_000,
        start_slot=first, end_slot=last,
    )  # fmt: skip
    return seal(grant, ISSUER, MARKET)


def fetch(book, slot):
    book.keep({period: granted(book, period, slot) for period in book.missing(slot)})


@settings(max_examples=30, deadline=None)
@given(
    rule=st.builds(Rotation, st.just(SlotGrid()), st.integers(1, 30), st.integers(2, 12)),
    story=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["ask", "away", "restart"]))),
)
def test_each_slot_has_one_address_whatever_happens(keyring, rule, story):
    """Days offline, a CSM-DB that is away, restarts: no two windows share a slot."""
    store, slot, seen = MemoryStore(), FIRST_SLOT, {}
    book = AddressBook(store, keyring, CHAIN, rule)
    for slots, what in story:
        slot += slots
        if what == "ask":
            fetch(book, slot)
            assert not book.is_urgent(slot)
            assert book.grant_of(slot + 1) is not None
        elif what == "restart":
            book = AddressBook(store, keyring, CHAIN, rule)
        taken = {}
        for _, grant in book.live():
            for one in range(grant.start_slot, grant.end_slot + 1):
                assert one not in taken, "two addresses for one slot"
                taken[one] = grant.address
                assert book.grant_of(one) == grant
        for one, address in taken.items():
            assert seen.setdefault(one, address) == address, "a slot's address never changes"
        assert len(set(taken.values())) == len(book.live())
        book.forget_before(slot - 192)


def test_a_batch_is_what_the_csmdb_gives_and_reaches_over_a_day(keyring):
    book = AddressBook(MemoryStore(), keyring, CHAIN, RULE)
    assert len(book.missing(FIRST_SLOT)) == 25
    fetch(book, FIRST_SLOT)
    assert book.missing(FIRST_SLOT + 44) == []
    assert len(book.missing(FIRST_SLOT + 60)) <= BATCH
    short = AddressBook(MemoryStore(), keyring, CHAIN, Rotation(SlotGrid(), 1, 2))
    assert len(short.missing(FIRST_SLOT)) == BATCH
    while short.missing(FIRST_SLOT):
        fetch(short, FIRST_SLOT)
    assert short.grant_of(FIRST_SLOT + 48) is not None


def test_nothing_is_asked_for_beyond_a_trials_end(keyring):
    book = AddressBook(MemoryStore(), keyring, CHAIN, RULE, FIRST_SLOT + 9)
    fetch(book, FIRST_SLOT)
    assert book.end_slot == FIRST_SLOT + 9
    assert book.missing(FIRST_SLOT + 9) == book.missing(FIRST_SLOT + 20) == []
    assert not book.is_urgent(FIRST_SLOT + 20)


def test_a_grant_that_reaches_into_another_period_is_not_kept(keyring):
    book = AddressBook(MemoryStore(), keyring, CHAIN, RULE)
    period = RULE.period(FIRST_SLOT)
    other = granted(book, period + 1, FIRST_SLOT)
    with pytest.raises(ValueError, match="is not for period"):
        book.keep({period: other})
    assert book.grant_of(FIRST_SLOT) is None


def test_a_restored_home_has_the_addresses_that_it_had(tmp_path):
    """Also those of periods after the backup was made: keys come from the period."""
    before = AddressBook(MemoryStore(), Keyring(tmp_path, SystemRng()), CHAIN, RULE)
    after = AddressBook(MemoryStore(), Keyring(tmp_path, SystemRng()), CHAIN, RULE)
    other_chain = AddressBook(MemoryStore(), Keyring(tmp_path, SystemRng()), "hg-test-2", RULE)
    for period in (0, 1, 10**6):
        assert before.key(period).seed == after.key(period).seed
        assert before.key(period).id not in (before.key(period + 1).id, other_chain.key(period).id)


def test_moments_are_drawn_anew_for_each_address_and_purpose(keyring):
    book = AddressBook(MemoryStore(), keyring, CHAIN, RULE)
    drawn = [book.chance(period, what) for period in range(300) for what in ("register", "fund")]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= one < 1 for one in drawn)
    tenths = [int(one * 10) for one in drawn]
    assert min(tenths.count(tenth) for tenth in range(10)) > 30, "uniform"


def test_what_is_over_is_not_looked_after_but_remembered_for_late_events(keyring):
    store = MemoryStore()
    book = AddressBook(store, keyring, CHAIN, RULE)
    fetch(book, FIRST_SLOT)
    (period, grant), *_ = book.live()
    book.retire(period)
    for one in (book, AddressBook(store, keyring, CHAIN, RULE)):
        assert period not in [p for p, _ in one.live()]
        assert grant.address in one and one.is_over(grant.start_slot)
    assert book.forget_before(grant.end_slot + 1) == [grant.address]
    assert grant.address not in book
    assert grant not in kept_grants(store)


def test_one_address_is_for_the_slots_of_its_grant(keyring):
    book = AddressBook(MemoryStore(), keyring, CHAIN, RULE)
    grant = granted(book, RULE.period(FIRST_SLOT) + 1, FIRST_SLOT)
    one = OneAddress(grant)
    assert one.grant_of(grant.start_slot) == one.grant_of(grant.end_slot) == grant
    assert one.grant_of(grant.end_slot + 1) is None is OneAddress().grant_of(0)
    assert grant.address in one and "other" not in one
