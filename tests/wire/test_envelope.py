"""The door: every refusal by its own name, nothing accepted twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wire.canonical import MAX_MESSAGE_BYTES, decode, encode
from wire.envelope import (
    Envelope,
    EnvelopeReader,
    date_ms,
    date_text,
    new_req_id,
    parse_envelope,
    seal_envelope,
)
from wire.errors import (
    BadSignatureError,
    ExpiredError,
    FutureDatedError,
    MalformedError,
    OversizedError,
    Refusal,
    ReplayedError,
    UnknownOperationError,
    UnknownSenderError,
    UnsignedError,
    WireError,
)
from wire.keys import Domain, SigningKey
from wire.replay import ReplayGuard
from wire.transactions import MAX_OPERATIONS, make_transaction, parse_transaction

KEY, OTHER = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
NOW_MS = 1_780_315_200_000
AGE_MS, AHEAD_MS = 60_000, 5_000
CHAIN = "demo"


def make(now_ms=NOW_MS, req_id="r-1", client=None, operation="enroll", parameters=None):
    return Envelope(client or KEY.id, req_id, now_ms, operation, parameters or {"a": 1})


def seal(envelope, key=KEY, domain=Domain.MESSAGE, chain=CHAIN):
    return seal_envelope(envelope, key, domain, chain)


def change(raw, **fields):
    """The message with other fields under the old signature; None takes a field away."""
    value = decode(raw)
    for name, field in fields.items():
        value.pop(name, None)
        if field is not None:
            value[name] = field
    return encode(value)


@pytest.fixture
def reader():
    keys = {KEY.id: KEY.public}
    return EnvelopeReader(
        chain_id=CHAIN,
        domain=Domain.MESSAGE,
        key_of=lambda envelope: keys.get(envelope.client_id),
        replay=ReplayGuard(AGE_MS + AHEAD_MS + 1_000),
        max_age_ms=AGE_MS,
        max_ahead_ms=AHEAD_MS,
    )


def test_a_good_message_is_read_as_it_was_meant(reader):
    envelope = reader.read(seal(make()), NOW_MS)
    assert (envelope.client_id, envelope.req_id, envelope.operation, envelope.parameters) == (
        KEY.id, "r-1", "enroll", {"a": 1},
    )  # fmt: skip
    assert envelope.date_ms == NOW_MS


@pytest.mark.parametrize("signature", [None, ""])
def test_unsigned(reader, signature):
    with pytest.raises(UnsignedError):
        reader.read(change(seal(make()), signature=signature), NOW_MS)


@pytest.mark.parametrize("signature", ["x", "A" * 86, "*" * 86, "A" * 85, "é"])
def test_a_signature_of_nonsense_is_a_bad_signature(reader, signature):
    with pytest.raises(BadSignatureError):
        reader.read(change(seal(make()), signature=signature), NOW_MS)


@pytest.mark.parametrize(
    "fields",
    [{"operation": "grant"}, {"reqId": "r-2"}, {"parameters": {"a": 2}},
     {"date": "2026-06-01T12:00:01Z"}],
)  # fmt: skip
def test_a_changed_field_is_a_bad_signature(reader, fields):
    with pytest.raises(BadSignatureError):
        reader.read(change(seal(make()), **fields), NOW_MS)


def test_signed_by_another_for_another_purpose_or_another_market(reader):
    for raw in (seal(make(), key=OTHER), seal(make(), domain=Domain.TX), seal(make(), chain="x")):
        with pytest.raises(BadSignatureError):
            reader.read(raw, NOW_MS)


def test_an_unknown_sender(reader):
    with pytest.raises(UnknownSenderError):
        reader.read(seal(make(client=OTHER.id), key=OTHER), NOW_MS)


def test_replayed(reader):
    raw = seal(make())
    reader.read(raw, NOW_MS)
    with pytest.raises(ReplayedError):
        reader.read(raw, NOW_MS + 1)


def test_a_replay_is_refused_in_the_last_millisecond_of_freshness(reader):
    """The date leaves out up to a second, and the guard must remember through it."""
    raw = seal(make(NOW_MS))
    reader.read(raw, NOW_MS - AHEAD_MS)
    with pytest.raises(ReplayedError):
        reader.read(raw, NOW_MS + AGE_MS + 999)
    with pytest.raises(ExpiredError):
        reader.read(raw, NOW_MS + AGE_MS + 1_000)


def test_a_guard_that_forgets_too_early_is_refused_when_the_door_is_built():
    with pytest.raises(ValueError, match="forgets"):
        EnvelopeReader(CHAIN, Domain.MESSAGE, lambda _: None, ReplayGuard(65_000), 60_000, 5_000)


def test_a_forged_message_does_not_use_up_somebodys_request_id(reader):
    with pytest.raises(BadSignatureError):
        reader.read(seal(make(), key=OTHER), NOW_MS)
    reader.read(seal(make()), NOW_MS)


def test_the_same_request_id_of_another_sender_is_another_message():
    guard = ReplayGuard(1_000)
    assert guard.admit("a", "r", 0)
    assert guard.admit("b", "r", 0)


def test_oversized(reader):
    with pytest.raises(OversizedError):
        reader.read(b'"' + b"x" * MAX_MESSAGE_BYTES + b'"', NOW_MS)


def test_expired_and_future_dated_at_their_limits(reader):
    reader.read(seal(make(NOW_MS, "old")), NOW_MS + AGE_MS + 999)
    with pytest.raises(ExpiredError):
        reader.read(seal(make(NOW_MS, "older")), NOW_MS + AGE_MS + 1_000)
    reader.read(seal(make(NOW_MS, "early")), NOW_MS - AHEAD_MS)
    with pytest.raises(FutureDatedError):
        reader.read(seal(make(NOW_MS, "earlier")), NOW_MS - AHEAD_MS - 1)


@pytest.mark.parametrize(
    "fields",
    [{"clientId": None}, {"extra": 1}, {"clientId": 5}, {"reqId": ["r"]}, {"parameters": []},
     {"parameters": "x"}, {"operation": True}, {"signature": 7}, {"reqId": "x" * 129},
     {"date": "yesterday"}, {"date": "2026-06-01T12:00:00"}, {"date": "2026-06-01T12:00:00.0Z"},
     {"date": "2026-02-30T12:00:00Z"}, {"date": "2026-06-01T12:00:60Z"},
     {"date": "٢٠٢٦-06-01T12:00:00Z"}, {"date": "2026-06-01T24:00:00Z"}],
)  # fmt: skip
def test_malformed(reader, fields):
    with pytest.raises(MalformedError):
        reader.read(change(seal(make()), **fields), NOW_MS)


@pytest.mark.parametrize("raw", [b"", b"{}x", b"\x00", b'{"a":1.5}', b"null", b"{", b'"\xff"'])
def test_garbage_is_malformed(reader, raw):
    with pytest.raises(MalformedError):
        reader.read(raw, NOW_MS)


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"a"', b"true"])
def test_a_message_that_is_not_an_object_is_malformed(raw):
    with pytest.raises(MalformedError):
        parse_envelope(raw)


def test_white_space_around_a_signed_message_makes_it_malformed(reader):
    with pytest.raises(MalformedError):
        reader.read(b" " + seal(make()), NOW_MS)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_message_is_refused_by_name_or_is_the_same(data):
    raw = bytearray(seal(make()))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    door = EnvelopeReader(
        CHAIN, Domain.MESSAGE, lambda _: KEY.public, ReplayGuard(66_000), AGE_MS, AHEAD_MS
    )
    try:
        door.read(bytes(raw), NOW_MS)
    except WireError as error:
        assert error.refusal in Refusal
    else:
        assert bytes(raw) == seal(make())


@given(st.integers(0, 253_402_300_799_999))
def test_dates_are_whole_seconds_and_read_back(time_ms):
    assert date_ms(date_text(time_ms)) == time_ms // 1000 * 1000


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_request_ids_are_uuid_version_7(time_ms, chance):
    text = new_req_id(time_ms, chance)
    assert text[14] == "7"
    assert text[19] in "89ab"
    assert int(text.replace("-", "")[:12], 16) == time_ms


def test_the_guard_keeps_no_more_than_its_capacity_and_refuses_beyond():
    """Forgetting old messages under a flood would let them in again."""
    guard = ReplayGuard(keep_ms=1_000, capacity=3)
    assert [guard.admit("a", str(n), 0) for n in range(4)] == [True, True, True, False]
    assert not guard.admit("a", "0", 1_000)
    assert guard.admit("a", "3", 1_001)  # the first three are too old to be replayed
    assert not guard.admit("a", "3", 1_001)


def test_a_guards_memory_ends_with_the_freshness():
    guard = ReplayGuard(keep_ms=1_000)
    assert guard.admit("a", "r", 0)
    assert not guard.admit("a", "r", 1_000)
    assert guard.admit("a", "r", 1_001)


def test_no_sender_takes_the_others_room_in_a_guard():
    guard = ReplayGuard(keep_ms=1_000, capacity=10, per_sender=3)
    assert [guard.admit("a", str(n), 0) for n in range(4)] == [True, True, True, False]
    assert not guard.has_room("a", 0) and guard.has_room("b", 0)
    assert guard.admit("b", "0", 500)
    assert guard.has_room("a", 1_001), "its share comes back with time"
    assert not guard.admit("b", "0", 1_001)


# Transactions are envelopes too


def transact(operations, nonce=0, expires=9):
    return make_transaction(KEY, CHAIN, nonce, expires, operations, "r", NOW_MS)


def test_a_transactions_id_does_not_depend_on_its_signature():
    made = transact([{"op": "bid-offer"}])
    other = parse_transaction(change(made.raw, signature="A" * 86))
    assert other.txid == made.txid
    assert other.raw != made.raw
    assert transact([{"op": "bid-offer"}], nonce=1).txid != made.txid


def test_a_transaction_reads_back():
    made = transact([{"op": "a"}, {"op": "b", "x": 1}], nonce=5)
    assert (made.sender, made.nonce, made.expires_slot) == (KEY.id, 5, 9)
    assert made.operations == ({"op": "a"}, {"op": "b", "x": 1})
    assert parse_transaction(made.raw) == made


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"nonce": 0, "expiresSlot": 1},
        {"nonce": 0, "expiresSlot": 1, "operations": [{"op": "a"}], "more": 1},
        {"nonce": -1, "expiresSlot": 1, "operations": [{"op": "a"}]},
        {"nonce": True, "expiresSlot": 1, "operations": [{"op": "a"}]},
        {"nonce": "0", "expiresSlot": 1, "operations": [{"op": "a"}]},
        {"nonce": 0, "expiresSlot": -1, "operations": [{"op": "a"}]},
        {"nonce": 0, "expiresSlot": 1, "operations": []},
        {"nonce": 0, "expiresSlot": 1, "operations": {"op": "a"}},
        {"nonce": 0, "expiresSlot": 1, "operations": ["a"]},
        {"nonce": 0, "expiresSlot": 1, "operations": [{"op": 1}]},
        {"nonce": 0, "expiresSlot": 1, "operations": [{"x": 1}]},
        {"nonce": 0, "expiresSlot": 1, "operations": [{"op": "a"}] * (MAX_OPERATIONS + 1)},
    ],
)
def test_a_transaction_of_another_form_is_malformed(parameters):
    with pytest.raises(MalformedError):
        parse_transaction(seal(make(operation="transaction", parameters=parameters)))


def test_an_envelope_that_is_no_transaction_is_an_unknown_operation():
    with pytest.raises(UnknownOperationError):
        parse_transaction(seal(make()))


def test_sixty_four_operations_fit():
    assert len(transact([{"op": "a"}] * MAX_OPERATIONS).operations) == MAX_OPERATIONS


def test_every_wire_error_has_a_refusal_of_its_own():
    kinds = [kind for kind in WireError.__subclasses__() if kind.__module__ == "wire.errors"]
    refusals = [kind.refusal for kind in kinds]
    assert len(set(refusals)) == len(kinds)
    assert {
        Refusal.BAD_SIGNATURE,
        Refusal.RATE_LIMITED,
        Refusal.WEAK_KEY,
        Refusal.ROLLED_BACK,
    } <= set(refusals)
    error = BadSignatureError("not hers", sender="hg1x")
    assert str(error) == "BAD_SIGNATURE: not hers (sender='hg1x')"
    assert error.facts == {"sender": "hg1x"}
