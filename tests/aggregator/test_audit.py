"""The DSO's audit: what was said on chain against what the meter signed."""

import itertools

import msgspec
import pytest
from support.brokers import make_key
from support.meters import SigningMeter, sealed

from aggregator import audit
from aggregator.auditor import OVERDUE_SLOTS, Auditor
from aggregator.store import AggregatorStore
from ledger.genesis import Poe
from wire.cpf import cpf_q16
from wire.errors import (
    BadSignatureError,
    CertificateError,
    MalformedError,
)
from wire.keys import BoxKey, seal_to
from wire.metering import sign_record
from wire.slots import SlotGrid

CHAIN = "hg-test-0"
HOME = make_key("home").id
ADDRESS = make_key("address").id
VALIDATOR = make_key("validator").id
BOX = BoxKey(make_key("dso-box").seed)
NOW_MS = 10**12
RULES = Poe(window_slots=4, min_energy_wh=10, min_production_wh=10)
FIRST = 1_000_000


@pytest.fixture
def auditor(tmp_path):
    store = AggregatorStore(tmp_path / "aggregator.sqlite")
    yield Auditor(store, BOX, CHAIN, SlotGrid(), RULES)
    store.close()


@pytest.fixture
def meter(auditor):
    meter = SigningMeter(make_key("meter"), CHAIN, HOME, [ADDRESS], VALIDATOR)
    auditor.directory.add([meter.listed()])
    auditor.stale = False
    return meter


def take(auditor, reading, home=HOME):
    auditor.take_reading(home, sealed(reading, BOX.public), NOW_MS)


def kinds(auditor):
    return [row["kind"] for row in auditor.store.evidence()]


def receipt(slot, net_wh, address=ADDRESS):
    return {"event": "receipt", "address": address, "slot": slot, "netWh": net_wh}


def test_honest_readings_leave_no_evidence_and_are_kept_as_signed(auditor, meter):
    for slot, net_wh in ((FIRST, 100), (FIRST + 1, -50), (FIRST + 2, 0)):
        take(auditor, meter.read(slot, net_wh))
    assert kinds(auditor) == []
    assert auditor.store.readings(meter.key.id, FIRST, FIRST + 2) == {
        reading.slot: reading for reading in meter.readings
    }
    assert auditor.store.measured(FIRST, FIRST + 2, 1) == [(FIRST + 1, -50), (FIRST + 2, 0)]


def test_a_true_receipt_is_found_true(auditor, meter):
    take(auditor, meter.read(FIRST, 0))
    take(auditor, meter.read(FIRST + 1, -700))
    auditor.take_receipt(receipt(FIRST + 1, -700), NOW_MS)
    assert auditor.store.counts()["receipts_ok"] == 1
    assert kinds(auditor) == []


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_lying_receipt_is_evidence_in_whatever_order_things_arrive(auditor, meter, order):
    first, second = meter.read(FIRST, 0), meter.read(FIRST + 1, -700)
    arrivals = [
        lambda: take(auditor, first),
        lambda: take(auditor, second),
        lambda: auditor.take_receipt(receipt(FIRST + 1, -900), NOW_MS),
    ]
    for index in order:
        arrivals[index]()
    assert kinds(auditor) == [audit.FALSE_RECEIPT]
    [row] = auditor.store.evidence()
    assert row["subject"] == HOME
    assert "-900" in row["detail"]
    assert "-700" in row["detail"]
    assert auditor.store.counts()["receipts_false"] == 1


def test_a_tampered_reading_is_refused_and_is_evidence(auditor, meter):
    changed = msgspec.structs.replace(meter.read(FIRST, 700), import_wh=1)
    with pytest.raises(BadSignatureError):
        take(auditor, changed)
    assert kinds(auditor) == [audit.TAMPERED]
    assert auditor.store.counts()["readings"] == 0


def test_a_reading_of_another_chain_is_refused(auditor, meter):
    reading = meter.read(FIRST, 700)
    foreign = sign_record(msgspec.structs.replace(reading, signature=""), meter.key, "hg-other-0")
    with pytest.raises(BadSignatureError):
        take(auditor, foreign)


def test_a_reading_on_another_homes_topic_is_refused(auditor, meter):
    with pytest.raises(CertificateError):
        take(auditor, meter.read(FIRST, 700), home=make_key("other").id)
    assert auditor.store.counts()["readings"] == 0


@pytest.mark.parametrize(
    "payload",
    [b"", b"x" * 100, seal_to(BOX.public, b'{"a":1}')],
    ids=["empty", "not sealed", "sealed, not a reading"],
)
def test_garbage_is_refused(auditor, meter, payload):
    with pytest.raises(MalformedError):
        auditor.take_reading(HOME, payload, NOW_MS)


def test_the_same_reading_twice_is_no_evidence(auditor, meter):
    reading = meter.read(FIRST, 700)
    take(auditor, reading)
    take(auditor, reading)
    assert kinds(auditor) == []
    assert auditor.store.counts()["readings"] == 1


def test_two_readings_under_one_number_are_a_fork(auditor, meter):
    reading = meter.read(FIRST, 700)
    take(auditor, reading)
    other = msgspec.structs.replace(reading, import_wh=reading.import_wh + 1, signature="")
    take(auditor, sign_record(other, meter.key, CHAIN))
    assert kinds(auditor) == [audit.FORK]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        ({"previous": "1" * 64}, audit.BROKEN_CHAIN),
        ({"import_wh": 9_000}, audit.BACKWARDS),
        ({"generation_wh": 9_000}, audit.BACKWARDS),
        ({"time_ms": FIRST * 900_000}, audit.EARLY),
    ],
)
def test_a_signed_lie_in_the_chain_is_evidence(auditor, meter, lie, kind, backwards):
    readings = [meter.read(FIRST, 100), meter.read(FIRST + 1, 100, **lie)]
    for reading in reversed(readings) if backwards else readings:
        take(auditor, reading)
    assert kind in kinds(auditor)


def test_a_reading_before_its_meter_is_known_waits_for_the_next_look_up(auditor):
    meter = SigningMeter(make_key("meter"), CHAIN, HOME, [ADDRESS])
    take(auditor, meter.read(FIRST, 0))
    take(auditor, meter.read(FIRST + 1, 300))
    auditor.take_receipt(receipt(FIRST + 1, 299), NOW_MS)
    assert auditor.stale
    assert auditor.store.counts()["readings"] == 0
    auditor.directory.add([meter.listed()])
    auditor.refreshed(NOW_MS)
    assert not auditor.stale
    assert auditor.store.held() == []
    assert auditor.store.counts()["readings"] == 2
    assert kinds(auditor) == [audit.FALSE_RECEIPT]


def test_a_meter_that_stays_unknown_is_let_go(auditor):
    take(auditor, SigningMeter(make_key("meter"), CHAIN, HOME).read(FIRST, 0))
    auditor.refreshed(NOW_MS)
    assert auditor.store.held() == []
    assert auditor.store.counts()["readings"] == 0


def test_a_receipt_without_readings_becomes_evidence_in_the_end(auditor, meter):
    auditor.take_receipt(receipt(FIRST, 100), NOW_MS)
    auditor.give_up_overdue(FIRST + OVERDUE_SLOTS, NOW_MS)
    assert kinds(auditor) == []
    auditor.give_up_overdue(FIRST + OVERDUE_SLOTS + 1, NOW_MS)
    auditor.give_up_overdue(FIRST + OVERDUE_SLOTS + 2, NOW_MS)
    assert kinds(auditor) == [audit.NO_READING]


def granted(first, last, address=ADDRESS):
    return {"event": "address-registered", "address": address, "startSlot": first, "endSlot": last}


def details(auditor):
    return [(row["kind"], row["detail"]) for row in auditor.store.evidence()]


def test_energy_without_a_receipt_is_named_for_the_bill_once_none_can_come(auditor, meter):
    auditor.take_grant(granted(FIRST + 1, FIRST + 3))
    for slot, net_wh in enumerate((0, 500, -700, 0, 900), FIRST):
        take(auditor, meter.read(slot, net_wh))
    auditor.take_receipt(receipt(FIRST + 2, -700), NOW_MS)
    auditor.give_up_overdue(FIRST + 1 + OVERDUE_SLOTS, NOW_MS)
    assert kinds(auditor) == [], "it may still come"
    for later in (6, 7):
        auditor.give_up_overdue(FIRST + later + OVERDUE_SLOTS, NOW_MS)
    said = f"slot {FIRST + 1}: registers moved by 500 Wh, no receipt"
    assert details(auditor) == [(audit.NO_RECEIPT, said)], "not outside the grant, not for 0 Wh"


def test_readings_that_are_held_back_until_nobody_looks_are_looked_at(auditor, meter):
    auditor.take_grant(granted(FIRST, FIRST + 9))
    auditor.give_up_overdue(FIRST + 50 + OVERDUE_SLOTS, NOW_MS)
    take(auditor, meter.read(FIRST, 0))
    take(auditor, meter.read(FIRST + 1, 500))
    assert kinds(auditor) == [audit.NO_RECEIPT]


def test_what_flowed_while_the_meter_signed_nothing_is_named_when_it_signs_again(auditor, meter):
    auditor.take_grant(granted(FIRST, FIRST + 9))
    take(auditor, meter.read(FIRST, 0))
    take(auditor, meter.read(FIRST + 6, 3_000))
    said = f"slots {FIRST + 1} to {FIRST + 6}: registers moved by 3000 Wh, no receipt"
    assert details(auditor) == [(audit.NO_RECEIPT, said)]


def test_a_home_that_is_not_in_the_market_owes_no_receipt(auditor, meter):
    for slot, net_wh in ((FIRST, 0), (FIRST + 1, 500), (FIRST + 5, 900)):
        take(auditor, meter.read(slot, net_wh))
    auditor.give_up_overdue(FIRST + 50 + OVERDUE_SLOTS, NOW_MS)
    assert kinds(auditor) == []


@pytest.mark.parametrize("lie_q16", [0, 1])
def test_an_attested_cpf_is_recomputed_from_the_registers(auditor, meter, lie_q16):
    nets, generations = [100, -50, 0, 30], [500, 500, 200, 0]
    take(auditor, meter.read(FIRST, 0))
    for offset, (net_wh, generation_wh) in enumerate(zip(nets, generations, strict=True), 1):
        take(auditor, meter.read(FIRST + offset, net_wh, generation_wh))
    said = {
        "event": "cpf",
        "validator": VALIDATOR,
        "endSlot": FIRST + 4,
        "cpfQ16": cpf_q16(nets, generations, RULES.kappa_milli) + lie_q16,
        "eligible": True,
    }
    auditor.take_cpf(said, NOW_MS)
    assert kinds(auditor) == ([audit.FALSE_CPF] if lie_q16 else [])
    assert auditor.store.counts()["attestations_ok"] == 1 - lie_q16


def test_evidence_about_one_subject_is_bounded(auditor, monkeypatch):
    monkeypatch.setattr("aggregator.store.MAX_EVIDENCE_PER_SUBJECT", 3)
    with auditor.store.atomic():
        for number in range(5):
            auditor.store.add_evidence(NOW_MS, HOME, audit.Finding("X", str(number)))
    assert len(kinds(auditor)) == 3


def test_the_evidence_is_on_disk(auditor, meter, tmp_path):
    take(auditor, meter.read(FIRST, 0))
    take(auditor, meter.read(FIRST + 1, 5))
    auditor.take_receipt(receipt(FIRST + 1, 6), NOW_MS)
    again = AggregatorStore(tmp_path / "aggregator.sqlite")
    assert [row["kind"] for row in again.evidence()] == [audit.FALSE_RECEIPT]
    again.close()
