"""The aggregator at work: a real broker, four validators, a CSM-DB, homes, meters."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from support.brokers import Authority, make_key, running_broker
from support.enrolment import AskingHome
from support.feeders import SUPERVISOR, running_ledger
from support.meters import SigningMeter, sealed
from support.patience import PATIENCE_S

from aggregator.accounts import Accounts
from aggregator.core import FlexibilityPolicy, FundingPolicy
from aggregator.day_ahead import DAY_S
from aggregator.grid_limits import GridPolicy
from aggregator.scheduler import SchedulePolicy
from aggregator.service import Aggregator, running
from aggregator.store import AggregatorStore
from aggregator.withdrawals import SafetyPolicy
from csmdb.advisories import import_document, review_all, set_make
from csmdb.service import CsmDbService
from csmdb.setup import create
from ledger.approvals import Approval
from ledger.genesis import Dso
from runtime.clock import SystemClock
from runtime.csmdb_client import CsmDbRefusedError
from runtime.dso_client import DsoClient
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from sim.scenarios.vulnerable_meter import made_up
from wire import topics
from wire.certificates import AddressGrant, load
from wire.envelope import check_signature, parse_envelope
from wire.keys import BoxKey, Domain, to_text
from wire.metering import Receipt, digest, record_json, sign_record

DSO_BOX = BoxKey(make_key("dso-box").seed)
DSO = make_key("dso")
DEPOSIT_UC = 7_000_000


class Desk:
    """One aggregator on its files; can be stopped and started again."""

    def __init__(
        self, site, folder, known_wh, *, automatic=True, safety=None, schedule=None, **more
    ):
        self.site, self.folder, self.known_wh = site, folder, known_wh
        self.funding = FundingPolicy(DEPOSIT_UC, 5_000, 5_000, 192, automatic)
        self.safety, self.schedule = safety or SafetyPolicy(), schedule or SchedulePolicy()
        self.more = more
        folder.mkdir()

    async def start(self):
        site = self.site
        self.store = AggregatorStore(self.folder / "aggregator.sqlite")
        self.outbox_store = SqliteStore(self.folder / "outbox.sqlite")
        self.accounts = Accounts(self.folder / "accounts.sqlite", self.safety.opening_uc)
        certificate = site.csmdb.issue_service_certificate(SUPERVISOR.public, ["aggregator", "dso"])
        self.bus = site.authority.bus(site.port, SUPERVISOR, credential=certificate)
        self.aggregator = Aggregator(
            site.chain.genesis, SUPERVISOR, DSO_BOX, site.csmdb.box.public, self.bus, self.store,
            self.outbox_store, site.authority.clock, SystemRng(),
            self.funding,
            FlexibilityPolicy(500, 280_000, 100_000, 4, 10_000, "uniform", self.known_wh),
            self.schedule, self.accounts, self.safety, **self.more,
        )  # fmt: skip
        self._running = running(self.aggregator)
        await self._running.__aenter__()
        await self.bus.start()
        await self.bus.wait_connected(PATIENCE_S)

    async def stop(self):
        await self._running.__aexit__(None, None, None)
        await self.bus.stop()
        self.store.close()
        self.outbox_store.close()
        self.accounts.close()


class Site:
    """Broker, ledger, CSM-DB and what comes on top."""

    def __init__(self, csmdb, authority, port, chain):
        self.csmdb, self.authority, self.port, self.chain = csmdb, authority, port, chain
        self.slot = chain.genesis.grid.slot_at(authority.clock.now_ms())

    def enrol(self, name):
        """A home with one granted address, known to the CSM-DB."""
        home = AskingHome(name)
        code = self.csmdb.add_claim(["prosumer"], 10_000, 6_000, "feeder-1")
        now_ms = self.authority.clock.now_ms()
        self.csmdb.desk.enroll(home.ems.id, home.enrolment(code), now_ms)
        [grant] = self.csmdb.desk.grant_addresses(
            home.ems.id,
            {"addresses": [home.address_row()], "startSlot": self.slot - 1},
            now_ms,
        )
        return home, grant

    async def register(self, home, grant):
        """The home's trading lane, its address registered on the ledger."""
        actor = await self.chain.actor(home.address(), {"address"})
        event = await actor.submit({"op": "register-address", "grant": grant_json(grant)})
        assert event["codes"] == ["OK"], event
        return actor


def grant_json(grant):
    return json.loads(json.dumps({f: getattr(grant, f) for f in AddressGrant.__struct_fields__}))


@pytest.fixture
async def site(request, tmp_path):
    csmdb = create(tmp_path / "csmdb", "test")
    authority = Authority("test", csmdb.issuing_key)
    async with running_broker(authority) as broker:
        rules = {"dso_box_key": to_text(DSO_BOX.public), **getattr(request, "param", {})}
        async with running_ledger(authority, broker.port, tmp_path, **rules) as chain:
            own = authority.bus(broker.port, csmdb.issuing_key, credential=csmdb.certificate)
            CsmDbService.on(csmdb, own).start()
            await own.start()
            yield Site(csmdb, authority, broker.port, chain)
            await own.stop()
    csmdb.close()


async def until(condition, timeout_s=PATIENCE_S):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.03)


def seen(actor, name, **facts):
    return [
        event
        for _, event in actor.events
        if event["event"] == name and all(event.get(k) == v for k, v in facts.items())
    ]


async def dso_line(site, home):
    """A home's private line to the DSO, over its participant lane."""
    certificate = site.csmdb.repository.certificate_of(home.ems.id)
    bus = site.authority.bus(site.port, home.ems, credential=certificate)
    line = DsoClient(
        bus, home.ems, home.box, "test", SUPERVISOR.public, DSO_BOX.public, SystemClock(),
        SystemRng(),
    )  # fmt: skip
    await bus.start()
    await bus.wait_connected(PATIENCE_S)
    return bus, line


@pytest.mark.slow
async def test_money_and_energy_go_to_an_address_and_back_without_a_trace_of_the_home(
    site, tmp_path
):
    """PETra's sequence: withdraw, post, accept in part, deposit; the DSO may sleep meanwhile."""
    desk = Desk(
        site, tmp_path / "desk", {}, automatic=False, safety=SafetyPolicy(opening_uc=10_000_000)
    )
    await desk.start()
    seller, seller_grant = site.enrol("seller")
    buyer, buyer_grant = site.enrol("buyer")
    sells = await site.register(seller, seller_grant)
    buys = await site.register(buyer, buyer_grant)
    lane, line = await dso_line(site, seller)
    other_lane, other_line = await dso_line(site, buyer)
    start = site.slot + 3
    asset = {"energyWh": 300, "startSlot": start, "endSlot": start + 3}

    for refusal, more in (
        ("INSUFFICIENT_FUNDS", {"amount_uc": 10_000_001}),
        ("EXPORT_LIMIT", {"assets": [{**asset, "kind": "production", "energyWh": 1501}]}),
        ("IMPORT_LIMIT", {"assets": [{**asset, "kind": "consumption", "energyWh": 2501}]}),
    ):
        with pytest.raises(CsmDbRefusedError) as failed:
            await line.withdraw_assets("w-0", seller.address().id, **more)
        assert failed.value.reason == refusal
    with pytest.raises(CsmDbRefusedError) as failed:
        await line.withdraw_assets("w-0", buyer.address().id, 1)
    assert failed.value.reason == "NOT_ALLOWED"
    assert not seen(sells, "balance") and not seen(sells, "asset-added")

    produce = [{"kind": "production", **asset}]
    assert await line.withdraw_assets("w-1", seller.address().id, 0, produce) == "sent"
    consume = [{"kind": "consumption", **asset, "energyWh": 100, "endSlot": start + 1}]
    await other_line.withdraw_assets("w-1", buyer.address().id, 1_000_000, consume)
    await until(lambda: seen(buys, "balance", address=buyer.address().id))
    await until(lambda: seen(buys, "asset-added", address=seller.address().id))
    assert await other_line.withdraw_assets("w-1", buyer.address().id, 1_000_000, consume) == "done"
    await until(lambda: desk.aggregator.outbox.waiting == 0)
    await desk.stop()

    offer = {"op": "post-offer", "kind": "production", "priceUcPerKwh": 200_000, **asset}
    await sells.submit(offer)
    await until(lambda: seen(buys, "offer-posted"))
    [posted] = seen(buys, "offer-posted")
    given = [{k: v for k, v in consume[0].items() if k != "kind"}]
    done = await buys.submit({"op": "accept-offer", "offer": posted["offer"], "assets": given})
    assert done["codes"] == ["OK"]
    left = {"op": "deposit-energy-asset", "kind": "production", **asset, "energyWh": 200}
    back = {"op": "deposit-financial-balance", "amountUc": 960_000}
    assert (await sells.submit(left))["codes"] == ["OK"]
    assert (await buys.submit(back))["codes"] == ["OK"]

    await desk.start()
    await until(lambda: desk.accounts.balance_uc(buyer.ems.id) == 9_960_000)
    assert await other_line.show_account() == {
        "balanceUc": 9_960_000, "owedUc": 0, "withdrawn": consume,
    }  # fmt: skip
    await until(
        lambda: desk.accounts.energy(site.slot, participant=seller.ems.id)[0].energy_wh < 300
    )
    assert (await line.show_account())["withdrawn"] == [{**produce[0], "energyWh": 100}]

    site.csmdb.ban(seller.ems.id, "meter tampered with")
    with pytest.raises(CsmDbRefusedError) as failed:
        await line.withdraw_assets("w-2", seller.address().id, 1)
    assert failed.value.reason == "BANNED"
    public = json.dumps([event for _, event in buys.events])
    assert seller.ems.id not in public and buyer.ems.id not in public
    for bus in (lane, other_lane):
        await bus.stop()
    await desk.stop()


@pytest.mark.slow
async def test_an_address_is_funded_once_also_across_a_restart(site, tmp_path):
    desk = Desk(site, tmp_path / "desk", {})
    await desk.start()
    home, grant = site.enrol("home-1")
    actor = await site.register(home, grant)
    address = home.address().id
    await until(lambda: seen(actor, "balance", address=address))
    assert seen(actor, "balance", address=address)[0]["balanceUc"] == DEPOSIT_UC
    assets = {e["kind"]: e["energyWh"] for e in seen(actor, "asset-added", address=address)}
    assert assets == {"production": 2_750, "consumption": 2_750}
    await until(lambda: desk.aggregator.outbox.waiting == 0)
    await desk.stop()

    # it forgets where it was and reads every event again: still nothing is done twice
    forgetful = AggregatorStore(desk.folder / "aggregator.sqlite")
    with forgetful.atomic():
        forgetful.put_heights({})
    forgetful.close()
    await desk.start()
    second, second_grant = site.enrol("home-2")
    other = await site.register(second, second_grant)
    await until(lambda: seen(other, "balance", address=second.address().id))
    assert len(seen(actor, "balance", address=address)) == 1
    assert len(seen(actor, "asset-added", address=address)) == 2
    await desk.stop()


@pytest.mark.slow
async def test_a_deviation_opens_one_auction_and_says_so_to_late_comers(site, tmp_path):
    per_day = DAY_S // 900
    target = site.slot + 4
    desk = Desk(site, tmp_path / "desk", {target % per_day: 1_500})
    await desk.start()
    watcher = await site.chain.actor(make_key("watcher"), {"analytics"})
    await until(lambda: seen(watcher, "auction-opened"))
    await until(lambda: desk.aggregator.outbox.waiting == 0)
    await desk.aggregator.on_slot(site.slot)  # the same slot's work again
    await desk.stop()
    await desk.start()
    await desk.aggregator.on_slot(site.slot)
    await asyncio.sleep(0.5)
    [opened] = seen(watcher, "auction-opened")
    assert (opened["template"], opened["energyWh"]) == ("reverse", 1_500)
    assert (opened["slot"], opened["priceUcPerKwh"]) == (target, 280_000)
    assert desk.aggregator.outbox.waiting == 0

    late = site.authority.bus(site.port, make_key("late"), {"consumer"})
    boards = []

    async def take(message):
        boards.append(message.payload)

    late.subscribe(topics.build("test", topics.AUCTION), take)
    await late.start()
    await until(lambda: boards)
    envelope, signed = parse_envelope(boards[-1])
    check_signature(envelope, signed, SUPERVISOR.public, Domain.MESSAGE, "test")
    assert [a["auction"] for a in envelope.parameters["auctions"]] == [opened["auction"]]
    await late.stop()
    await desk.stop()


@pytest.mark.slow
async def test_a_schedule_goes_to_the_dso_over_the_bus_and_comes_back_changed(site, tmp_path):
    """The desk lives in the same process and is asked all the same; nobody else may ask it."""
    policy = SchedulePolicy(standing_wh=[900] * 96, lead_hours=0)
    limits = GridPolicy(rating_import_w=2_000)
    desk = Desk(site, tmp_path / "desk", {}, schedule=policy, limits=limits)
    await desk.start()
    await until(desk.store.last_scheduled)
    last = desk.store.last_scheduled()
    await until(lambda: desk.store.approved(last) is not None)
    assert desk.store.approved(last) == 500
    [row] = desk.store.schedule(last, last)
    assert (row["net_wh"], row["reason"]) == (900, "IMPORT_RATING")
    assert desk.accounts.approved(SUPERVISOR.id, last, last) == {last: 500}

    home, _ = site.enrol("home-1")
    lane, line = await dso_line(site, home)
    with pytest.raises(CsmDbRefusedError) as failed:
        await line.approve_schedule([(last + 1, 0)])
    assert failed.value.reason == "NOT_ALLOWED"
    assert desk.accounts.approved(home.ems.id, 0, last + 1) == {}
    for slots, reason in (([(1, 0)], "SLOT_CLOSED"), ([(last * 2, 0)], "SLOT_TOO_FAR")):
        with pytest.raises(CsmDbRefusedError) as failed:
            await desk.aggregator.scheduler._dso.approve_schedule(slots)
        assert failed.value.reason == reason
    await lane.stop()
    await desk.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    "site", [{"dso": Dso(address=DSO.id, key=to_text(DSO.public))}], indirect=True
)
async def test_a_proposed_change_is_approved_where_the_operator_said_so(site, tmp_path):
    rules = [Approval(path="prices.*", least=200_000, most=400_000)]
    desk = Desk(site, tmp_path / "desk", {}, approve=rules)
    await desk.start()
    dso = await site.chain.actor(DSO, {"dso"})
    active = site.slot + 120
    for value in (410_000, 390_000):
        change = {"path": "prices.retailUcPerKwh", "value": value, "activationSlot": active}
        assert (await dso.submit({"op": "propose-change", **change}))["codes"] == ["OK"]
    own = {"path": "gateLeadS", "value": 600, "activationSlot": active}
    desk.aggregator.outbox.add([("propose/1", {"op": "propose-change", **own})])
    await until(lambda: seen(dso, "change-proposed", path="gateLeadS"))
    await until(lambda: seen(dso, "change-supported", address=SUPERVISOR.id, participants=0))
    await until(lambda: desk.aggregator.outbox.waiting == 0)
    dear, fair = seen(dso, "change-proposed", proposer=DSO.id)
    outbox = desk.aggregator.outbox
    assert outbox.state_of(f"approve/{fair['change']}") == "OK"
    assert outbox.state_of(f"approve/{dear['change']}") == ""
    [mine] = seen(dso, "change-proposed", proposer=SUPERVISOR.id)
    assert outbox.state_of(f"approve/{mine['change']}") == ""
    await desk.stop()


@pytest.mark.slow
async def test_changed_rules_are_kept_across_a_restart(site, tmp_path):
    desk = Desk(site, tmp_path / "desk", {})
    await desk.start()
    lead_s = site.chain.genesis.gate_lead_s + 60
    slot = site.slot + 10
    event = {
        "event": "change-approved", "change": "c", "path": "gateLeadS", "value": lead_s,
        "activationSlot": slot,
    }  # fmt: skip
    await desk.aggregator._take_event(1, event)
    await desk.stop()
    await desk.start()
    assert desk.aggregator.rules.of_slot(slot).gate_lead_s == lead_s
    assert desk.aggregator.rules.of_slot(slot - 1).gate_lead_s == lead_s - 60
    await desk.stop()


@pytest.mark.slow
async def test_a_receipt_that_lies_is_found_from_sealed_readings(site, tmp_path):
    """The ledger believes the pseudonymous meter key; the DSO opens the registers."""
    desk = Desk(site, tmp_path / "desk", {})
    await desk.start()
    home, grant = site.enrol("home-1")
    actor = await site.register(home, grant)
    chain_id, slot = site.chain.genesis.chain_id, site.slot - 1
    meter = SigningMeter(home.meter, chain_id, home.ems.id)
    meter.read(slot - 1, 0)
    reading = meter.read(slot, 400)
    certificate = site.csmdb.repository.certificate_of(home.ems.id)
    lane = site.authority.bus(site.port, home.ems, credential=certificate)
    await lane.start()
    await lane.wait_connected(PATIENCE_S)
    topic = topics.build("test", topics.READING, home.ems.id)
    for each in meter.readings:
        await lane.publish(topic, sealed(each, DSO_BOX.public))
    pseudonym = home.meter.derive(home.address().id)
    lie = Receipt(address=home.address().id, slot=slot, net_wh=-400, reading=digest(reading))
    said = record_json(sign_record(lie, pseudonym, chain_id))
    event = await actor.submit({"op": "receipt", "receipt": said})
    assert event["codes"] == ["OK"], event
    await until(lambda: desk.store.counts()["receipts_false"] == 1)
    [evidence] = desk.store.evidence()
    assert (evidence["kind"], evidence["subject"]) == ("FALSE_RECEIPT", home.ems.id)
    await lane.stop()
    await desk.stop()


def test_the_grants_of_this_test_are_real(tmp_path):
    """`grant_json` keeps the signature whole."""
    csmdb = create(Path(tmp_path) / "db", "test")
    home = AskingHome("home-1")
    code = csmdb.add_claim(["prosumer"], 10_000, 6_000, "f")
    csmdb.desk.enroll(home.ems.id, home.enrolment(code), csmdb.clock.now_ms())
    [grant] = csmdb.desk.grant_addresses(
        home.ems.id, {"addresses": [home.address_row()]}, csmdb.clock.now_ms()
    )
    assert load(AddressGrant, grant_json(grant), csmdb.issuing_key.public, "test") == grant
    csmdb.close()


@pytest.mark.slow
async def test_an_advisorys_ban_is_on_the_ledger_within_a_minute_and_said_once(site, tmp_path):
    desk = Desk(site, tmp_path / "desk", {})
    home, grant = site.enrol("old")
    actor = await site.register(home, grant)
    await desk.start()
    raw = made_up().replace(b'"Made up"', b'"Test"')
    began_s = time.monotonic()
    import_document(site.csmdb, raw)
    review_all(site.csmdb)
    await until(lambda: seen(actor, "banned", address=home.address().id))
    assert time.monotonic() - began_s < 60, "a slot has 900 s"
    order = {
        "op": "bid-offer", "side": "sell", "slot": site.slot + 3, "energyWh": 1,
        "priceUcPerKwh": 1,
    }  # fmt: skip
    assert (await actor.submit(order))["codes"] == ["BANNED"]
    await desk.stop()
    await desk.start()  # asks for everything again
    set_make(site.csmdb, home.ems.id, "1.1")
    await until(lambda: seen(actor, "reinstated", address=home.address().id))
    assert len(seen(actor, "banned")) == 1
    assert (await actor.submit(order))["codes"] != ["BANNED"]
    await desk.stop()
