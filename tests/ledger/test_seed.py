"""Lots are drawn from hash onions: nobody can try out what it reveals."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chain_builder import OTHERS, VALIDATORS, Chain, events_of, join, key, make_genesis

from ledger.contracts.seed import fold
from ledger.genesis import GenesisValidator
from ledger.onion import Onion, wrap
from ledger.poe import build_schedule, schedule_seed
from wire.errors import ConfigError
from wire.keys import to_text

ANN = key("ann")
ONIONS = [Onion(f"secret {i}".encode(), 20) for i in range(4)]
NEW = OTHERS[0]


def founders():
    return tuple(
        GenesisValidator(
            id=k.id, key=to_text(k.public), controller=f"home-{i}", onion=to_text(ONIONS[i].tip)
        )
        for i, k in enumerate(VALIDATORS)
    )


@pytest.fixture
def chain():
    chain = Chain(genesis=make_genesis(validators=founders()))
    chain.settle_in(ANN)
    return chain


def reveal(layer):
    return {"op": "reveal-seed", "preimage": to_text(layer)}


def commit(tip):
    return {"op": "commit-seed", "tip": to_text(tip)}


def do(chain, who, *operations):
    return chain.codes(chain.ledger.time_ms + 1, who, *operations)


# --- the onion ------------------------------------------------------------------------------------


@given(st.binary(max_size=40), st.integers(1, 30))
def test_every_layer_is_the_hash_of_the_one_below(secret, layers):
    onion = Onion(secret, layers)
    assert onion.layer(0) == onion.tip
    for number in range(layers):
        assert wrap(onion.layer(number + 1)) == onion.layer(number)
        assert onion.under(onion.layer(number)) == onion.layer(number + 1)
    assert onion.under(onion.layer(layers)) is None
    assert onion.under(b"another") is None
    assert Onion(secret, layers + 5).layer(5) == onion.tip
    with pytest.raises(IndexError):
        onion.layer(layers + 1)


def test_an_onion_shows_neither_layers_nor_secret():
    assert repr(ONIONS[0]) == "Onion(20 layers)"
    assert Onion(b"a").tip != Onion(b"b").tip
    with pytest.raises(ValueError, match="layers"):
        Onion(b"a", 0)


# --- reveals --------------------------------------------------------------------------------------


def test_a_layer_joins_the_seed_and_becomes_the_next_commitment(chain):
    onion, before = ONIONS[0], chain.ledger.seed()
    tx = chain.tx(VALIDATORS[0], reveal(onion.layer(1)))
    result = chain.block(chain.ledger.time_ms + 1, tx)
    assert result.receipts[0].codes == ("OK",)
    assert events_of(result, "seed") == [{"event": "seed", "validator": VALIDATORS[0].id}]
    assert chain.ledger.seed() == fold(before, onion.layer(1))
    tip = chain.ledger.query(f"validator/{VALIDATORS[0].id}")["tip"]
    assert tip == to_text(onion.layer(1))
    chain.seal()
    assert do(chain, VALIDATORS[0], reveal(onion.layer(2))) == ["OK"]


def test_one_layer_an_epoch(chain):
    assert do(
        chain, VALIDATORS[0], reveal(ONIONS[0].layer(1)), reveal(ONIONS[0].layer(2))
    ) == ["OK", "RATE_LIMITED"]  # fmt: skip
    assert do(chain, VALIDATORS[1], reveal(ONIONS[1].layer(1))) == ["OK"]


def test_only_the_next_layer_of_ones_own_onion_opens(chain):
    assert do(
        chain, VALIDATORS[0], reveal(ONIONS[0].layer(2)), reveal(ONIONS[1].layer(1)),
        reveal(ONIONS[0].tip), {"op": "reveal-seed", "preimage": "short"},
    ) == ["BAD_PREIMAGE"] * 3 + ["MALFORMED"]  # fmt: skip
    assert chain.ledger.seed() == fold(b"", chain.chain_id.encode())


def test_who_has_no_seat_has_no_say(chain):
    assert do(chain, ANN, reveal(bytes(32)), commit(bytes(32))) == ["NOT_ALLOWED"] * 2
    assert do(chain, NEW, join(NEW, ONIONS[0].tip), reveal(ONIONS[0].layer(1))) == [
        "OK", "NOT_ALLOWED"
    ]  # fmt: skip
    plain = Chain()
    assert do(plain, VALIDATORS[0], reveal(ONIONS[0].layer(1))) == ["NOT_FOUND"]


def test_a_fresh_commitment_waits_until_the_seed_it_joins_is_unknown(chain):
    """Else a layer could be made to suit, committed to and opened at once."""
    made, me = Onion(b"made to suit", 5), VALIDATORS[0]
    assert do(chain, me, commit(made.tip), reveal(made.layer(1))) == ["OK", "TOO_SOON"]
    assert do(chain, me, reveal(ONIONS[0].layer(1))) == ["TOO_SOON"], "the old onion is void"
    chain.seal()
    assert do(chain, me, reveal(made.layer(1))) == ["TOO_SOON"]
    chain.seal()
    assert do(chain, me, reveal(made.layer(1))) == ["OK"]
    assert do(chain, me, commit(b"")) == ["MALFORMED"]


def test_a_joined_validator_opens_what_it_committed_to_when_joining(chain):
    onion = Onion(b"new", 3)
    do(chain, NEW, join(NEW, onion.tip))
    chain.seal()
    assert do(chain, NEW, reveal(onion.layer(1))) == ["TOO_SOON"]
    chain.seal()
    assert do(chain, NEW, reveal(onion.layer(1))) == ["OK"]


def test_the_genesis_names_onions_of_the_right_form():
    bad = (GenesisValidator(id=ANN.id, key=to_text(ANN.public), controller="a", onion="x"),)
    with pytest.raises(ConfigError, match="onion"):
        make_genesis(validators=bad)


# --- what the seed is for -------------------------------------------------------------------------


def test_the_schedule_is_drawn_from_the_seed_and_not_from_the_block(chain):
    """Two seal blocks that differ in time (or whatever a leader tries out) deal the same turns."""
    orders = []
    for offset_ms in (0, 5, 17):
        chain = Chain(genesis=make_genesis(validators=founders()))
        chain.block(chain.ledger.time_ms + 1)
        chain.block((chain.ledger.slot + 1) * 900_000 + offset_ms)
        orders.append((chain.epoch.base_hash, chain.epoch.schedule))
        seed = schedule_seed(chain.ledger.seed(), 2)
        expected = build_schedule(chain.genesis.poe, chain.ledger.candidates(), seed)
        assert chain.epoch.schedule == expected
    assert len({base for base, _ in orders}) == 3
    assert len({order for _, order in orders}) == 1


def test_a_reveal_changes_the_lots():
    orders = set()
    for opened in range(5):
        chain = Chain(genesis=make_genesis(validators=founders()))
        chain.block(chain.ledger.time_ms + 1)
        for number in range(opened):
            chain.block(
                chain.ledger.time_ms + 1,
                chain.tx(VALIDATORS[number], reveal(ONIONS[number].layer(1))),
            )
        chain.seal()
        orders.add(chain.epoch.schedule)
    assert len(orders) > 1


def test_the_seed_is_a_chain_of_hashes():
    label = b"hearthgrid-seed-v1\0"
    assert fold(b"s", b"layer") == hashlib.sha256(label + b"slayer").digest()
    assert schedule_seed(b"s", 1) != schedule_seed(b"s", 2)
