"""A home and a broker with certificates: what the provisioning file asks for is what happens."""

import pytest
from support.brokers import make_key
from support.tls_site import tls_site

from hem.config import Broker, Home, Market, load_provisioning
from hem.ems.enrolment import Enrolment
from hem.ems.keyring import Keyring
from hem.ems.rotation import rotate, stranger_line
from hem.ems.tls import home_tls
from runtime.csmdb_client import CsmDbRefusedError
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.enrolment import RENEW
from wire.errors import ConfigError
from wire.keys import to_text
from wire.topics import STATE, build

PLATE = {"type": "sunspec", "vendor": "Test", "model": "M1", "serial": "SN-1", "firmware": "1.0"}


class Gateway:
    async def nameplate(self):
        return PLATE

    async def public_keys(self):
        return {"meter": to_text(make_key("meter").public)}


class Config:
    """The sections of a provisioning file that this is about."""

    def __init__(self, site, folder):
        csmdb = site.csmdb
        code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        self.home = Home(name="home", claim_code=code, data_dir=folder)
        self.broker = Broker(host="127.0.0.1", port=site.port, ca=site.ca, door=site.url)
        self.market = Market(
            name="test", genesis="genesis.json", csmdb=csmdb.id,
            csmdb_key=to_text(csmdb.issuing_key.public), csmdb_box=to_text(csmdb.box.public),
        )  # fmt: skip


@pytest.mark.parametrize("make", ["embedded", "mosquitto"])
async def test_a_home_enrols_connects_and_replaces_its_keys(tmp_path, make):
    """First certificate, TLS key, rotation of the EMS key; the old one is out by name."""
    async with tls_site(tmp_path, make) as site:
        csmdb, rng = site.csmdb, SystemRng()
        config = Config(site, tmp_path / "home")
        config.home.data_dir.mkdir()
        keyring = Keyring(tmp_path / "home" / "keys", rng)
        store = SqliteStore(tmp_path / "home" / "ems.sqlite")
        enrolment = Enrolment(store, keyring, Gateway(), "test", csmdb.issuing_key.public)
        old_key, old_box = keyring.ems, keyring.box
        for turn in range(2):
            if turn == 0:
                async with stranger_line(config, old_key, old_box, csmdb.clock, rng) as line:
                    await enrolment.enrol(line, config.home.claim_code)
            else:
                await rotate(config, enrolment, csmdb.clock, rng)
            tls = home_tls(config, keyring, csmdb.clock, rng)
            await tls.ensure(keyring.ems.id)
            bus = await site.open(
                keyring.ems, enrolment.certificate, tls.context_for(keyring.ems.id)
            )
            await bus.publish(build("test", STATE, keyring.ems.id), b"on")
        assert keyring.ems.id != old_key.id
        assert csmdb.repository.keys.predecessors(keyring.ems.id) == [old_key.id]
        async with stranger_line(config, old_key, old_box, csmdb.clock, rng) as line:
            with pytest.raises(CsmDbRefusedError, match="REVOKED"):
                await line.ask(RENEW, {})
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "home/tls").glob("*.key")}
        assert modes == {0o600}
        store.close()


@pytest.mark.parametrize("given", ['ca = "ca.crt"', 'door = "https://csmdb:8336"'])
def test_half_of_it_is_named(tmp_path, given):
    """A provisioning file with a certificate and no door, or the other way round."""
    path = tmp_path / "provisioning.toml"
    path.write_text(f"""
        [home]
        name = "home"
        claim_code = "x"
        data_dir = "data"
        [broker]
        port = 8883
        {given}
        [market]
        name = "test"
        genesis = "genesis.json"
        csmdb = "{make_key("a").id}"
        csmdb_key = "{to_text(make_key("a").public)}"
        csmdb_box = "{to_text(make_key("a").public)}"
        [[devices]]
        name = "meter"
        kind = "sunspec-meter"
    """)
    with pytest.raises(ConfigError, match="ca and door belong together"):
        load_provisioning(path)
