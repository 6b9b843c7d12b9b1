"""Renewal: before the end, each home at its own moment; after it by itself, metering meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest
from home_at_hand import ADDRESS, SLOT, begin, register
from support.brokers import Authority, running_broker
from support.chain_builder import grant_for
from support.patience import PATIENCE_S

from csmdb.core import GRANT_DAYS
from csmdb.service import CsmDbService
from csmdb.setup import create
from hem.ems import enrolment as enrolment_module
from hem.ems import renewal as module
from hem.ems.enrolment import Enrolment
from hem.ems.keyring import Keyring
from hem.ems.renewal import CertificateState, Renewal
from runtime.bus import lane
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbClient
from runtime.rng import SystemRng
from runtime.store import MemoryStore
from wire.certificates import AddressGrant, dump_text, parse
from wire.keys import SigningKey, to_text
from wire.slots import SlotGrid

DAY_MS = 86_400_000
METER = SigningKey(b"m" * 32)


class LaterClock(SystemClock):
    """Market time runs ahead of real time by so many days."""

    days = 0.0

    def now_ms(self):
        return super().now_ms() + int(self.days * DAY_MS)

    async def sleep_until(self, market_ms):
        while self.now_ms() < market_ms:
            await asyncio.sleep(0.01)


class Gateway:
    async def nameplate(self):
        return {"type": "m", "vendor": "A", "model": "M", "serial": "1", "firmware": "1"}

    async def public_keys(self):
        return {"meter": to_text(METER.public)}

    async def pseudonym(self, label):
        return {"key": to_text(METER.derive(label).public)}


class Site:
    """A broker and a CSM-DB that may be away; one home with its lane, enrolled."""

    def __init__(self, folder, broker, authority, csmdb, clock):
        self.broker, self.authority, self.csmdb, self.clock = broker, authority, csmdb, clock
        self.grid, self.rng = SlotGrid(), SystemRng()
        self.enrolment = Enrolment(
            MemoryStore(), Keyring(folder / "keys", self.rng), Gateway(), "test",
            csmdb.issuing_key.public,
        )  # fmt: skip
        self.renewed = []
        self.renewal = self.make_renewal()
        self.home = self.lane(lambda: self.enrolment.certificate)
        self.on_home = self.client(self.home)
        self.own = None

    def make_renewal(self, last_slot=None):
        return Renewal(
            self.enrolment, self.clock, self.grid, self.rng, self.line, last_slot, "",
            self.take_renewed,
        )  # fmt: skip

    def take_renewed(self, what):
        self.renewed.append(what)
        if what == "certificate":
            self.home.reconnect()

    def lane(self, credential):
        ems, rng = self.enrolment.keyring.ems, self.rng
        return lane(ems, "test", credential, "127.0.0.1", self.broker.port, self.clock, rng)

    def client(self, bus):
        keys, csmdb = self.enrolment.keyring, self.csmdb
        return CsmDbClient(
            bus, keys.ems, keys.box, "test", csmdb.issuing_key.public, csmdb.box.public,
            self.clock, self.rng,
        )  # fmt: skip

    @asynccontextmanager
    async def line(self):
        """As `HomeEnergyManager` opens it."""
        if not self.renewal.expired:
            yield self.on_home
            return
        bus = self.lane(None)
        csmdb = self.client(bus)
        await bus.start()
        try:
            yield csmdb
        finally:
            await bus.stop()

    async def csmdb_comes(self):
        csmdb = self.csmdb
        certificate = self.authority.certificate(
            csmdb.issuing_key, ["csmdb"], not_after_ms=self.clock.now_ms() + 9_000 * DAY_MS
        )
        self.own = self.authority.bus(self.broker.port, csmdb.issuing_key, credential=certificate)
        CsmDbService.on(csmdb, self.own).start()
        await self.own.start()
        await self.own.wait_connected(PATIENCE_S)

    async def csmdb_goes(self):
        await self.own.stop()

    async def enrol(self):
        await self.csmdb_comes()
        code = self.csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        bus = self.lane(None)
        csmdb = self.client(bus)
        await bus.start()
        await self.enrolment.enrol(csmdb, code)
        await bus.stop()
        await self.home.start()
        await self.home.wait_connected(PATIENCE_S)
        await self.enrolment.obtain_grant(self.on_home, self.slot(), None)

    def slot(self):
        return self.grid.slot_at(self.clock.now_ms())


@pytest.fixture
async def site(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_MIN_S", 0.02)
    monkeypatch.setattr(module, "RETRY_MAX_S", 0.2)
    clock = LaterClock()
    csmdb = create(tmp_path / "csmdb", "test", clock=clock)
    authority = Authority("test", csmdb.issuing_key)
    authority.clock = clock
    async with running_broker(authority) as broker:
        made = Site(tmp_path, broker, authority, csmdb, clock)
        await made.enrol()
        yield made
        await made.home.stop()
        await made.csmdb_goes()
    csmdb.close()


@asynccontextmanager
async def renewing(site):
    task = asyncio.create_task(site.renewal.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_certificate_is_renewed_before_it_ends_and_used(site):
    first = site.enrolment.certificate
    site.renewal = site.make_renewal(last_slot=0)
    async with renewing(site):
        await asyncio.sleep(0.05)
        assert (site.renewed, site.renewal.state) == ([], CertificateState.VALID)
        site.clock.days = 360
        await until(lambda: site.renewed)
    assert site.renewed == ["certificate"]
    second = site.enrolment.certificate
    assert second.not_after_ms > first.not_after_ms + 300 * DAY_MS
    assert second.subject == first.subject
    assert site.renewal.state is CertificateState.VALID
    site.clock.days = 370  # the first has ended: the broker takes the second
    site.home.reconnect()
    await site.home.wait_connected(PATIENCE_S)


async def test_a_certificate_that_ended_while_the_csmdb_was_away_is_renewed_when_it_is_back(site):
    await site.csmdb_goes()
    site.clock.days = 400
    site.home.reconnect()
    assert site.renewal.state is CertificateState.EXPIRED
    async with renewing(site):
        await asyncio.sleep(0.3)
        assert (site.renewed, site.renewal.state) == ([], CertificateState.EXPIRED)
        assert not site.home.connected, "the broker knows us no more"
        await site.csmdb_comes()
        await until(lambda: site.renewal.state is CertificateState.VALID)
    await site.home.wait_connected(PATIENCE_S)


async def test_a_home_that_starts_with_an_ended_certificate_gets_one_first(site):
    site.clock.days = 400
    site.home.reconnect()
    async with asyncio.timeout(PATIENCE_S):
        await site.renewal.renew_now()
    assert site.renewal.days_left > 300
    await site.home.wait_connected(PATIENCE_S)


async def test_who_is_banned_is_told_so_by_name_and_let_in_again_afterwards(site):
    identity = site.enrolment.keyring.ems.id
    site.csmdb.repository.set_ban(identity, "meter tampered with")
    site.clock.days = 360
    async with renewing(site):
        await until(lambda: site.renewal.state is CertificateState.REFUSED)
        assert site.renewal.reason == "BANNED"
        site.csmdb.repository.set_ban(identity, "")
        await until(lambda: site.renewal.state is CertificateState.VALID)


async def test_an_addresss_grant_is_made_longer_before_it_ends(site):
    first = site.enrolment.grant
    site.clock.days = GRANT_DAYS - 0.1
    async with renewing(site):
        await until(lambda: site.renewed)
    longer = site.enrolment.grant
    assert site.renewed == ["grant"]
    assert (longer.address, longer.start_slot) == (first.address, first.start_slot)
    assert longer.end_slot > first.end_slot + 48 * GRANT_DAYS


async def test_a_trial_that_ends_needs_no_longer_grant(site):
    site.renewal = site.make_renewal(last_slot=site.enrolment.grant.end_slot)
    site.clock.days = GRANT_DAYS - 0.1
    asked = len(site.renewed)
    async with renewing(site):
        await asyncio.sleep(0.1)
    assert len(site.renewed) == asked


async def test_an_answer_for_another_home_is_refused(site, monkeypatch):
    other = site.authority.certificate(SigningKey(b"o" * 32), ["prosumer"])
    before = site.enrolment.certificate

    async def ask(_operation, _parameters):
        return {"certificate": dump_text(other)}

    monkeypatch.setattr(site.on_home, "ask", ask)
    site.clock.days = 360
    site.renewal = site.make_renewal(last_slot=0)
    async with renewing(site):
        await asyncio.sleep(0.2)
    assert site.enrolment.certificate == before
    assert site.renewed == []


def test_homes_that_enrolled_together_renew_apart_and_in_time(site):
    end_ms = site.enrolment.certificate.not_after_ms
    moments = {
        site.make_renewal()._certificate_due_ms(site.enrolment.certificate) for _ in range(50)
    }
    assert len(moments) > 40
    for moment_ms in moments:
        assert 365 * 0.6 / 3 <= (end_ms - moment_ms) / DAY_MS <= 365 / 3 + 1


async def test_without_a_grant_the_meter_is_read_and_what_it_says_is_kept(home):
    home.addresses.grant = None
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    assert home.gateway.signed == [SLOT - 1, SLOT]
    assert home.readings.waiting == 2
    assert home.outbox.keys("receipt") == []


async def test_slots_read_while_the_csmdb_was_away_get_their_receipts_afterwards(home):
    grant, home.addresses.grant = home.grant, None
    with home.store.atomic():
        home.store.put(enrolment_module.GRANT, dump_text(grant).encode())
    home.enrolment = _Papers(grant)
    await register(home)
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    assert home.outbox.keys("receipt") == []
    home.addresses.grant = grant
    await home._catch_up()
    assert home.outbox.keys("receipt") == [f"receipt/{SLOT}"]


async def test_a_longer_grant_is_registered_and_traded_under_at_once(home):
    longer = parse(AddressGrant, grant_for(ADDRESS, start_slot=SLOT - 5, end_slot=SLOT + 200))
    home.enrolment = _Papers(longer)
    home._register(home.grant)
    name = f"register/{ADDRESS.id}"
    home.outbox.codes[name] = "OK"
    await register(home)
    home._renewed("grant")
    assert home.outbox.keys("register") == [name, f"{name}/{SLOT + 200}"]
    assert home.trader._granted(SLOT + 150)
    assert home.grant == longer


class _Papers:
    """What the CSM-DB has given us."""

    certificate = None
    validator_grant = None

    def __init__(self, grant):
        self.grant = grant
