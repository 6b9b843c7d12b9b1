"""Validators join and leave on the chain: slowly, by name, and the same on every node."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.chain_builder import (
    OTHERS,
    START_MS,
    SUPERVISOR,
    VALIDATORS,
    Chain,
    bid,
    cpf,
    events_of,
    join,
    key,
    licence_for,
    make_genesis,
    register,
)

from ledger.contracts import validators
from ledger.execution import ChainError
from ledger.genesis import GenesisValidator, Membership, write_genesis
from ledger.membership import (
    Standing,
    Status,
    faults,
    next_members,
)
from ledger.schedule import Epochs
from ledger.store import LedgerStore
from ledger.verify import verify_folder
from wire.keys import to_text

ANN = key("ann")
NEW = OTHERS[0]
LEAVE = {"op": "leave-validator"}


def founders(count, controller=None):
    return tuple(
        GenesisValidator(id=k.id, key=to_text(k.public), controller=controller or f"home-{i}")
        for i, k in enumerate((*VALIDATORS, *OTHERS[20:])[:count])
    )


@pytest.fixture
def chain():
    chain = Chain()
    chain.settle_in(ANN)
    return chain


def ids(chain, epoch=None):
    found = chain.epochs.validators_of(chain.epoch.epoch if epoch is None else epoch)
    return list(found.ids)


def soon(chain):
    return chain.ledger.time_ms + 1


def seals(chain, count):
    return [chain.seal() for _ in range(count)]


def row(chain, who):
    return chain.ledger.query(f"validator/{who.id}")


# --- joining --------------------------------------------------------------------------------------


def test_a_licence_brings_a_seat_two_seals_later_and_the_seals_announce_it(chain):
    assert chain.codes(soon(chain), NEW, join(NEW)) == ["OK"]
    assert row(chain, NEW)["status"] == "candidate"
    first, second = seals(chain, 2)
    assert not events_of(first, "validators"), "the set that begins here is the old one"
    [event] = events_of(second, "validators")
    assert event["epoch"] == 2
    assert (
        [one["id"] for one in event["validators"]]
        == ids(chain)
        == [v.id for v in VALIDATORS] + [NEW.id]
    )
    assert event["validators"][-1] == {
        "id": NEW.id, "key": to_text(NEW.public), "controller": f"party of {NEW.id[:12]}"
    }  # fmt: skip
    assert row(chain, NEW)["status"] == "active"
    assert row(chain, NEW)["sinceEpoch"] == 2
    assert set(chain.epoch.schedule) == set(range(5))
    assert not events_of(chain.seal(), "validators")


def test_a_seal_names_the_validators_of_the_epoch_it_begins(chain):
    chain.codes(soon(chain), NEW, join(NEW))
    for _ in range(3):
        following = chain.epochs.next_validators(chain.epoch.epoch)
        chain.seal()
        assert chain.epoch.validators == following == chain.epochs.validators
        header = chain.store.tip.header
        assert header.next_validators_hash == following.hash
    assert following.n == 5


def test_whoever_has_no_licence_of_the_issuer_is_unknown(chain):
    expired = join(NEW, not_after_ms=START_MS)
    for operation in (
        join(VALIDATORS[0]),
        {**join(NEW), "licence": {**licence_for(NEW), "controller": "me"}},
        {**join(NEW), "licence": {}},
        expired,
        join(NEW, not_before_ms=START_MS * 2),
        join(NEW, controller=""),
        LEAVE,
    ):
        result = chain.block(soon(chain), chain.tx(NEW, operation, nonce=0))
        assert result.receipts[0].code == "UNKNOWN_SENDER", operation
        assert row(chain, NEW) is None
        assert chain.ledger.query(f"account/{NEW.id}") is None


def test_a_known_sender_hears_by_name_why_it_cannot_join(chain):
    assert chain.codes(
        soon(chain),
        ANN,
        join(NEW),
        {**join(NEW), "licence": {**licence_for(NEW), "controller": "me"}},
        join(ANN, not_after_ms=START_MS),
        {**join(ANN), "tip": "short"},
        {**join(ANN), "more": 1},
        LEAVE,
    ) == ["NOT_ALLOWED", "BAD_SIGNATURE", "BAD_CERTIFICATE", "MALFORMED", "MALFORMED", "NOT_FOUND"]
    assert chain.codes(soon(chain), SUPERVISOR, join(SUPERVISOR)) == ["BAD_CERTIFICATE"]
    assert chain.codes(soon(chain), ANN, join(ANN)) == ["OK"], "a home may validate too"


def test_joining_twice_is_refused_and_a_later_licence_renews(chain):
    assert chain.codes(soon(chain), NEW, join(NEW), join(NEW)) == ["OK", "DUPLICATE"]
    later = START_MS + 10**10
    assert chain.codes(
        soon(chain), NEW, join(NEW, not_after_ms=later, controller="other"),
        join(NEW, not_after_ms=later),
    ) == ["NOT_ALLOWED", "OK"]  # fmt: skip
    assert row(chain, NEW)["notAfterMs"] == later
    founder = VALIDATORS[0]
    assert chain.codes(soon(chain), founder, join(founder)) == ["DUPLICATE"]


def test_the_number_of_candidates_is_bounded(chain, monkeypatch):
    monkeypatch.setattr(validators, "MAX_KNOWN", 5)
    assert chain.codes(soon(chain), NEW, join(NEW)) == ["OK"]
    assert chain.codes(soon(chain), OTHERS[1], join(OTHERS[1])) == ["RATE_LIMITED"]


def test_a_validator_sends_transactions_but_does_not_trade(chain):
    chain.seal()
    said = cpf(VALIDATORS[0], chain.ledger.slot - 1, 60_000, chain.chain_id)
    assert chain.codes(
        soon(chain), VALIDATORS[0], bid("buy", chain.ledger.slot + 3, 1, 1), said,
        {"op": "add-financial-balance", "address": ANN.id, "amountUc": 1},
    ) == ["UNKNOWN_SENDER", "OK", "NOT_ALLOWED"]  # fmt: skip
    assert chain.codes(soon(chain), ANN, cpf(NEW, chain.ledger.slot - 1, 1, chain.chain_id)) == [
        "NOT_FOUND"
    ]


# --- leaving --------------------------------------------------------------------------------------


def test_a_candidate_leaves_at_once(chain):
    assert chain.codes(soon(chain), NEW, join(NEW), LEAVE, LEAVE) == ["OK", "OK", "NOT_FOUND"]
    assert row(chain, NEW) is None
    seals(chain, 3)
    assert len(ids(chain)) == 4


def test_of_four_nobody_leaves_before_a_fifth_has_come(chain):
    gone = VALIDATORS[1]
    assert chain.codes(soon(chain), gone, LEAVE, LEAVE) == ["OK", "DUPLICATE"]
    seals(chain, 3)
    assert gone.id in ids(chain)
    assert chain.codes(soon(chain), gone, join(gone)) == ["DUPLICATE"]
    chain.codes(soon(chain), NEW, join(NEW))
    sizes = []
    for _ in range(4):
        chain.seal()
        sizes.append(len(ids(chain)))
    assert sizes == [4, 5, 4, 4]
    assert gone.id not in ids(chain)
    assert row(chain, gone) is None
    assert chain.ledger.next_nonce(gone.id) == 2, "its nonce still guards against replays"
    assert chain.codes(soon(chain), gone, join(gone)) == ["OK"], "it may come back"


def test_who_leaves_stays_known_while_it_still_validates():
    chain = Chain(genesis=make_genesis(validators=founders(5)))
    chain.codes(START_MS + 1, VALIDATORS[1], LEAVE)
    chain.seal()
    assert VALIDATORS[1].id not in ids(chain, 2)
    assert VALIDATORS[1].id in ids(chain)
    assert row(chain, VALIDATORS[1])["status"] == "leaving"
    chain.seal()
    assert row(chain, VALIDATORS[1]) is None


def test_a_licence_that_ends_ends_the_service():
    chain = Chain(genesis=make_genesis(validators=founders(5)))
    ends = START_MS + 4 * 900_000
    chain.codes(START_MS + 1, NEW, join(NEW, not_after_ms=ends))
    seals(chain, 2)
    assert NEW.id in ids(chain)
    seals(chain, 4)
    assert NEW.id not in ids(chain)
    assert row(chain, NEW) is None


def test_old_sets_are_forgotten():
    chain = Chain(genesis=make_genesis(membership=Membership(evidence_epochs=3)))
    seals(chain, 6)
    known = [epoch for epoch in range(12) if chain.epochs.validators_of(epoch) is not None]
    assert known == [4, 5, 6, 7], "the running, the next, and two before"
    assert not [key for key, _ in chain.ledger.state.scan("validators/") if int(key[11:]) < 4]


# --- standing sets --------------------------------------------------------------------------------


def test_more_candidates_than_seats_take_turns_one_by_one():
    genesis = make_genesis(validators=founders(7), membership=Membership(max_validators=7))
    chain = Chain(genesis=genesis)
    for number, one in enumerate(OTHERS[:3]):
        chain.block(START_MS + 1 + number, chain.tx(one, join(one)))
    seen, before = set(), set(ids(chain))
    for _ in range(24):
        chain.seal()
        now = set(ids(chain))
        assert len(now) == 7
        assert len(before - now) <= 1
        seen |= now
        before = now
    assert len(seen) == 10, "everybody had a seat"


def test_one_controller_gets_no_more_votes_than_may_fail(chain):
    for one in OTHERS[:3]:
        chain.block(soon(chain), chain.tx(one, join(one, controller="giant")))
    seals(chain, 8)
    assert len(ids(chain)) == 5, "of five one may fail"
    others = OTHERS[5:10]
    for one in others:
        chain.block(soon(chain), chain.tx(one, join(one)))
    seals(chain, 16)
    votes = list(chain.epochs.controllers(chain.epoch.epoch).values()).count("giant")
    assert len(ids(chain)) == 12
    assert votes == 3 == faults(12)


# --- one step -------------------------------------------------------------------------------------


def people(prefix, count, status, controller=None):
    return {
        f"{prefix}{i}": Standing(controller or f"party {prefix}{i}", status.value, i)
        for i in range(count)
    }


@pytest.mark.parametrize(
    ("size", "changes"), [(1, 1), (3, 1), (4, 1), (6, 1), (7, 2), (10, 3), (31, 10)]
)
def test_a_step_seats_or_lets_go_no_more_than_may_fail(size, changes):
    members = people("v", size, Status.ACTIVE)
    crowd = people("w", 40, Status.CANDIDATE)
    assert len(next_members(list(members), members | crowd, b"", 100)) == size + changes
    for status in (Status.LEAVING, Status.BANNED):
        members = people("v", size, status)
        after = next_members(list(members), members, b"", 100)
        assert len(after) == max(size - changes, min(size, 4) if size > 3 else 1)
    mixed = people("v", size - 1, Status.ACTIVE) | people("x", 1, Status.BANNED)
    after = next_members(list(mixed), mixed | crowd, b"", 100)
    assert len(set(after) ^ set(mixed)) == changes


@pytest.mark.parametrize(("size", "votes"), [(4, 1), (5, 1), (7, 2), (10, 3)])
def test_a_step_seats_no_vote_of_a_controller_that_has_as_many_as_may_fail(size, votes):
    members = people("v", size - votes, Status.ACTIVE) | people("g", votes, Status.ACTIVE, "giant")
    one_more = people("w", 1, Status.CANDIDATE, "giant")
    assert next_members(list(members), members | one_more, b"", 100) == tuple(members)


def test_joined_votes_that_became_too_many_make_room_but_founders_stay():
    members = people("v", 4, Status.ACTIVE) | people("g", 2, Status.ACTIVE, "giant")
    assert set(members) - set(next_members(list(members), members, b"", 100)) == {"g1"}
    founding = {name: Standing(one.controller, one.status, 0, founder=True)
                for name, one in members.items()}  # fmt: skip
    assert next_members(list(founding), founding, b"", 100) == tuple(founding)


# --- properties -----------------------------------------------------------------------------------

SEATED = [Status.ACTIVE, Status.LEAVING, Status.BANNED]


def standings(*statuses):
    return st.builds(
        Standing,
        controller=st.sampled_from(["a", "b", "c", "d", "e", "f"]),
        status=st.sampled_from([str(status.value) for status in statuses]),
        since_epoch=st.integers(0, 5),
        founder=st.booleans(),
    )


@given(st.data(), st.integers(1, 31), st.binary(max_size=4))
def test_a_step_is_bounded_and_never_below_what_is_safe(data, size, seed):
    current = [f"v{i}" for i in range(size)]
    known = {name: data.draw(standings(*SEATED)) for name in current}
    for i in range(data.draw(st.integers(0, 10))):
        known[f"w{i}"] = data.draw(standings(Status.CANDIDATE, Status.LEAVING, Status.BANNED))
    most = data.draw(st.integers(size, 33))
    after = next_members(current, known, seed, most)
    gone, come = set(current) - set(after), set(after) - set(current)
    assert len(gone) + len(come) <= max(1, (size - 1) // 3)
    assert (4 if size >= 4 else 1) <= len(after) <= most
    assert len(set(after)) == len(after)
    assert [one for one in current if one in after] == list(after[: len(current) - len(gone)])
    assert all(known[one].status == Status.CANDIDATE for one in come)
    assert after == next_members(current, dict(reversed(known.items())), seed, most)
    for one in come:
        votes = sum(known[name].controller == known[one].controller for name in after)
        assert votes <= max(1, (len(after) - 1) // 3)
    if any(known[one].status == Status.BANNED for one in after) and len(after) < most:
        assert all(known[one].status == Status.BANNED for one in gone), "the banned go first"


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["join", "leave", "seal", "seal"]))),
    st.integers(1, 9),
)
def test_whatever_is_asked_the_sets_change_slowly_and_the_audit_agrees(
    tmp_path_factory, steps, count
):
    folder = tmp_path_factory.mktemp("chain")
    genesis = write_genesis(make_genesis(validators=founders(count)), folder / "genesis.json")
    chain = Chain(LedgerStore.in_folder(folder), genesis)
    known = (*VALIDATORS[:count], *OTHERS[:8])
    for number, what in [*steps, (0, "seal"), (0, "seal")]:
        who = known[number % len(known)]
        if what == "seal":
            chain.seal()
        elif row(chain, who) is None:
            chain.block(
                soon(chain), chain.tx(who, join(who), nonce=chain.ledger.next_nonce(who.id))
            )
        elif what == "leave":
            nonce = chain.ledger.next_nonce(who.id)
            chain.block(soon(chain), chain.tx(who, LEAVE, nonce=nonce))
    for epoch in range(1, chain.epoch.epoch + 2):
        before, after = set(ids(chain, epoch - 1)), set(ids(chain, epoch))
        assert len(before ^ after) <= max(1, (len(before) - 1) // 3)
        assert len(after) >= (4 if len(before) >= 4 else 1)
    chain.store.close()
    verify_folder(folder)


def test_a_restart_in_the_middle_of_an_epoch_finds_its_validators(tmp_path):
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.settle_in(ANN)
    chain.codes(soon(chain), NEW, join(NEW))
    seals(chain, 2)
    chain.codes(soon(chain), VALIDATORS[0], LEAVE)
    epoch = chain.epoch
    chain.store.close()
    again = Chain(LedgerStore.in_folder(tmp_path))
    assert again.epoch == epoch
    assert again.epoch.validators.n == 5
    assert again.epochs.validators_of(1).n == 4
    again.store.close()


def test_the_audit_refuses_a_seal_that_names_other_validators(tmp_path):
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(START_MS + 1, chain.tx(NEW, join(NEW)))
    chain.seal()
    header = chain.header(
        START_MS + 2 * 900_000, [], next_validators_hash=chain.epoch.validators.hash
    )
    chain.execute(header, [], chain.finality(header))
    chain.store.close()
    with pytest.raises(ChainError, match="block 3: its next validators are wrong"):
        verify_folder(tmp_path)


def test_the_audit_refuses_the_votes_of_a_set_that_is_over(tmp_path):
    write_genesis(make_genesis(), tmp_path / "genesis.json")
    chain = Chain(LedgerStore.in_folder(tmp_path))
    chain.block(START_MS + 1, chain.tx(NEW, join(NEW)))
    seals(chain, 2)
    now, chain.epoch = chain.epoch, Epochs(chain.genesis, chain.ledger, chain.store).current()
    header = chain.header(START_MS + 2 * 900_000 + 5, [])
    old = Chain(genesis=chain.genesis)
    assert old.epoch.validators.n == 4 < now.validators.n
    chain.execute(header, [], old.finality(header))  # three of four, where four of five are due
    chain.store.close()
    with pytest.raises(ChainError, match="block 4: its finalization does not prove it final"):
        verify_folder(tmp_path)


def test_a_home_that_validates_keeps_one_nonce(chain):
    chain.codes(soon(chain), ANN, join(ANN))
    assert chain.codes(soon(chain), ANN, register(ANN)) == ["DUPLICATE"]
    assert chain.ledger.next_nonce(ANN.id) == 3
