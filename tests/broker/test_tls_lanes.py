"""TLS with the CSM-DB's certificates, end to end, on the embedded broker and a real Mosquitto."""

import asyncio
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from support.brokers import make_key
from support.patience import PATIENCE_S
from support.tls_site import tls_site

from csmdb.revoked_keys import revoke
from runtime.csmdb_client import CsmDbRefusedError
from runtime.lane_tls import service_tls
from runtime.metrics import refusals
from runtime.tls import trusting
from wire.topics import EVENTS, STATE, TX, build

NODE = make_key("node")
REFUSED_WITHIN_S = 1.0
"""So long a connection is tried that must not come about."""


@pytest.fixture(params=["embedded", "mosquitto"])
async def site(request, tmp_path):
    async with tls_site(tmp_path, request.param, {NODE: ("validator",)}) as running:
        yield running


def topic(kind, leaf=""):
    return build("test", kind, leaf)


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def hears(bus, topic_filter):
    heard = []

    async def take(message):
        heard.append(message.payload)

    bus.subscribe(topic_filter, take)
    return heard


async def service_lane(site, key):
    """A lane of a service, which gets its certificate as a home does."""
    csmdb = site.csmdb
    own = service_tls(
        site.ca, site.url, site.folder / key.id, key, "test", csmdb.issuing_key.public,
        csmdb.clock, csmdb.rng,
    )  # fmt: skip
    await own.ensure(key.id)
    credential = csmdb.repository.certificate_of(key.id)
    return site.bus(key, credential, own.context_for(key.id))


async def stays_out(bus):
    await bus.start()
    with pytest.raises(TimeoutError):
        await bus.wait_connected(REFUSED_WITHIN_S)
    return True


async def test_a_home_gets_in_through_the_door_and_a_revoked_one_is_out(site, tmp_path):
    """The whole life: first certificate, an address' own, revocation while connected, and after."""
    node = await service_lane(site, NODE)
    heard = await hears(node, topic(TX, "+"))
    await node.start()
    home, other = await site.home("one"), await site.home("two")
    key, grant = await site.grant(home, 1)
    other_key, other_grant = await site.grant(other, 1)
    own = await site.open(home.ems, home.certificate, home.tls.context_for(home.ems.id))
    trading = site.bus(key, grant, home.tls.context_for(key.id))
    events = await hears(trading, topic(EVENTS, "x"))
    await trading.start()
    neighbour = await site.open(other_key, other_grant, other.tls.context_for(other_key.id))
    for bus in (node, trading):
        await bus.wait_connected(PATIENCE_S)
    await trading.publish(topic(TX, key.id), b"bid")
    await until(lambda: heard == [b"bid"])
    serials = {
        x509.load_pem_x509_certificate(path.read_bytes()).public_key().public_bytes_raw()
        for path in (tmp_path / "one").glob("*.crt")
    }
    assert len(serials) == 2, "each identity has a TLS key of its own"

    began_s = time.monotonic()
    revoke(site.csmdb, home.ems.id, "stolen")
    if site.broker is not None:
        await until(lambda: not own.connected and not trading.connected)
    while True:  # Mosquitto: the connection stands, but nothing passes
        heard.clear()
        if trading.connected:
            await trading.publish(topic(TX, key.id), b"after")
        await neighbour.publish(topic(TX, other_key.id), b"neighbour")
        await until(lambda: b"neighbour" in heard)
        if b"after" not in heard:
            break
        assert time.monotonic() - began_s < 60, "a revoked key is out within a minute"
    await node.publish(topic(EVENTS, "x"), b"event")
    await neighbour.publish(topic(TX, other_key.id), b"later")
    await until(lambda: b"later" in heard)
    assert events == []
    for stale in (own, trading):
        await stale.stop()
    assert await stays_out(site.bus(key, grant, home.tls.context_for(key.id)))
    assert neighbour.connected, "nobody else was disconnected"
    with pytest.raises(CsmDbRefusedError, match="REVOKED"):
        await home.client.ask("renew", {})


async def test_nobody_enters_without_a_certificate_or_with_anothers(site):
    home, other = await site.home("one"), await site.home("two")
    bare = trusting(site.ca)
    assert await stays_out(site.bus(home.ems, home.certificate, bare))
    if site.broker is not None:  # Mosquitto takes the certificate's name, whatever is said
        before = refusals("broker").get("BAD_CERTIFICATE", 0)
        liar = site.bus(home.ems, home.certificate, other.tls.context_for(other.ems.id))
        assert await stays_out(liar)
        assert refusals("broker")["BAD_CERTIFICATE"] > before


async def test_a_replaced_tls_key_is_revoked_and_its_owner_goes_on(site, tmp_path):
    """Rotation of a TLS key: the new one works, the old one's certificate does not."""
    home = await site.home("one")
    before = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    home.tls._tls.replace_key(home.ems.id)
    await home.tls.ensure(home.ems.id)
    bus = await site.open(home.ems, home.certificate, home.tls.context_for(home.ems.id))
    await bus.publish(topic(STATE, home.ems.id), b"on")
    stolen = tmp_path / "stolen"
    stolen.mkdir()
    for name, content in before.items():
        (stolen / name).write_bytes(content)
    context = trusting(site.ca)
    name = f"tls-{home.ems.id}"
    context.load_cert_chain(stolen / f"{name}.crt", stolen / f"{name}.key")
    await until(lambda: _revoked_serials(site))
    thief = site.bus(home.ems, home.certificate, context)
    await asyncio.sleep(0.5)  # two looks at the list, and Mosquitto's SIGHUP
    assert await stays_out(thief)
    await thief.stop()
    assert bus.connected


def _revoked_serials(site):
    return site.csmdb.repository.keys.newest() > 0


async def test_a_home_gets_certificates_for_its_own_identities_only(tmp_path):
    async with tls_site(tmp_path, "embedded") as site:
        home, other = await site.home("one"), await site.home("two")
        key, _ = await site.grant(other, 1)
        for identity in (other.ems.id, key.id, make_key("nobody").id):
            with pytest.raises(CsmDbRefusedError, match="NOT_ALLOWED"):
                await home.tls.obtain(identity)
        certificate = x509.load_pem_x509_certificate(
            (tmp_path / "two" / f"tls-{key.id}.crt").read_bytes()
        )
        assert certificate.subject.rfc4514_string() == f"CN={key.id}"
        assert other.ems.id not in certificate.public_bytes(Encoding.DER).decode("latin-1")
        since = certificate.not_valid_before_utc
        assert (since.hour, since.minute, since.second) == (0, 0, 0)
