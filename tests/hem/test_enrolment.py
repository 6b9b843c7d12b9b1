"""Enrolment: from a claim code to grants, through crashes and waits, against the real desk."""

from __future__ import annotations

import asyncio

import pytest
from support.crashes import FragileStore, PowerCut
from support.patience import PATIENCE_S

from csmdb.records import Refused
from csmdb.setup import create
from hem.ems import enrolment as module
from hem.ems.addresses import AddressBook
from hem.ems.enrolment import Enrolment
from hem.ems.keyring import Keyring
from hem.gateway.client import GatewayError
from runtime.csmdb_client import CsmDbRefusedError
from runtime.rng import SystemRng
from wire.certificates import dump
from wire.errors import CertificateError
from wire.keys import SigningKey, from_text, id_of, to_text
from wire.rotation import Rotation
from wire.slots import SlotGrid

METER = SigningKey(b"m" * 32)
VALIDATOR = SigningKey(b"v" * 32).id
PLATE = {
    "type": "sunspec-meter", "vendor": "Acme", "model": "M1", "serial": "SN-1", "firmware": "1.0",
}  # fmt: skip


class Gateway:
    """The gateway's part in enrolment."""

    def __init__(self):
        self.mute_for = 0

    async def nameplate(self):
        if self.mute_for:
            self.mute_for -= 1
            raise GatewayError("DEVICE_LOST", "the meter has not answered yet")
        return PLATE

    async def public_keys(self):
        return {"meter": to_text(METER.public)}

    async def pseudonym(self, label):
        return {"key": to_text(METER.derive(label).public)}


class Office:
    """A CSM-DB one can ask without a broker; it may be deaf, or lose its answers."""

    def __init__(self, folder):
        self.csmdb = create(folder / "csmdb", "test")
        self.deaf_for = 0
        self.asked = []
        self.sender = ""

    async def ask(self, operation, parameters):
        if self.deaf_for:
            self.deaf_for -= 1
            raise TimeoutError
        self.asked.append((operation, parameters))
        desk, now_ms = self.csmdb.desk, self.csmdb.clock.now_ms()
        match operation:
            case "enroll":
                self.sender = self.sender or _sender(parameters)
                box = {"boxKey": to_text(bytes(31) + b"\1")}
                answer = desk.enroll(self.sender, {**parameters, **box}, now_ms)
                name = "certificate"
            case "grant-addresses":
                answer, name = desk.grant_addresses(self.sender, parameters, now_ms), "grants"
            case "grant-validator":
                answer, name = desk.grant_validator(self.sender, parameters, now_ms), "grant"
        if isinstance(answer, Refused):
            raise CsmDbRefusedError(answer.refusal.value, answer.detail)
        return {name: [dump(a) for a in answer] if isinstance(answer, list) else dump(answer)}


def _sender(parameters):
    return id_of(from_text(parameters["key"]))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "METER_RETRY_S", 0.001)


class Site:
    """A home's folder and the office it asks."""

    def __init__(self, folder):
        self.folder = folder
        self.office = Office(folder)
        self.gateway = Gateway()
        self.code = self.office.csmdb.add_claim(
            ["prosumer"], 10_000, 6_000, "feeder-1", validator=VALIDATOR
        )
        self.slot = self.office.csmdb.grid.slot_at(self.office.csmdb.clock.now_ms()) + 1

    def start(self, lives=10**9):
        self.store = FragileStore(self.folder / "ems.sqlite", lives)
        keyring = Keyring(self.folder / "keys", SystemRng())
        return Enrolment(
            self.store, keyring, self.gateway, "test", self.office.csmdb.issuing_key.public
        )

    async def enrol(self, enrolment, first=None, last=None):
        first = first or self.slot
        await enrolment.enrol(self.office, self.code)
        await enrolment.obtain_grant(self.office, first, last)
        await enrolment.obtain_validator_grant(self.office, VALIDATOR, first, last)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.office.csmdb.close()


async def test_a_claim_code_becomes_certificate_grant_and_validator_grant(site):
    enrolment = site.start()
    await site.enrol(enrolment, last=site.slot + 5)
    assert enrolment.certificate.subject == enrolment.keyring.ems.id
    assert enrolment.grant.address == enrolment.keyring.address(1).id
    assert enrolment.grant.meter_key == to_text(METER.derive(enrolment.grant.address).public)
    assert (enrolment.grant.start_slot, enrolment.grant.end_slot) == (site.slot, site.slot + 5)
    assert enrolment.validator_grant.validator == VALIDATOR


async def test_what_is_known_is_not_asked_again(site):
    await site.enrol(site.start())
    asked = len(site.office.asked)
    await site.enrol(site.start())
    assert len(site.office.asked) == asked


async def test_a_crash_at_any_moment_changes_nothing_in_the_end(tmp_path):
    lives = 0
    while True:
        folder = tmp_path / str(lives)
        folder.mkdir()
        site = Site(folder)
        try:
            await site.enrol(site.start(lives))
            break
        except PowerCut:
            site.store.close()
        enrolment = site.start()
        await site.enrol(enrolment)
        assert enrolment.grant.address == enrolment.keyring.address(enrolment.address_number).id
        assert enrolment.address_number == 1
        claimed = {p["key"] for operation, p in site.office.asked if operation == "enroll"}
        assert claimed == {to_text(enrolment.keyring.ems.public)}, "one identity, whatever happens"
        site.office.csmdb.close()
        lives += 1
    assert lives >= 8, "cut before and after each of the writes"


async def test_an_expired_grant_is_replaced_by_one_for_a_fresh_address(site):
    enrolment = site.start()
    await site.enrol(enrolment, last=site.slot + 1)
    first = enrolment.grant.address
    await enrolment.obtain_grant(site.office, site.slot + 2, site.slot + 5)
    assert enrolment.grant.address == enrolment.keyring.address(2).id != first
    assert enrolment.address_number == 2


async def test_enrolment_waits_for_a_meter_that_does_not_answer_yet(site):
    site.gateway.mute_for = 3
    enrolment = site.start()
    await asyncio.wait_for(enrolment.enrol(site.office, site.code), PATIENCE_S)
    assert enrolment.certificate.meter[0].serial == "SN-1"


async def test_enrolment_waits_for_a_csmdb_that_is_down(site):
    site.office.deaf_for = 3
    enrolment = site.start()
    await asyncio.wait_for(enrolment.enrol(site.office, site.code), PATIENCE_S)
    assert enrolment.certificate is not None


async def test_a_wrong_claim_code_is_refused_by_name(site):
    with pytest.raises(CsmDbRefusedError) as caught:
        await site.start().enrol(site.office, "XXXX-XXXX-XXXX-XXXX")
    assert caught.value.reason == "BAD_CLAIM"


async def test_a_grant_for_another_address_is_refused(site):
    enrolment = site.start()
    await enrolment.enrol(site.office, site.code)
    real = site.office.ask

    async def swapped(operation, parameters):
        rows = [{**row, "key": to_text(METER.public)} for row in parameters["addresses"]]
        return await real(operation, {**parameters, "addresses": rows})

    site.office.ask = swapped
    with pytest.raises(CertificateError):
        await enrolment.obtain_grant(site.office, site.slot, None)
    assert enrolment.grant is None


async def test_a_damaged_record_is_asked_for_anew(site):
    enrolment = site.start()
    await site.enrol(enrolment)
    address = enrolment.grant.address
    raw = site.store.get(module.GRANT)
    with site.store.atomic():
        site.store.put(module.GRANT, raw.replace(b'"max_sell_wh":', b'"max_sell_wh":9'))
    assert enrolment.grant is None
    await enrolment.obtain_grant(site.office, site.slot, None)
    assert enrolment.grant.address == address


def book_of(enrolment):
    rule = Rotation(SlotGrid(), 4, 2)
    return AddressBook(enrolment.store, enrolment.keyring, "hg-test-1", rule)


async def test_addresses_of_coming_periods_are_granted_in_one_batch(site):
    enrolment = site.start()
    await enrolment.enrol(site.office, site.code)
    book, asked = book_of(enrolment), len(site.office.asked)
    await enrolment.obtain_addresses(site.office, book, site.slot - 1)
    assert len(site.office.asked) == asked + 1
    for slot in range(site.slot, site.slot + 90):
        grant = book.grant_of(slot)
        assert grant.address == book.key(slot // 4).id
        assert grant.meter_key == to_text(METER.derive(grant.address).public)
        assert grant.end_slot == slot // 4 * 4 + 3
    await enrolment.obtain_addresses(site.office, book, site.slot)
    assert len(site.office.asked) == asked + 1, "there are enough"


async def test_a_home_that_lost_its_book_is_granted_the_same_addresses_again(site):
    """A lost answer, or an old backup: the CSM-DB knows what it gave, and gives it again."""
    enrolment = site.start()
    await enrolment.enrol(site.office, site.code)
    first, again = book_of(enrolment), book_of(enrolment)
    await enrolment.obtain_addresses(site.office, first, site.slot - 1)
    await enrolment.obtain_addresses(site.office, again, site.slot)
    assert again.grant_of(site.slot + 1) == first.grant_of(site.slot + 1) is not None
