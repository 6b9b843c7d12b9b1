"""The bus over TLS, against the embedded broker with a certificate made for the test."""

import asyncio
import datetime
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from support.brokers import Authority, make_key
from support.patience import PATIENCE_S

from broker.embedded import EmbeddedBroker
from runtime.bus import lane
from runtime.rng import SystemRng
from wire.topics import TX, build

AUTHORITY = Authority()
HOME, NODE = make_key("home"), make_key("node")


@pytest.fixture
def files(tmp_path):
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    pem, private = tmp_path / "server.crt", tmp_path / "server.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return pem, private


def make_lane(port, key, credential, tls):
    return lane(
        key, "test", credential, "127.0.0.1", port, AUTHORITY.clock, SystemRng(), tls=tls
    )  # fmt: skip


async def test_messages_small_and_large_pass_through_tls(files):
    broker = EmbeddedBroker(AUTHORITY.trust, AUTHORITY.clock, certfile=files[0], keyfile=files[1])
    await broker.start()
    tls = ssl.create_default_context(cafile=files[0])
    home = make_lane(broker.port, HOME, AUTHORITY.grant(HOME), tls)
    node = make_lane(broker.port, NODE, AUTHORITY.certificate(NODE, ["validator"]), tls)
    got = asyncio.Queue()
    node.subscribe(build("test", TX, "+"), got.put)
    for bus in (home, node):
        await bus.start()
        await bus.wait_connected(PATIENCE_S)
    sizes = [1, 120_000, 2, 17_000, *[300] * 200, 120_000]
    for size in sizes:
        home.publish_soon(build("test", TX, HOME.id), bytes(size))
    received = [len((await asyncio.wait_for(got.get(), PATIENCE_S)).payload) for _ in sizes]
    assert received == sizes
    for bus in (home, node):
        await bus.stop()
    await broker.shutdown()


async def test_a_broker_that_cannot_prove_its_name_is_not_talked_to(files):
    broker = EmbeddedBroker(AUTHORITY.trust, AUTHORITY.clock, certfile=files[0], keyfile=files[1])
    await broker.start()
    home = make_lane(broker.port, HOME, AUTHORITY.grant(HOME), ssl.create_default_context())
    await home.start()
    with pytest.raises(TimeoutError):
        await home.wait_connected(0.5)
    await home.stop()
    await broker.shutdown()
