"""Changes of parameters: who has to agree, and that no slot before the activation is touched."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    FIRST_SLOT,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    asset,
    bid,
    events_of,
    key,
    make_genesis,
    receipt,
    slot_ms,
)

from ledger.contracts import parameters
from ledger.contracts.governance import change_id
from ledger.execution import ChainError
from ledger.genesis import Dso, Feeder, Rewards, Zone, max_reward_uc
from ledger.state import State
from wire.errors import ConfigError
from wire.keys import to_text

ANN, BOB, EVE, DSO = key("ann"), key("bob"), key("eve"), key("dso")
RETAIL = "prices.retailUcPerKwh"
SPOKEN = FIRST_SLOT + 1
PROPOSED = SPOKEN + 2
"""When the receipts of `SPOKEN` have just been settled."""
ACTIVE = PROPOSED + 100


def start(**changes):
    """A market in which Ann's and Bob's meters have spoken, and Eve's has not."""
    dso = Dso(address=DSO.id, key=to_text(DSO.public))
    chain = Chain(genesis=make_genesis(dso=dso, **changes))
    chain.settle_in(ANN, BOB, EVE)
    chain.block(
        slot_ms(SPOKEN + 1, 5),
        *(chain.tx(home, receipt(home, SPOKEN, 100, chain.chain_id)) for home in (ANN, BOB)),
    )
    chain.block(slot_ms(PROPOSED, 1))
    return chain


@pytest.fixture
def chain():
    return start()


def propose(path=RETAIL, value=400_000, slot=ACTIVE):
    return {"op": "propose-change", "path": path, "value": value, "activationSlot": slot}


def approve(path=RETAIL, value=400_000, slot=ACTIVE):
    return {"op": "approve-change", "change": change_id(path, value, slot)}


def say(chain, who, *operations):
    return chain.codes(chain.ledger.time_ms + 1, who, *operations)


def agree(chain, path=RETAIL, value=400_000, slot=ACTIVE):
    """All parties agree; the last word is Ann's."""
    assert say(chain, DSO, propose(path, value, slot)) == ["OK"]
    for party in (SUPERVISOR, *VALIDATORS[:3], ANN):
        assert say(chain, party, approve(path, value, slot)) == ["OK"], party


def value_in(chain, slot, path=RETAIL):
    return parameters.values(parameters.history(chain.ledger.state), chain.genesis, slot)[path]


def test_a_change_holds_from_its_activation_slot_and_not_before(chain):
    agree(chain)
    assert value_in(chain, ACTIVE - 1) == 300_000
    assert value_in(chain, ACTIVE) == value_in(chain, ACTIVE + 1000) == 400_000
    assert chain.ledger.query(f"change/{change_id(RETAIL, 400_000, ACTIVE)}") is None


@pytest.mark.parametrize("missing", [DSO, SUPERVISOR, VALIDATORS[0], ANN])
def test_without_any_one_of_the_parties_it_does_not_come(chain, missing):
    everybody = [DSO, SUPERVISOR, *VALIDATORS[:3], ANN]
    parties = [one for one in everybody if one != missing]
    proposer = next(one for one in parties if one != ANN)
    assert say(chain, proposer, propose()) == ["OK"]
    for party in parties:
        if party != proposer:
            assert say(chain, party, approve()) == ["OK"]
    assert value_in(chain, ACTIVE) == 300_000
    assert say(chain, missing, approve()) == ["OK"]
    assert value_in(chain, ACTIVE) == 400_000


def test_only_whose_meter_spoke_has_a_voice_and_only_one(chain):
    assert say(chain, DSO, propose()) == ["OK"]
    assert say(chain, EVE, approve()) == ["NOT_ALLOWED"]
    assert say(chain, ANN, approve(), approve()) == ["OK", "DUPLICATE"]
    row = chain.ledger.query(f"change/{change_id(RETAIL, 400_000, ACTIVE)}")
    assert (row["voters"], row["approvals"]["participants"]) == (2, 1)
    late = chain.codes(
        chain.ledger.time_ms + 1, EVE, receipt(EVE, SPOKEN, 0, chain.chain_id), approve()
    )
    assert late == ["OK", "NOT_ALLOWED"], "who may speak was counted when it was proposed"


def test_who_approves_names_the_very_content(chain):
    say(chain, DSO, propose())
    for other in (approve(value=400_001), approve(slot=ACTIVE + 1), approve("gateLeadS", 400_000)):
        assert say(chain, SUPERVISOR, other) == ["NOT_FOUND"]


def test_it_lapses_when_orders_for_its_slot_could_be_given(chain):
    say(chain, DSO, propose())
    result = chain.block(slot_ms(ACTIVE - 96))
    name = change_id(RETAIL, 400_000, ACTIVE)
    assert events_of(result, "change-lapsed") == [{"event": "change-lapsed", "change": name}]
    assert say(chain, SUPERVISOR, approve()) == ["NOT_FOUND"]
    assert not [k for k, _ in chain.ledger.state.scan("") if k.startswith("change")]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (propose("prices.none"), "NOT_FOUND"),
        (propose(value=-1), "QUANTITY_OUT_OF_RANGE"),
        (propose(value=10**10), "QUANTITY_OUT_OF_RANGE"),
        (propose(value="400000"), "QUANTITY_OUT_OF_RANGE"),
        (propose(value=True), "QUANTITY_OUT_OF_RANGE"),
        (propose("auctions.sealed", 1), "QUANTITY_OUT_OF_RANGE"),
        (propose("feeder.congestion", "ignore"), "QUANTITY_OUT_OF_RANGE"),
        (propose("feeder.zones.north", 10**10), "QUANTITY_OUT_OF_RANGE"),
        (propose("code.version", 0), "QUANTITY_OUT_OF_RANGE"),
        (propose(slot=PROPOSED + 96), "TOO_SOON"),
        (propose(slot=PROPOSED + 3_001), "SLOT_TOO_FAR"),
        ({**propose(), "value": 1.5}, "MALFORMED"),
        ({**propose(), "value": None}, "MALFORMED"),
    ],
)
def test_a_change_that_cannot_work_is_refused(operation, code):
    chain = start(feeder=Feeder(zones=(Zone(name="north", rating_w=1000),)))
    try:
        assert say(chain, DSO, operation) == [code]
    except Exception as error:  # the wire itself has no floats and no nulls
        assert type(error).__name__ == "MalformedError" and code == "MALFORMED"


def test_homes_do_not_propose_and_nobody_floods(chain):
    assert say(chain, ANN, propose()) == ["NOT_ALLOWED"]
    codes = say(chain, VALIDATORS[0], *(propose(value=value) for value in range(5)))
    assert codes == ["OK"] * 4 + ["RATE_LIMITED"]
    assert say(chain, DSO, propose(value=0)) == ["DUPLICATE"]


def test_one_slot_gets_one_value_of_a_parameter(chain):
    say(chain, SUPERVISOR, propose(value=500_000))
    agree(chain)
    assert say(chain, SUPERVISOR, propose(value=600_000)) == ["DUPLICATE"]
    for party in (DSO, *VALIDATORS[:3]):
        assert say(chain, party, approve(value=500_000)) == ["OK"]
    assert say(chain, ANN, approve(value=500_000)) == ["DUPLICATE"]
    assert value_in(chain, ACTIVE) == 400_000


def test_slots_are_settled_by_their_own_prices_however_late(chain):
    agree(chain)
    for slot in (ACTIVE - 1, ACTIVE):
        chain.block(slot_ms(slot + 1, 5), chain.tx(ANN, receipt(ANN, slot, 1000, chain.chain_id)))
    before, _ = chain.account(ANN)
    (settled,) = events_of(chain.block(slot_ms(ACTIVE + 2)), "settled")
    assert settled["slot"] == ACTIVE
    assert chain.account(ANN)[0] == before - 400_000
    receipts = [receipt(EVE, slot, 1000, chain.chain_id) for slot in (ACTIVE - 1, ACTIVE)]
    assert chain.codes(slot_ms(ACTIVE + 3), EVE, *receipts) == ["OK", "OK"]
    assert chain.account(EVE)[0] == 100_000_000 - 300_000 - 400_000


def test_a_new_gate_lead_moves_the_gates_from_its_slot_on(chain):
    agree(chain, "gateLeadS", 600)
    before = slot_ms(ACTIVE - 2)
    chain.block(before)
    for slot, lead in ((ACTIVE - 1, 300), (ACTIVE, 600)):
        at = slot_ms(slot, -lead)
        assert chain.codes(at - 1, ANN, bid("buy", slot, 100, 100_000)) == ["OK"]
        result = chain.block(at)
        assert [event["slot"] for event in events_of(result, "cleared")] == [slot]
        assert say(chain, ANN, bid("buy", slot, 100, 100_000)) == ["SLOT_CLOSED"]


def test_a_contract_that_was_switched_off_takes_nothing_new(chain):
    agree(chain, "template.double-auction", False)
    chain.block(slot_ms(ACTIVE - 1, 1))
    assert say(chain, ANN, bid("buy", ACTIVE + 1, 100, 100_000)) == ["OK"]
    chain.block(slot_ms(ACTIVE, 1))
    assert say(chain, ANN, bid("buy", ACTIVE + 1, 100, 100_000)) == ["NOT_ALLOWED"]


@pytest.mark.parametrize(
    ("operation", "template"),
    [
        ({"op": "commit-bid"}, "double-auction"),
        ({"op": "commit-bid", "auction": "short-of-sun"}, "auctions"),
        ({"op": "commit-bid", "auction": "@session"}, "schedules"),
        ({"op": "reveal-bid", "auction": "@session"}, None),
        ({"op": "accept-escrow"}, "escrow"),
        ({"op": "give-up"}, None),
        ({"op": "receipt"}, None),
    ],
)
def test_only_what_begins_something_belongs_to_a_switch(operation, template):
    assert parameters.template_of(operation) == template


def test_a_program_without_the_agreed_version_of_the_contracts_stops_and_says_so(chain):
    agree(chain, "code.version", 2)
    chain.block(slot_ms(ACTIVE, -1))
    with pytest.raises(ChainError, match=r"needs version 2 .* this program has 1"):
        chain.block(slot_ms(ACTIVE))


def test_without_a_dso_of_its_own_the_supervisor_speaks_for_both():
    chain = Chain()
    chain.settle_in(ANN)
    assert say(chain, SUPERVISOR, propose()) == ["OK"]
    for party in VALIDATORS[:3]:
        assert say(chain, party, approve()) == ["OK"]
    assert value_in(chain, ACTIVE) == 400_000, "no meter has spoken yet: nobody else to ask"


def test_the_feed_in_price_stays_where_burning_energy_for_rewards_does_not_pay():
    most = max_reward_uc(make_genesis())
    genesis = make_genesis(rewards=Rewards(per_block_uc=most // 4, max_blocks=4))
    path = "prices.feedInUcPerKwh"
    assert parameters.is_valid(genesis, path, 80_000)
    assert not parameters.is_valid(genesis, path, 40_000)
    with pytest.raises(ConfigError):
        make_genesis(rewards=Rewards(per_block_uc=most, max_blocks=4))


def test_the_dso_cannot_trade_or_fund(chain):
    grants = [asset(ANN, "production", 1, ACTIVE, ACTIVE), bid("buy", PROPOSED + 2, 1, 1)]
    assert say(chain, DSO, *grants) == ["NOT_ALLOWED", "UNKNOWN_SENDER"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000), st.sampled_from([RETAIL, "gateLeadS"]), st.integers(0, 900)
        ),
        max_size=8,
        unique_by=lambda change: change[:2],
    )
)
def test_an_approved_change_never_alters_an_earlier_slot(changes):
    genesis, state = make_genesis(), State()
    for activation_slot, path, value in changes:
        asked = range(max(0, activation_slot - 5), activation_slot + 1)
        before = [parameters.values(parameters.history(state), genesis, slot) for slot in asked]
        parameters.add(state, path, activation_slot, value, keep_slot=-1)
        after = [parameters.values(parameters.history(state), genesis, slot) for slot in asked]
        assert before[:-1] == after[:-1]
        assert after[-1] == {**before[-1], path: value}


@given(st.lists(st.integers(0, 50), min_size=1, unique=True), st.integers(0, 60))
def test_forgetting_old_changes_alters_nothing_that_is_asked_for(activations, keep_slot):
    genesis, short, long = make_genesis(), State(), State()
    for activation_slot in sorted(activations):
        parameters.add(short, RETAIL, activation_slot, activation_slot, keep_slot)
        parameters.add(long, RETAIL, activation_slot, activation_slot, -1)
    for slot in range(keep_slot, keep_slot + 60):
        found = [
            parameters.values(parameters.history(each), genesis, slot) for each in (short, long)
        ]
        assert found[0] == found[1]
