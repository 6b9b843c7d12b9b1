"""A home whose rotation of keys was cut off has one of the two sets of keys that work."""

import pytest
from support.brokers import make_key
from support.homes import Site

from hem.config import load_provisioning
from hem.ems.enrolment import Enrolment
from hem.ems.keyring import Keyring
from hem.ems.rotation import Rotation, finish, rotate, stranger_line
from hem.service import HomeEnergyManager
from runtime.clock import SystemClock
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.keys import to_text

PLATE = {"type": "sunspec", "vendor": "Test", "model": "M1", "serial": "SN-1", "firmware": "1.0"}
CLOCK, RNG = SystemClock(), SystemRng()


class Gateway:
    async def nameplate(self):
        return PLATE

    async def public_keys(self):
        return {"meter": to_text(make_key("meter").public)}


class CutError(Exception):
    """The power goes."""


def cut(*_):
    raise CutError


class House:
    """A home's files, enrolled with a real CSM-DB behind a real broker."""

    def __init__(self, site, file):
        self.site, self.config = site, load_provisioning(file)
        self.folder = self.config.home.data_dir

    def start(self):
        keyring = Keyring(self.folder / "keys", RNG)
        self.store = SqliteStore(self.folder / "ems.sqlite")
        issuing = self.site.csmdb.issuing_key.public
        return Enrolment(self.store, keyring, Gateway(), "test", issuing)

    def running(self):
        """Who the home is that `hem run` would run."""
        home = HomeEnergyManager(self.config, CLOCK, RNG)
        certificate = home.enrolment.certificate
        home.close()
        return home.ems_key.id, certificate.subject


@pytest.fixture
async def house(tmp_path):
    site = await Site.open(tmp_path)
    made = House(site, (await site.home("home-01", load_w=1_000)).file)
    made.folder.mkdir(exist_ok=True)
    enrolment = made.start()
    keyring = enrolment.keyring
    async with stranger_line(made.config, keyring.ems, keyring.box, CLOCK, RNG) as line:
        await enrolment.enrol(line, made.config.home.claim_code)
    made.old = keyring.ems.id
    yield made
    await site.close()


@pytest.mark.parametrize("moved", [[], ["box.key"]])
async def test_with_the_certificate_kept_a_start_moves_the_keys(house, monkeypatch, moved):
    """The cut comes before any key was moved, or between the two."""
    enrolment = house.start()
    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(Rotation, "_put_in_place", cut)
        await rotate(house.config, enrolment, CLOCK, RNG)
    keys = house.folder / "keys"
    for name in moved:
        (keys / f"{name}.next").replace(keys / name)
    house.store.close()
    now, certified = house.running()
    assert now == certified != house.old
    assert not list(keys.glob("*.next"))
    assert house.site.csmdb.repository.keys.successor_of(house.old) == now


async def test_with_the_answer_lost_a_start_asks_again_though_the_old_key_is_revoked(
    house, monkeypatch
):
    """Enrolled at the CSM-DB, nothing kept at home."""
    enrolment = house.start()
    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr("hem.ems.rotation.load", cut)
        await rotate(house.config, enrolment, CLOCK, RNG)
    house.store.close()
    assert house.site.csmdb.repository.keys.successor_of(house.old)
    assert await finish(house.config, house.start(), CLOCK, RNG)
    house.store.close()
    now, certified = house.running()
    assert now == certified != house.old
    assert not await finish(house.config, house.start(), CLOCK, RNG), "once is enough"
    house.store.close()


async def test_a_code_that_ended_unused_leaves_the_old_keys(house, monkeypatch):
    """Nobody was told of the new ones; the next rotation gets another code."""
    monkeypatch.setattr("csmdb.succession.ROTATION_DAYS", -1)
    enrolment = house.start()
    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(Rotation, "enrol", cut)
        await rotate(house.config, enrolment, CLOCK, RNG)
    assert not await finish(house.config, enrolment, CLOCK, RNG)
    monkeypatch.undo()
    house.store.close()
    assert house.running() == (house.old, house.old)
    renewed = await rotate(house.config, house.start(), CLOCK, RNG)
    house.store.close()
    assert house.running() == (renewed.subject, renewed.subject)
