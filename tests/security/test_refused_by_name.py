"""
What is old, another's, out of its time or revoked is refused, and by which name.

One row each: where it comes in, what it is, the name. A row is a function of a `World` that does
the thing; the name is what the service counted or answered. To add one, write the function under
`@refused("where", "what", "NAME")`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass
from datetime import timedelta

import pytest
from support.brokers import DAY_MS, Authority, make_key, running_broker
from support.chain_builder import FIRST_SLOT, START_MS, Chain, bid, key, register
from support.csmdb_site import NOW_MS, enrolled
from support.enrolment import AskingHome
from support.firmware import Makers, showing
from support.gateway_door import door
from support.office import NoBus, Office
from support.raw_mqtt import RawClient

from aggregator.accounts import Accounts
from aggregator.dso_desk import BURST, DsoDesk
from aggregator.grid_limits import GridPolicy
from aggregator.withdrawals import SafetyPolicy
from broker.access import Trust
from broker.revocations import Revocations
from csmdb.advisories import import_document
from csmdb.records import Refused
from csmdb.revoked_keys import revocation_list, revoke, revoke_tls
from csmdb.setup import create
from csmdb.tls import init_authority
from hem.ems.limit_book import LimitBook
from hem.firmware_client import Question, taken
from hem.firmware_worker import consult as consult_here
from hem.gateway.protocol import REQUEST_BYTES_MAX
from ledger.mempool import Mempool
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbRefusedError
from runtime.lane_tls import LaneTls
from runtime.metrics import refusals
from runtime.ports import Message
from runtime.rng import SystemRng
from runtime.store import MemoryStore
from runtime.tls import Tls
from sim.scenarios.vulnerable_meter import made_up
from wire import topics
from wire.certificates import dump, make_token
from wire.enrolment import ENROLL, RENEW, make_request
from wire.envelope import Envelope, new_req_id, seal_envelope
from wire.errors import FirmwareRefusedError, WireError
from wire.firmware import (
    Attestation,
    Plate,
    Target,
    attestation_json,
    check_fits,
    sign_attestation,
)
from wire.grid_limit import LIMIT_GRID
from wire.keys import BoxKey, Domain, to_text
from wire.revoked_keys import dump_list, read_list
from wire.slots import SlotGrid
from wire.withdrawal import SHOW_ACCOUNT

MARKET, OTHER_MARKET = "test", "elsewhere"
DSO, STRANGER = make_key("supervisor"), make_key("stranger")
DSO_BOX = BoxKey(make_key("dso-box").seed)
MINUTE_MS = 60_000
ROWS = []


def refused(where, what, name):
    """Enter a row into the table."""

    def enter(row):
        ROWS.append(pytest.param(row, name, id=f"{where}: {what}"))
        return row

    return enter


@pytest.fixture
async def world(tmp_path):
    with create(tmp_path / "csmdb", MARKET) as csmdb:
        init_authority(csmdb)
        yield World(Office(csmdb), tmp_path)


@pytest.mark.parametrize(("row", "name"), ROWS)
async def test_refused_by_name(world, row, name):
    """The name is the one the table says."""
    assert await row(world) == name


@dataclass
class World:
    office: Office
    folder: object

    @property
    def csmdb(self):
        return self.office.csmdb

    @property
    def authority(self):
        return Authority(MARKET, self.csmdb.issuing_key)

    @property
    def now_ms(self):
        return SystemClock().wall_ms()


async def name_of(work, component):
    """What a service counted while it was at work."""
    before = refusals(component)
    await work
    after = refusals(component)
    found = [name for name, count in after.items() if count > before.get(name, 0)]
    assert len(found) == 1, found
    return found[0]


def raised(work):
    with pytest.raises((WireError, FirmwareRefusedError)) as caught:
        work()
    return caught.value.refusal.value


async def answered(work):
    try:
        await work
    except CsmDbRefusedError as error:
        return error.reason
    return "OK"


# --- the broker -----------------------------------------------------------------------------------

HOME = make_key("home")


async def knock(world, *, credential=None, market=MARKET, age_ms=0, times=1, before=None):
    """CONNECT to a real broker; what it counts."""
    credential = credential or world.authority.certificate(HOME, ["prosumer"])
    password = make_token(HOME, market, world.now_ms - age_ms, secrets.token_hex(8), credential)
    async with running_broker(world.authority) as broker:
        if before is not None:
            before(broker)

        async def connect():
            for _ in range(times):
                client = await RawClient.open(broker.port)
                await client.connect(HOME.id, HOME.id, password)

        return await name_of(connect(), "broker")


@refused("broker", "a token that was used", "REPLAYED")
async def _(world):
    return await knock(world, times=2)


@refused("broker", "a token of another market", "BAD_SIGNATURE")
async def _(world):
    return await knock(world, market=OTHER_MARKET)


@refused("broker", "a token from two minutes ago", "EXPIRED")
async def _(world):
    return await knock(world, age_ms=2 * MINUTE_MS)


@refused("broker", "a token from in two minutes", "EXPIRED")
async def _(world):
    return await knock(world, age_ms=-2 * MINUTE_MS)


@refused("broker", "a certificate that has ended", "BAD_CERTIFICATE")
async def _(world):
    now_ms = world.now_ms
    old = world.authority.certificate(HOME, ["prosumer"], now_ms - DAY_MS, now_ms - 1)
    return await knock(world, credential=old)


@refused("broker", "a certificate that is not valid yet", "BAD_CERTIFICATE")
async def _(world):
    now_ms = world.now_ms
    early = world.authority.certificate(HOME, ["prosumer"], now_ms + DAY_MS, now_ms + 2 * DAY_MS)
    return await knock(world, credential=early)


@refused("broker", "a certificate of another issuer", "BAD_SIGNATURE")
async def _(world):
    forged = Authority(MARKET, STRANGER).certificate(HOME, ["validator"])
    return await knock(world, credential=forged)


@refused("broker", "a certificate of another market", "BAD_SIGNATURE")
async def _(world):
    other = Authority(OTHER_MARKET, world.csmdb.issuing_key).certificate(HOME, ["prosumer"])
    return await knock(world, credential=other)


@refused("broker", "another's certificate", "BAD_CERTIFICATE")
async def _(world):
    return await knock(world, credential=world.authority.certificate(STRANGER, ["validator"]))


@refused("broker", "a grant that has ended long ago", "BAD_CERTIFICATE")
async def _(world):
    return await knock(world, credential=world.authority.grant(HOME, end_slot=1_000))


def revoked_list(world, *identities):
    with world.csmdb.repository.atomic():
        for identity in identities:
            until_ms = world.now_ms + DAY_MS
            world.csmdb.repository.keys.add_revocation(
                world.now_ms, until_ms, "stolen", identity=identity
            )
    return dump_list(revocation_list(world.csmdb))


@refused("broker", "a revoked key", "REVOKED")
async def _(world):
    raw = revoked_list(world, HOME.id)
    return await knock(world, before=lambda broker: broker._revocations.take(raw))


@refused("broker", "an older list of revoked keys", "ROLLED_BACK")
async def _(world):
    old, new = revoked_list(world), revoked_list(world, HOME.id)
    revocations = Revocations(Trust(MARKET, world.csmdb.issuing_key.public))
    revocations.take(new)
    return raised(lambda: revocations.take(old))


@refused("broker", "after a restart, a list of revoked keys older than the kept one", "ROLLED_BACK")
async def _(world):
    old, new = revoked_list(world), revoked_list(world, HOME.id)
    trust, kept = Trust(MARKET, world.csmdb.issuing_key.public), world.folder / "kept"
    Revocations(trust, kept).take(new)
    return raised(lambda: Revocations(trust, kept).take(old))


@refused("broker", "another market's list of revoked keys", "BAD_SIGNATURE")
async def _(world):
    raw = revoked_list(world, HOME.id)
    return raised(lambda: read_list(raw, world.csmdb.issuing_key.public, OTHER_MARKET))


@refused("broker", "a list of revoked keys of anybody", "BAD_SIGNATURE")
async def _(world):
    raw = revoked_list(world, HOME.id)
    return raised(lambda: read_list(raw, STRANGER.public, MARKET))


# --- the CSM-DB -----------------------------------------------------------------------------------


async def request(world, *, market=MARKET, age_ms=0, topic_of=None, times=1):
    """A renewal as bytes on the topic; what the CSM-DB counts."""
    home, _ = await world.office.enrolled("home")
    raw = make_request(
        home.ems, market, world.csmdb.box.public, RENEW, {}, new_req_id(1, secrets.token_bytes(10)),
        world.now_ms - age_ms,
    )  # fmt: skip

    async def send():
        for _ in range(times):
            world.office.service.answer(topic_of or home.ems.id, raw)

    return await name_of(send(), "csmdb")


@refused("csmdb", "a request that was sent before", "REPLAYED")
async def _(world):
    return await request(world, times=2)


@refused("csmdb", "a request of another market", "BAD_SIGNATURE")
async def _(world):
    return await request(world, market=OTHER_MARKET)


@refused("csmdb", "a request on another's topic", "BAD_CERTIFICATE")
async def _(world):
    return await request(world, topic_of=STRANGER.id)


@refused("csmdb", "a request from three minutes ago", "EXPIRED")
async def _(world):
    return await request(world, age_ms=3 * MINUTE_MS)


@refused("csmdb", "a request from in three minutes", "FUTURE_DATED")
async def _(world):
    return await request(world, age_ms=-3 * MINUTE_MS)


@refused("csmdb", "a request of a revoked key", "REVOKED")
async def _(world):
    home, client = await world.office.enrolled("home")
    revoke(world.csmdb, home.ems.id, "stolen")
    return await answered(client.ask(RENEW, {}))


@refused("csmdb", "enrolment with a revoked key", "REVOKED")
async def _(world):
    home, client = await world.office.enrolled("home")
    revoke(world.csmdb, home.ems.id, "stolen")
    code = world.csmdb.add_claim(["prosumer"], 1, 1, "feeder-1")
    return await answered(client.ask(ENROLL, home.enrolment(code)))


@refused("csmdb", "a TLS key that was revoked", "REVOKED")
async def _(world):
    home, client = await world.office.enrolled("home")

    async def line():
        return client

    tls = Tls(world.folder / "tls", world.csmdb.folder / "tls-ca.crt", SystemClock())
    await LaneTls(tls, line, SystemRng()).ensure(home.ems.id)
    revoke_tls(world.csmdb, home.ems.id, "stolen")
    return await answered(tls._ask(client, [home.ems.id]))


@refused("csmdb", "a claim code that was used", "CLAIM_USED")
async def _(world):
    code = world.csmdb.add_claim(["prosumer"], 1, 1, "feeder-1")
    one, two = AskingHome("one"), AskingHome("two")
    await world.office.line(one.ems, one.box).ask(ENROLL, one.enrolment(code))
    return await answered(world.office.line(two.ems, two.box).ask(ENROLL, two.enrolment(code)))


@refused("csmdb", "a claim code that has ended", "EXPIRED")
async def _(world):
    code = world.csmdb.add_claim(["prosumer"], 1, 1, "feeder-1", days=0)
    one = AskingHome("one")
    return await answered(world.office.line(one.ems, one.box).ask(ENROLL, one.enrolment(code)))


# --- the DSO's desk -------------------------------------------------------------------------------


async def ask_dso(
    world, *, market=MARKET, age_ms=0, topic_of=None, times=1, apart=False, revoked=()
):
    """A look at an account as bytes on the topic; what the desk counts."""
    desk = DsoDesk(
        NoBus(), DSO, DSO_BOX, MARKET, SlotGrid(), Accounts(":memory:"), None, None, SystemClock(),
        SafetyPolicy(), GridPolicy(), SystemRng(), energy=True,
    )  # fmt: skip
    desk._answer = _nothing
    desk.revoked._identities.update(revoked)

    def made():
        return make_request(
            HOME, market, DSO_BOX.public, SHOW_ACCOUNT,
            {"key": to_text(HOME.public), "boxKey": to_text(DSO_BOX.public)},
            new_req_id(1, secrets.token_bytes(10)), world.now_ms - age_ms,
        )  # fmt: skip

    raw = made()
    topic = topics.build(MARKET, topics.DSO_REQ, topic_of or HOME.id)

    async def send():
        for _ in range(times):
            await desk.take(Message(topic, made() if apart else raw, False))
            for task in list(desk._tasks):
                await task

    return await name_of(send(), "dso")


async def _nothing(*_):
    return None


@refused("dso", "a request that was sent before", "REPLAYED")
async def _(world):
    return await ask_dso(world, times=2)


@refused("dso", "a request of another market", "BAD_SIGNATURE")
async def _(world):
    return await ask_dso(world, market=OTHER_MARKET)


@refused("dso", "a request on another's topic", "BAD_CERTIFICATE")
async def _(world):
    return await ask_dso(world, topic_of=STRANGER.id)


@refused("dso", "a request from three minutes ago", "EXPIRED")
async def _(world):
    return await ask_dso(world, age_ms=3 * MINUTE_MS)


@refused("dso", "a request from in three minutes", "FUTURE_DATED")
async def _(world):
    return await ask_dso(world, age_ms=-3 * MINUTE_MS)


@refused("dso", "more requests than a sender may send at once", "RATE_LIMITED")
async def _(world):
    return await ask_dso(world, times=BURST + 5, apart=True)


@refused("dso", "a request of a revoked key", "REVOKED")
async def _(world):
    return await ask_dso(world, revoked=[HOME.id])


# --- a home's commands ----------------------------------------------------------------------------


async def command(world, *, signer=DSO, market=MARKET, age_ms=0, times=1, domain=Domain.MESSAGE):
    """A limit for a home; what the home counts."""
    book = LimitBook(
        MemoryStore(), world.folder, (), HOME.id, MARKET, DSO.public, SystemClock()
    )  # fmt: skip
    envelope = Envelope(
        signer.id, new_req_id(1, secrets.token_bytes(10)), world.now_ms - age_ms, LIMIT_GRID,
        {"home": HOME.id},
    )  # fmt: skip
    raw = seal_envelope(envelope, signer, domain, market)
    message = Message(topics.build(MARKET, topics.COMMAND, HOME.id), raw, False)

    async def send():
        for _ in range(times):
            await book.take(message)

    before = refusals("hem")
    await send()
    after = refusals("hem")
    # the command is malformed on purpose: it changes nothing where it is let in
    return next(n for n, c in after.items() if c > before.get(n, 0) and n != "MALFORMED")


@refused("hem", "a command that was sent before", "REPLAYED")
async def _(world):
    return await command(world, times=2)


@refused("hem", "a command of another market", "BAD_SIGNATURE")
async def _(world):
    return await command(world, market=OTHER_MARKET)


@refused("hem", "what was signed for another kind of topic", "BAD_SIGNATURE")
async def _(world):
    return await command(world, domain=Domain.TX)


@refused("hem", "a command of anybody", "UNKNOWN_SENDER")
async def _(world):
    return await command(world, signer=STRANGER)


@refused("hem", "a command from three minutes ago", "EXPIRED")
async def _(world):
    return await command(world, age_ms=3 * MINUTE_MS)


@refused("hem", "a command from in three minutes", "FUTURE_DATED")
async def _(world):
    return await command(world, age_ms=-3 * MINUTE_MS)


# --- the ledger -----------------------------------------------------------------------------------

ANN, BOB = key("ann"), key("bob")


def submit(*, again=False, chain_id="", topic_of=None, expires_slot=FIRST_SLOT + 99, at=1):
    """A transaction as bytes on its topic; what the mempool raises."""
    chain = Chain()
    chain.settle_in(ANN, BOB)
    tx = chain.tx(ANN, bid("buy", FIRST_SLOT + 2, 100, 1), expires_slot=expires_slot)
    if chain_id:
        chain.chain_id = chain_id
        tx = chain.tx(ANN, bid("buy", FIRST_SLOT + 2, 100, 1), nonce=tx.nonce)
    now_ms = START_MS + 60_000
    if again:
        chain.block(now_ms, tx)
    pool = Mempool(chain.ledger)
    return raised(lambda: pool.add(tx.raw, now_ms + at, topic_of or ANN.id))


def operated(*operations):
    """What becomes of operations in a block of their own, the last one's code."""
    chain = Chain()
    chain.settle_in(ANN)
    return chain.codes(START_MS + 60_000, ANN, *operations)[-1]


@refused("ledger", "a transaction that was in a block", "REPLAYED")
async def _(world):
    return submit(again=True)


@refused("ledger", "a transaction of another chain", "BAD_SIGNATURE")
async def _(world):
    return submit(chain_id="0" * 64)


@refused("ledger", "a transaction on another's topic", "BAD_TOPIC")
async def _(world):
    return submit(topic_of=BOB.id)


@refused("ledger", "a transaction whose last slot has passed", "EXPIRED")
async def _(world):
    return submit(expires_slot=FIRST_SLOT - 1)


@refused("ledger", "a grant that has ended", "EXPIRED")
async def _(world):
    return operated(register(ANN, start_slot=0, end_slot=1))


@refused("ledger", "a grant of another issuer", "BAD_SIGNATURE")
async def _(world):
    grant = Authority("test", STRANGER).grant(BOB, end_slot=FIRST_SLOT + 400)
    return operated({"op": "register-address", "grant": dump(grant)})


@refused("ledger", "another's grant", "NOT_ALLOWED")
async def _(world):
    return operated(register(key("eve")))


# --- the gateway's socket: what a home's trading program that was broken into could try -----------

ADDRESS, SECOND = key("address").id, key("second address").id
SLOT = 1_980_000


async def gateway(world, method, params=None, *, before=None, uid=None):
    async with door(world.folder, uid=uid) as opened:
        opened.meter(SLOT, SLOT + 2)
        if before is not None:
            assert await opened.ask(*before) == "OK"
        return await opened.ask(method, params or {})


def receipt(address, slot):
    return "sign_receipt", {"address": address, "slot": slot}


@refused("gateway", "one slot confirmed for a second address", "OTHER_ADDRESS")
async def _(world):
    return await gateway(
        world, *receipt(SECOND, SLOT + 1), before=receipt(ADDRESS, SLOT + 1)
    )  # fmt: skip


@refused("gateway", "a slot that was not metered", "NO_READING")
async def _(world):
    return await gateway(world, *receipt(ADDRESS, SLOT + 3))


@refused("gateway", "a slot whose beginning was not metered", "GAP")
async def _(world):
    return await gateway(world, *receipt(ADDRESS, SLOT))


@refused("gateway", "a reading of a slot that has not ended", "TOO_EARLY")
async def _(world):
    return await gateway(world, "sign_reading", {"slot": 2**40})


@refused("gateway", "registers that the caller says", "BAD_PARAMS")
async def _(world):
    return await gateway(world, "sign_reading", {"slot": SLOT + 3, "import_wh": 10**6})


@refused("gateway", "a net energy that the caller says", "BAD_PARAMS")
async def _(world):
    method, params = receipt(ADDRESS, SLOT + 1)
    return await gateway(world, method, {**params, "net_wh": -10_000})


@refused("gateway", "an attestation over a window without end", "BAD_WINDOW")
async def _(world):
    window = {"validator": ADDRESS, "start_slot": 1, "end_slot": SLOT + 2}
    return await gateway(world, "attest_cpf", window)


@refused("gateway", "a setpoint that no battery has", "BAD_PARAMS")
async def _(world):
    return await gateway(world, "set_battery", {"power_w": 10_000_001, "lease_s": 60})


@refused("gateway", "a setpoint for ever", "BAD_PARAMS")
async def _(world):
    return await gateway(world, "set_battery", {"power_w": 1_000, "lease_s": 10**9})


@refused("gateway", "a method that there is not", "UNKNOWN_METHOD")
async def _(world):
    return await gateway(world, "export_key")


@refused("gateway", "a pseudonym for what is no identity", "BAD_PARAMS")
async def _(world):
    return await gateway(world, "pseudonym", {"label": "../meter.key"})


@refused("gateway", "a frame without end", "OVERSIZED")
async def _(world):
    return await gateway(world, "state", {"x": "y" * 2 * REQUEST_BYTES_MAX})


@refused("gateway", "another user", "NOT_ALLOWED")
async def _(world):
    async with door(world.folder, uid=os.getuid() + 1) as opened:
        return await opened.ask("state", {})


# --- firmware: metadata after The Update Framework, and what meters say of themselves ------------

DAY = timedelta(days=1)


def firmware(world, spoil):
    """
    What a home says by HTTP and a gateway by what is handed over, each after it saw a good one.

    Args:
        spoil: changes what the server shows; gets the makers and the server
    """
    makers = Makers(world.folder / "makers")
    makers.release("2.0", b"new")
    with showing(makers.public) as server:
        assert ask_home(world, makers, server) == ask_gateway(world, makers, server) == "OK"
        spoil(makers, server)
        said = {ask_home(world, makers, server), ask_gateway(world, makers, server)}
    assert len(said) == 1, said
    return said.pop()


def consulted(makers, state, **source):
    try:
        taken(consult_here(Question(root=str(makers.root), state=str(state), **source)))
    except FirmwareRefusedError as error:
        return error.refusal.value
    return "OK"


def ask_home(world, makers, server):
    return consulted(makers, world.folder / "home", url=server.url)


def ask_gateway(world, makers, server):
    inbox, metadata = world.folder / "inbox", server.folder / "metadata"
    inbox.mkdir(exist_ok=True)
    for root in metadata.glob("*.root.json"):
        shutil.copy(root, inbox)
    shutil.copy(metadata / "timestamp.json", inbox)
    for role in ("snapshot", "targets"):
        shutil.copy(newest(server, role)[0], inbox / f"{role}.json")
    return consulted(makers, world.folder / "gateway", inbox=str(inbox))


def show(makers, server):
    shutil.copytree(makers.public, server.folder, dirs_exist_ok=True)


def newest(server, role):
    folder = server.folder / "metadata"
    number = max(int(path.name.split(".")[0]) for path in folder.glob(f"*.{role}.json"))
    return folder / f"{number}.{role}.json", folder / f"{number - 1}.{role}.json"


@refused("firmware", "metadata that is older than what was seen", "ROLLED_BACK")
async def _(world):
    def spoil(makers, server):
        first = (server.folder / "metadata/timestamp.json").read_bytes()
        makers.release("2.1", b"patched")
        show(makers, server)
        assert ask_home(world, makers, server) == ask_gateway(world, makers, server) == "OK"
        (server.folder / "metadata/timestamp.json").write_bytes(first)

    return firmware(world, spoil)


@refused("firmware", "a repository that stands still", "FROZEN")
async def _(world):
    def spoil(makers, server):
        makers.repository(2 * DAY).publish(makers.drawers)
        show(makers, server)

    return firmware(world, spoil)


@refused("firmware", "metadata of two days", "MIXED_METADATA")
async def _(world):
    def spoil(makers, server):
        makers.release("2.1", b"patched")
        show(makers, server)
        new, old = newest(server, "snapshot")
        shutil.copy(old, new)

    return firmware(world, spoil)


@refused("firmware", "files signed by a key from the server", "TOO_FEW_SIGNATURES")
async def _(world):
    def spoil(makers, server):
        makers.repository().rotate("root", makers.drawers)
        root = json.loads((makers.public / "metadata/2.root.json").read_text())
        root["signatures"] = root["signatures"][:1]
        (makers.public / "metadata/2.root.json").write_text(json.dumps(root))
        show(makers, server)

    return firmware(world, spoil)


def attest(world, *, at_ms=0, times=1, **facts):
    """A gateway's word on its plate; the CSM-DB's on it."""
    home = enrolled(world.csmdb, "home")
    desk = world.csmdb.firmware_desk()
    plate = home.enrolment("")["meter"]
    record = Attestation(
        **{
            "meter": home.meter.id, "vendor": plate["vendor"], "model": plate["model"],
            "serial": plate["serial"], "firmware": "2.0", "digest": "", "slot": 0,
            "time_ms": NOW_MS, "nonce": desk.challenge(home.ems.id, NOW_MS)["nonce"], **facts,
        }
    )  # fmt: skip
    said = {"attestation": attestation_json(sign_attestation(record, home.meter, MARKET))}
    for _ in range(times):
        decision = desk.attest(home.ems.id, said, NOW_MS + at_ms)
    return decision.refusal.value if isinstance(decision, Refused) else "OK"


@refused("firmware", "a meter that says a lower version", "DOWNGRADED")
async def _(world):
    return attest(world, firmware="0.9")


@refused("firmware", "another meter's plate", "OTHER_DEVICE")
async def _(world):
    return attest(world, serial="SN-other")


@refused("firmware", "an attestation that was used", "REPLAYED")
async def _(world):
    return attest(world, times=2)


@refused("firmware", "an attestation under an old challenge", "EXPIRED")
async def _(world):
    return attest(world, at_ms=60 * MINUTE_MS)


@refused("firmware", "a signed file that is older than what runs", "DOWNGRADED")
async def _(world):
    old = Target(vendor="v", model="m", version="0.9", template="t", installs_by="registers")
    plate = Plate(type="t", vendor="v", model="m", serial="1", firmware="1.0")
    return raised(lambda: check_fits(old, plate))


# --- advisories -----------------------------------------------------------------------------------


def advisory(version, released="2026-01-05T00:00:00Z", **words):
    raw = made_up().replace(b'"version": "1"', f'"version": "{version}"'.encode())
    raw = raw.replace(b'"current_release_date": "2026-01-05T00:00:00Z"',
                      f'"current_release_date": "{released}"'.encode())  # fmt: skip
    for before, after in words.items():
        raw = raw.replace(before.encode(), after.encode())
    return raw


def imported(world, *documents):
    *good, last = documents
    for one in good:
        import_document(world.csmdb, one)
    return raised(lambda: import_document(world.csmdb, last))


@refused("advisory", "a revision before the one that is known", "ROLLED_BACK")
async def _(world):
    return imported(world, advisory(3, "2026-02-01T00:00:00Z"), advisory(2, "2026-03-01T00:00:00Z"))


@refused("advisory", "a later number with an earlier date", "ROLLED_BACK")
async def _(world):
    return imported(world, advisory(3, "2026-02-01T00:00:00Z"), advisory(4, "2026-01-31T00:00:00Z"))


@refused("advisory", "other words under a known number", "ROLLED_BACK")
async def _(world):
    known = advisory(3, "2026-02-01T00:00:00Z")
    return imported(
        world, known, advisory(3, "2026-02-01T00:00:00Z", **{"Readings can": "No readings can"})
    )  # fmt: skip


@refused("advisory", "a revision from the future", "FUTURE_DATED")
async def _(world):
    return imported(world, advisory(5, "2126-01-01T00:00:00Z"))
