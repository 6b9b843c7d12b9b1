"""New keys for a home: a lost device is re-enrolled, a running one rotates; nothing is lost."""

import json

import pytest
from support.brokers import make_key
from support.enrolment import AskingHome
from support.office import Office
from typer.testing import CliRunner

from aggregator.accounts import Accounts
from csmdb.cli import app
from csmdb.privacy import erase, set_person
from csmdb.records import Person
from csmdb.revoked_keys import revocation_list, revoke
from csmdb.setup import create
from csmdb.succession import re_enrol
from hem.ems.enrolment import Enrolment
from hem.ems.keyring import Keyring
from hem.ems.rotation import Rotation
from runtime.csmdb_client import CsmDbRefusedError
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.certificates import dump_text
from wire.enrolment import ENROLL, GRANT_ADDRESSES, RENEW, SHOW_PARTICIPANT
from wire.errors import ConfigError, RolledBackError
from wire.keys import to_text
from wire.revoked_keys import dump_list, read_list

DSO = make_key("dso")


@pytest.fixture
def office(tmp_path):
    with create(tmp_path / "csmdb", "test") as csmdb:
        csmdb.issue_service_certificate(DSO.public, ["dso", "aggregator"])
        yield Office(csmdb)


def listed(office):
    return set(revocation_list(office.csmdb).identities)


async def ask_name(client, operation, parameters):
    """The name of the refusal, or OK."""
    try:
        await client.ask(operation, parameters)
    except CsmDbRefusedError as error:
        return error.reason
    return "OK"


async def test_a_lost_device_is_out_and_its_successor_has_what_it_had(office):
    """Old keys and live addresses revoked; roles, person, addresses and account pass on."""
    csmdb = office.csmdb
    old, client = await office.enrolled("old")
    await client.ask(GRANT_ADDRESSES, {"addresses": [old.address_row(1)]})
    set_person(csmdb, old.ems.id, Person("Ada Example"))
    code = re_enrol(csmdb, old.ems.id, "lost")
    assert listed(office) == {old.ems.id, old.address(1).id}
    assert await ask_name(client, RENEW, {}) == "REVOKED"

    new = AskingHome("new")
    line = office.line(new.ems, new.box)
    await line.ask(ENROLL, new.enrolment(code, serial="SN-old"))
    who = csmdb.repository.participant(new.ems.id)
    assert (who.roles, who.max_import_w, who.feeder) == (("prosumer",), 10_000, "feeder-1")
    assert csmdb.repository.person(new.ems.id).name == "Ada Example"
    assert csmdb.repository.address_grant(old.address(1).id)[0] == new.ems.id
    assert await ask_name(line, GRANT_ADDRESSES, {"addresses": [new.address_row(1)]}) == "OK"
    desk = office.line(DSO, AskingHome("dso").box)
    asked = {"participant": new.ems.id, "address": new.address(1).id}
    shown = (await desk.ask(SHOW_PARTICIPANT, asked))["participant"]
    assert shown["predecessors"] == [old.ems.id]
    page = await desk.ask("list-revoked-keys", {"after": 0})
    assert {"identity": old.ems.id, "successor": new.ems.id} in [
        {name: one[name] for name in ("identity", "successor")} for one in page["keys"]
    ]


async def test_a_code_for_a_home_that_has_a_successor_makes_no_second_one(office):
    home, _ = await office.enrolled("old")
    first, second = (re_enrol(office.csmdb, home.ems.id, "lost") for _ in range(2))
    one, two = AskingHome("one"), AskingHome("two")
    same = {"serial": "SN-old"}
    line = office.line(one.ems, one.box)
    assert await ask_name(line, ENROLL, one.enrolment(first, **same)) == "OK"
    assert (
        await ask_name(office.line(two.ems, two.box), ENROLL, two.enrolment(second)) == "CLAIM_USED"
    )
    with pytest.raises(ConfigError, match="successor"):
        re_enrol(office.csmdb, home.ems.id, "lost")


async def test_a_ban_goes_with_the_household_not_with_the_key(office):
    home, client = await office.enrolled("old")
    office.csmdb.ban(home.ems.id, "vulnerable meter")
    assert await ask_name(client, "succession-code", {}) == "BANNED"
    code = re_enrol(office.csmdb, home.ems.id, "lost")
    new = AskingHome("new")
    line = office.line(new.ems, new.box)
    await line.ask(ENROLL, new.enrolment(code))
    assert await ask_name(line, GRANT_ADDRESSES, {"addresses": [new.address_row()]}) == "BANNED"


async def test_a_code_does_not_take_another_homes_meter(office):
    """And what it would have taken is still there after the refusal."""
    home, _ = await office.enrolled("old")
    await office.enrolled("neighbour")
    code = re_enrol(office.csmdb, home.ems.id, "lost")
    thief = AskingHome("thief")
    line = office.line(thief.ems, thief.box)
    stolen = thief.enrolment(code, serial="SN-neighbour")
    assert await ask_name(line, ENROLL, stolen) == "DUPLICATE"
    assert office.csmdb.repository.meter_of(home.ems.id) is not None


def rotating(office, tmp_path, home, certificate):
    csmdb = office.csmdb
    keyring = Keyring(tmp_path / "keys", SystemRng())
    store = SqliteStore(tmp_path / "ems.sqlite")
    enrolment = Enrolment(store, keyring, None, "test", csmdb.issuing_key.public)
    return Rotation(enrolment, keyring.folder, SystemRng()), enrolment


@pytest.mark.parametrize("cut_after", ["nothing", "code", "enrolment", "box key"])
async def test_a_home_replaces_its_keys_whenever_the_power_goes(office, tmp_path, cut_after):
    """The new key is enrolled, the old one refused by name, addresses stay good."""
    csmdb = office.csmdb
    rotation, enrolment = rotating(office, tmp_path, None, None)
    keyring = enrolment.keyring
    old_ems, plain = keyring.ems, AskingHome("home")
    meter = plain.enrolment("")["meter"]
    code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
    old = office.line(old_ems, keyring.box)
    await old.ask(ENROLL, {"claimCode": code, "key": to_text(old_ems.public), "meter": meter})
    row = plain.address_row(1)
    await old.ask(GRANT_ADDRESSES, {"addresses": [row]})

    await rotation.ask_code(old)
    if cut_after == "code":
        rotation, enrolment = rotating(office, tmp_path, None, None)
        await rotation.ask_code(old)
    new_id = rotation.ems.id
    line = office.line(rotation.ems, rotation.box)
    if cut_after in ("enrolment", "box key"):
        put, moved = rotation._put_in_place, []
        rotation._put_in_place = lambda: moved.append(1)
        await rotation.enrol(line, meter)
        rotation._put_in_place = put
        if cut_after == "box key":
            rotation._path("box.key").replace(keyring.folder / "box.key")
        assert moved and rotation.resume().subject == new_id
    else:
        await rotation.enrol(line, meter)
    assert keyring.ems.id == new_id and enrolment.certificate.subject == new_id
    assert rotation.resume() is None
    assert await ask_name(old, RENEW, {}) == "REVOKED"
    assert listed(office) == {old_ems.id}, "addresses are good and settle"
    again = await line.ask(GRANT_ADDRESSES, {"addresses": [row]})
    assert again["grants"][0]["address"] == plain.address(1).id


def test_an_account_moves_once_and_brings_no_second_opening_amount(tmp_path):
    accounts = Accounts(tmp_path / "accounts.sqlite", 500)
    with accounts.atomic():
        accounts.credit("old", -200)
        accounts.bind("address", "old")
        accounts.credit("new", 40)  # a deposit that came first
    for _ in range(2):
        with accounts.atomic():
            accounts.move("old", "new")
        assert accounts.balance_uc("new") == 340
    deposit = {"event": "financial-deposited", "address": "address", "amountUc": 7}
    with accounts.atomic():
        accounts.deposit(1, 0, deposit)
    assert accounts.balance_uc("new") == 347
    accounts.close()


async def test_an_erasure_takes_who_went_before_too(office):
    home, _ = await office.enrolled("old")
    set_person(office.csmdb, home.ems.id, Person("Ada Example"))
    code = re_enrol(office.csmdb, home.ems.id, "lost")
    new = AskingHome("new")
    await office.line(new.ems, new.box).ask(ENROLL, new.enrolment(code, serial="SN-old"))
    erase(office.csmdb, new.ems.id)
    rows = office.csmdb.repository
    assert rows.person(new.ems.id).name == ""
    for one in (home.ems.id, new.ems.id):
        assert "SN-old" not in "".join(map(dump_text, rows.certificates_of(one)))


async def test_the_list_only_goes_up_and_forgets_what_has_ended(office):
    csmdb, (home, client) = office.csmdb, await office.enrolled("old")
    key = csmdb.issuing_key.public
    before = read_list(dump_list(revocation_list(csmdb)), key, "test")
    [grant] = (await client.ask(GRANT_ADDRESSES, {"addresses": [home.address_row(1)]}))["grants"]
    assert revoke(csmdb, grant["address"], "stolen") == 1
    after = read_list(dump_list(revocation_list(csmdb)), key, "test", before)
    assert after.identities == [grant["address"]]
    with pytest.raises(RolledBackError):
        read_list(dump_list(before), key, "test", after)
    assert revoke(csmdb, grant["address"], "stolen") == 1, "again changes nothing"


async def test_the_operators_commands(office):
    """`csmdb tls`, `revoke`, `revoked` and `re-enrol`, with their mistakes in one line."""
    home, _ = await office.enrolled("old")
    folder = office.csmdb.folder
    with pytest.raises(ConfigError, match="csmdb tls init"):
        ran("tls", "server", folder, "localhost")
    assert json.loads(ran("tls", "init", folder, "--json"))["ca"].endswith("tls-ca.crt")
    with pytest.raises(ConfigError, match="already"):
        ran("tls", "init", folder)
    out = folder.parent / "out"
    ran("tls", "server", folder, "broker.example", "127.0.0.1", "--out", out)
    assert (out / "server.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="reason"):
        ran("revoke", folder, home.ems.id, "--reason", "whim")
    assert len(ran("re-enrol", folder, home.ems.id, "--reason", "lost").strip()) == 19
    assert json.loads(ran("revoke", folder, home.ems.id, "--reason", "lost", "--json")) == {
        "number": 1
    }
    assert home.ems.id in json.loads(ran("revoked", folder))["identities"]


def ran(*words):
    """What a command printed; a mistake is raised as `main` would print it."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None:
        raise result.exception
    return result.stdout
