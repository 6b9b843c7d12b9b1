"""Enrolment and grants over a real broker."""

import asyncio

import pytest
from support.brokers import Authority, make_key, running_broker
from support.enrolment import AskingHome, connected_lane

from csmdb.advisories import import_document
from csmdb.service import CsmDbService
from csmdb.setup import create, open_csmdb
from runtime.csmdb_client import CsmDbRefusedError
from runtime.metrics import refusals
from runtime.rate_limit import RateLimit
from sim.scenarios.vulnerable_meter import made_up
from wire import topics
from wire.certificates import AddressGrant, Certificate, load
from wire.enrolment import read_answer
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.keys import Domain, seal_to, to_text


class Site:
    """A broker, a CSM-DB on it, and homes that come."""

    def __init__(self, folder):
        self.folder = folder
        self.csmdb = create(folder / "csmdb", "test")
        self.authority = Authority("test", self.csmdb.issuing_key)
        self.lanes = []

    async def open(self, burst=100):
        self._broker = running_broker(self.authority)
        self.broker = await self._broker.__aenter__()
        await self.serve(burst)
        return self

    async def serve(self, burst=100):
        csmdb = self.csmdb
        self.own = await self.lane(csmdb.issuing_key, credential=csmdb.certificate)
        self.service = CsmDbService.on(csmdb, self.own, burst=burst)
        self.service.start()
        await asyncio.sleep(0.05)

    async def lane(self, key, **how):
        bus = await connected_lane(self.authority, self.broker.port, key, **how)
        self.lanes.append(bus)
        return bus

    async def home(self, name, **how):
        home = AskingHome(name)
        bus = await self.lane(home.ems, **how)
        csmdb = self.csmdb
        client = home.client(bus, "test", csmdb.issuing_key.public, csmdb.box.public)
        await asyncio.sleep(0.05)
        return home, client, bus

    def claim(self):
        return self.csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")

    async def close(self):
        for bus in self.lanes:
            await bus.stop()
        await self._broker.__aexit__(None, None, None)
        self.csmdb.close()


@pytest.fixture
async def site(tmp_path):
    opened = await Site(tmp_path).open()
    yield opened
    await opened.close()


async def refused(client, operation, parameters):
    with pytest.raises(CsmDbRefusedError) as caught:
        await client.ask(operation, parameters, 5)
    return caught.value.reason


async def raw_answer(site, home, bus, request):
    """Publish bytes and return the answer, or None when none comes soon."""
    queue = asyncio.Queue()

    async def take(message):
        queue.put_nowait(message.payload)

    bus.subscribe(topics.build("test", topics.CSMDB_RSP, home.ems.id), take)
    await asyncio.sleep(0.05)
    await bus.publish(topics.build("test", topics.CSMDB_REQ, home.ems.id), request)
    try:
        raw = await asyncio.wait_for(queue.get(), 1.5)
    except TimeoutError:
        return None
    return read_answer(raw, home.box, "test", site.csmdb.issuing_key.public).parameters


def a_request(site, home, *, operation="grant-addresses", age_ms=0, signer=None, fields=None):
    clock, signer = site.csmdb.clock, signer or home.ems
    envelope = Envelope(
        home.ems.id,
        new_req_id(clock.wall_ms(), site.csmdb.rng.bytes(10)),
        clock.wall_ms() - age_ms,
        operation,
        fields or {"addresses": [home.address_row()], "boxKey": to_text(home.box.public)},
    )
    raw = seal_envelope(envelope, signer, Domain.MESSAGE, "test")
    return seal_to(site.csmdb.box.public, raw)


async def test_a_home_enrols_comes_back_with_its_certificate_and_trades(site):
    home, client, bus = await site.home("home-1")
    answer = await client.ask("enroll", home.enrolment(site.claim()), 5)
    issuing = site.csmdb.issuing_key.public
    certificate = load(Certificate, answer["certificate"], issuing, "test")
    await bus.stop()
    _, client, _ = await site.home("home-1", credential=certificate)
    answer = await client.ask("grant-addresses", {"addresses": [home.address_row()]}, 5)
    grant = load(AddressGrant, answer["grants"][0], issuing, "test")
    trading = await site.lane(home.address(), credential=grant)
    assert trading.connected


async def test_a_meter_that_an_advisory_names_is_enrolled_and_gets_no_address(site):
    import_document(site.csmdb, made_up())
    home, client, _ = await site.home("home-1")
    asked = home.enrolment(site.claim(), vendor="Made up", model="M1", firmware="1.0")
    assert "certificate" in await client.ask("enroll", asked, 5)
    grant = {"addresses": [home.address_row()]}
    assert await refused(client, "grant-addresses", grant) == "BANNED"


async def test_refusals_come_back_by_name(site):
    home, client, _ = await site.home("home-1")
    _, other_client, _ = await site.home("home-2")
    code = site.claim()
    assert await refused(client, "enroll", home.enrolment("AAAA-BBBB")) == "BAD_CLAIM"
    grant = {"addresses": [home.address_row()]}
    assert await refused(client, "grant-addresses", grant) == "UNKNOWN_SENDER"
    await client.ask("enroll", home.enrolment(code), 5)
    second = AskingHome("home-2").enrolment(code)
    assert await refused(other_client, "enroll", second) == "CLAIM_USED"
    assert await refused(client, "list-meters", {}) == "NOT_ALLOWED"
    assert await refused(client, "sell-house", {}) == "UNKNOWN_OPERATION"
    assert await refused(client, "grant-addresses", {"addresses": []}) == "MALFORMED"
    validator = {"validator": make_key("v").id, "meterKey": home.address_row()["meterKey"]}
    assert await refused(client, "grant-validator", validator) == "NOT_ALLOWED"


async def test_a_request_signed_by_another_key_is_refused(site):
    home, client, bus = await site.home("home-1")
    await client.ask("enroll", home.enrolment(site.claim()), 5)
    forged = a_request(site, home, signer=make_key("thief"))
    assert (await raw_answer(site, home, bus, forged))["refusal"] == "BAD_SIGNATURE"
    assert site.csmdb.repository.address_grant(home.address().id) is None


async def test_a_request_on_another_homes_topic_is_refused(site):
    """Say, a broker that does not keep its ACL: the sender of the topic must be the signer."""
    home, client, _ = await site.home("home-1")
    await client.ask("enroll", home.enrolment(site.claim()), 5)
    thief, _, thief_bus = await site.home("home-2")
    stolen = a_request(
        site, home, fields={"addresses": [home.address_row()], "boxKey": to_text(thief.box.public)}
    )
    answer = await raw_answer(site, thief, thief_bus, stolen)
    assert answer["refusal"] == "BAD_CERTIFICATE"
    assert site.csmdb.repository.address_grant(home.address().id) is None


async def test_old_requests_are_refused_and_repeated_ones_not_answered(site):
    home, client, bus = await site.home("home-1")
    await client.ask("enroll", home.enrolment(site.claim()), 5)
    old = await raw_answer(site, home, bus, a_request(site, home, age_ms=200_000))
    assert old["refusal"] == "EXPIRED"
    request = a_request(site, home)
    assert "grants" in await raw_answer(site, home, bus, request)
    before = refusals("csmdb").get("REPLAYED", 0)
    assert await raw_answer(site, home, bus, request) is None
    assert refusals("csmdb")["REPLAYED"] == before + 1


async def test_garbage_is_counted_and_not_answered(site):
    home, _, bus = await site.home("home-1")
    before = refusals("csmdb").get("MALFORMED", 0)
    box = site.csmdb.box.public
    for payload in (b"", b"garbage", seal_to(box, b"{}x"), seal_to(box, b'["a"]')):
        assert await raw_answer(site, home, bus, payload) is None
    assert refusals("csmdb")["MALFORMED"] == before + 4


async def test_a_box_key_that_cannot_be_sealed_to_does_no_harm(site):
    home, client, bus = await site.home("home-1")
    weak = home.enrolment(site.claim()) | {"boxKey": to_text(bytes(32))}
    request = a_request(site, home, operation="enroll", fields=weak)
    assert await raw_answer(site, home, bus, request) is None
    assert await refused(client, "enroll", home.enrolment("AAAA")) == "BAD_CLAIM"


async def test_a_sender_who_floods_is_not_heard_and_others_are(tmp_path):
    site = await Site(tmp_path).open(burst=5)
    try:
        flooder, _, bus = await site.home("home-1")
        before = refusals("csmdb").get("RATE_LIMITED", 0)
        topic = topics.build("test", topics.CSMDB_REQ, flooder.ems.id)
        await asyncio.gather(*(bus.publish(topic, b"flood") for _ in range(50)))
        home, client, _ = await site.home("home-2")
        answer = await client.ask("enroll", home.enrolment(site.claim()), 5)
        assert "certificate" in answer
        assert refusals("csmdb")["RATE_LIMITED"] > before
    finally:
        await site.close()


async def test_a_request_that_met_a_dead_service_is_answered_after_its_restart(site):
    """The asker repeats; the certificate of the lost answer is the one it gets."""
    home, client, _ = await site.home("home-1")
    code = site.claim()
    decided = site.csmdb.desk.enroll(
        home.ems.id, home.enrolment(code), site.csmdb.clock.now_ms()
    )  # … and the process dies before the answer leaves
    await site.own.stop()
    site.csmdb.close()
    asking = asyncio.create_task(client.ask("enroll", home.enrolment(code), 15))
    await asyncio.sleep(0.2)
    site.csmdb = open_csmdb(site.folder / "csmdb")
    await site.serve()
    issuing = site.csmdb.issuing_key.public
    assert load(Certificate, (await asking)["certificate"], issuing, "test") == decided


def test_a_bucket_refills_and_the_number_of_buckets_is_bounded():
    rate = RateLimit(burst=2, per_s=1, capacity=2)
    assert [rate.admit("a", 0.0) for _ in range(3)] == [True, True, False]
    assert rate.admit("a", 1.0)
    rate.admit("b", 1.0)
    rate.admit("c", 1.0)
    assert len(rate._buckets) == 2


def test_a_token_that_is_given_back_can_be_taken_again_and_makes_no_bucket_fuller():
    rate = RateLimit(burst=1, per_s=0, capacity=2)
    assert rate.admit("a", 0.0)
    for _ in range(3):
        rate.give_back("a")
    assert [rate.admit("a", 0.0) for _ in range(2)] == [True, False]
