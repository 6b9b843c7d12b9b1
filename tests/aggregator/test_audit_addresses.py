"""The DSO's audit where a meter has an address for every hour: lies are found and proven."""

import json

import msgspec
import pytest
from support.brokers import make_key
from support.csmdb_site import NOW_MS, enrolled
from support.meters import SigningMeter, sealed

from aggregator import audit
from aggregator.auditor import OVERDUE_SLOTS, Auditor
from aggregator.receipt_case import check_case
from aggregator.store import AggregatorStore
from csmdb.core import PAGE_ROWS
from csmdb.setup import create
from ledger.genesis import Poe
from wire.certificates import AddressGrant, seal
from wire.errors import WireError
from wire.keys import BoxKey, to_text
from wire.metering import Receipt, digest, record_json, sign_record
from wire.slots import SlotGrid

CHAIN, MARKET = "hg-test-0", "test"
HOME, ISSUER = make_key("home").id, make_key("issuer")
BOX = BoxKey(make_key("dso-box").seed)
FIRST, PERIOD, COUNT = 1_000_000, 4, 24
ADDRESSES = [make_key(f"address {number}") for number in range(COUNT)]
LIE = FIRST + 41


def address_of(slot):
    return ADDRESSES[(slot - FIRST) // PERIOD]


def grant_of(key, number, meter):
    grant = AddressGrant(
        address=key.id, key=to_text(key.public), meter_key=to_text(meter.key.derive(key.id).public),
        can_buy=True, can_sell=True, max_buy_wh=2_750, max_sell_wh=2_750,
        start_slot=FIRST + PERIOD * number, end_slot=FIRST + PERIOD * (number + 1) - 1,
    )  # fmt: skip
    return seal(grant, ISSUER, MARKET)


@pytest.fixture
def meter():
    return SigningMeter(make_key("meter"), CHAIN, HOME, [key.id for key in ADDRESSES])


@pytest.fixture
def auditor(tmp_path, meter):
    store = AggregatorStore(tmp_path / "aggregator.sqlite")
    made = Auditor(store, BOX, CHAIN, SlotGrid(), Poe(window_slots=4))
    made.directory.add([meter.listed()])
    made.stale = False
    for number, key in enumerate(ADDRESSES):
        grant = grant_of(key, number, meter)
        made.take_grant(
            {"address": key.id, "startSlot": grant.start_slot, "endSlot": grant.end_slot}
        )
    yield made
    store.close()


def said_by(meter, slot, net_wh):
    """The receipt of a slot, under the address that is for it."""
    address, after = address_of(slot).id, meter.readings[slot - FIRST + 1]
    receipt = Receipt(address=address, slot=slot, net_wh=net_wh, reading=digest(after))
    return sign_record(receipt, meter.key.derive(address), CHAIN)


def a_day(auditor, meter, silent=()):
    """Readings and receipts of a day; one receipt lies by 300 Wh."""
    readings = [meter.read(FIRST - 1, 0)]
    readings += [meter.read(FIRST + n, 100 + n) for n in range(COUNT * PERIOD)]
    receipts = {}
    for slot in range(FIRST, FIRST + COUNT * PERIOD):
        net_wh = 100 + slot - FIRST - (300 if slot == LIE else 0)
        if slot not in silent:
            receipts[slot] = said_by(meter, slot, net_wh)
            event = {"address": address_of(slot).id, "slot": slot, "netWh": net_wh}
            auditor.take_receipt(event, NOW_MS)
    for reading in readings:
        auditor.take_reading(HOME, sealed(reading, BOX.public), NOW_MS)
    return receipts


def checked(evidence, said, meter, **other):
    number = ADDRESSES.index(address_of(LIE))
    facts = {
        "document": evidence["document"], "receipt": record_json(said),
        "grant": grant_of(ADDRESSES[number], number, meter), "meter_key": meter.key.public,
        "issuer": ISSUER.public, "market": MARKET, "chain_id": CHAIN,
    }  # fmt: skip
    return check_case(**{**facts, **other})


def test_a_lie_under_one_of_many_addresses_is_found_and_anybody_can_check_it(auditor, meter):
    receipts = a_day(auditor, meter)
    [evidence] = auditor.store.evidence()
    assert (evidence["kind"], evidence["subject"]) == (audit.FALSE_RECEIPT, HOME)
    assert auditor.store.counts()["receipts_ok"] == COUNT * PERIOD - 1
    found = checked(evidence, receipts[LIE], meter)
    assert found == audit.Finding(audit.FALSE_RECEIPT, evidence["detail"])
    told = json.dumps([evidence["document"], evidence["detail"]])
    assert not [key.id for key in ADDRESSES if key.id in told], "it leads to no other address"
    assert HOME not in told


def test_a_case_that_does_not_hold_is_refused(auditor, meter):
    receipts = a_day(auditor, meter)
    [evidence] = auditor.store.evidence()
    parts = json.loads(evidence["document"])
    other = make_key("somebody else")
    shifted = {"before": parts["after"], "after": parts["before"]}
    true = said_by(meter, LIE, 100 + LIE - FIRST)
    forged = msgspec.structs.replace(receipts[LIE], net_wh=5)
    cases = [
        {"receipt": record_json(true)},
        {"receipt": record_json(receipts[LIE - 1])},
        {"receipt": record_json(forged)},
        {"grant": grant_of(ADDRESSES[0], 0, meter)},
        {"meter_key": other.public},
        {"issuer": other.public},
        {"chain_id": "hg-test-1"},
        {"document": json.dumps(shifted, sort_keys=True, separators=(",", ":"))},
        {"document": "[]"},
    ]
    for changed in cases:
        with pytest.raises(WireError):
            checked(evidence, receipts[LIE], meter, **changed)


def test_silence_under_one_of_many_addresses_is_named_once(auditor, meter):
    silent = {FIRST + 9, FIRST + 60}
    a_day(auditor, meter, silent)
    auditor.give_up_overdue(FIRST + COUNT * PERIOD + OVERDUE_SLOTS, NOW_MS)
    kinds = [row["kind"] for row in auditor.store.evidence()]
    assert sorted(kinds) == [audit.FALSE_RECEIPT, audit.NO_RECEIPT, audit.NO_RECEIPT]


def test_meters_with_many_addresses_are_listed_in_pages_and_then_only_what_is_new(tmp_path):
    with create(tmp_path / "csmdb", "test") as csmdb:
        reader = make_key("dso")
        csmdb.issue_service_certificate(reader.public, ["dso"])
        home, slot = enrolled(csmdb), NOW_MS // 900_000
        granted = set()
        for start in range(0, PAGE_ROWS + 20, 4):
            rows = [home.address_row(number) for number in range(start, start + 4)]
            asked = {"addresses": rows, "startSlot": slot, "endSlot": slot + start // 4}
            decision = csmdb.desk.grant_addresses(home.ems.id, asked, NOW_MS)
            if not isinstance(decision, list):
                break
            granted |= {grant.address for grant in decision}

        def listed(**asked):
            found, cursor = set(), ""
            while True:
                page = csmdb.desk.list_meters(reader.id, {"after": cursor, **asked}, NOW_MS)
                found |= {one for meter in page["meters"] for one in meter["addresses"]}
                cursor = page["next"]
                if not cursor:
                    return found

        assert listed() == granted
        late = listed(fromSlot=slot + 3)
        assert late < granted
        assert listed(fromSlot=slot) == granted
        with pytest.raises(WireError):
            listed(fromSlot="now")
