"""What the meter key signs: readings, receipts and attestations."""

import msgspec
import pytest

from wire.errors import BadSignatureError, MalformedError, UnsignedError
from wire.keys import SigningKey
from wire.metering import (
    ZERO_DIGEST,
    CpfAttestation,
    Reading,
    Receipt,
    check_record,
    digest,
    load_record,
    record_json,
    sign_record,
)

METER, OTHER = SigningKey(b"\1" * 32), SigningKey(b"\2" * 32)
CHAIN = "hg-test"
READING = Reading(
    meter=METER.id, seq=0, slot=5, time_ms=1, import_wh=10, export_wh=2, generation_wh=3,
    previous=ZERO_DIGEST,
)  # fmt: skip
RECEIPT = Receipt(address=OTHER.id, slot=5, net_wh=-8, reading=ZERO_DIGEST)
CPF = CpfAttestation(validator=OTHER.id, start_slot=1, end_slot=8, cpf_q16=65_536, eligible=True)
RECORDS = [READING, RECEIPT, CPF]


@pytest.mark.parametrize("record", RECORDS)
def test_a_signed_record_is_read_back_and_holds(record):
    signed = sign_record(record, METER, CHAIN)
    again = load_record(type(record), record_json(signed))
    assert again == signed
    check_record(again, METER.public, CHAIN)


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_unsigned_by_another_meter_or_of_another_chain_is_refused(record):
    with pytest.raises(UnsignedError):
        check_record(record, METER.public, CHAIN)
    signed = sign_record(record, METER, CHAIN)
    with pytest.raises(BadSignatureError):
        check_record(signed, OTHER.public, CHAIN)
    with pytest.raises(BadSignatureError):
        check_record(signed, METER.public, "hg-other")


@pytest.mark.parametrize("record", RECORDS)
def test_every_field_is_under_the_signature(record):
    signed = sign_record(record, METER, CHAIN)
    for name, value in record_json(record).items():
        if name == "signature":
            continue
        other = {str: "x", int: 77, bool: False}[type(value)]
        changed = msgspec.structs.replace(signed, **{name: other})
        with pytest.raises(BadSignatureError):
            check_record(changed, METER.public, CHAIN)


@pytest.mark.parametrize("record", RECORDS)
def test_another_form_is_malformed(record):
    value = record_json(sign_record(record, METER, CHAIN))
    for bad in ({**value, "more": 1}, {}, [], "x", None, {**value, "signature": 1}):
        with pytest.raises(MalformedError):
            load_record(type(record), bad)
    with pytest.raises(MalformedError):
        check_record(msgspec.structs.replace(record, signature="%%"), METER.public, CHAIN)


def test_a_receipt_is_never_taken_for_an_attestation():
    """Both are signed by pseudonymous meter keys; the domain keeps them apart."""
    forged = msgspec.structs.replace(CPF, signature=sign_record(RECEIPT, METER, CHAIN).signature)
    with pytest.raises(BadSignatureError):
        check_record(forged, METER.public, CHAIN)


def test_the_digest_covers_registers_and_signature():
    signed = sign_record(READING, METER, CHAIN)
    others = [
        msgspec.structs.replace(signed, import_wh=11),
        sign_record(READING, OTHER, CHAIN),
        sign_record(msgspec.structs.replace(READING, seq=1), METER, CHAIN),
    ]
    assert len({digest(record) for record in (signed, *others)}) == 4
    assert len(digest(signed)) == len(ZERO_DIGEST)
