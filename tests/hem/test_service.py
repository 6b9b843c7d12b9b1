"""What the HEM does at each phase of a slot, with a gateway, an outbox and a clock at hand."""

from __future__ import annotations

import asyncio

import pytest
from support.chain_builder import grant_for, make_genesis

from hem import service
from hem.config import load_provisioning
from hem.controller.battery import Battery
from hem.ems.wallet import Wallet
from hem.gateway.client import GatewayError
from hem.service import HomeEnergyManager, after_pledge
from ledger.genesis import genesis_bytes
from runtime.clock import SystemClock
from runtime.rng import SystemRng
from wire.canonical import encode
from wire.certificates import AddressGrant, parse
from wire.keys import SigningKey, to_text
from wire.metering import ZERO_DIGEST, Reading, record_json, sign_record

KEY = SigningKey(bytes(32))
ADDRESS = SigningKey(b"a" * 32)
SLOT = 1_978_130
SLOT_MS = 900_000


class StepClock(SystemClock):
    """Market time that moves when told."""

    def __init__(self, slot: int, offset_s: int = 0):
        self.to(slot, offset_s)

    def to(self, slot, offset_s=0):
        self.market_ms = slot * SLOT_MS + offset_s * 1000

    def now_ms(self):
        return self.market_ms


class FakeGateway:
    """Registers that rise by a fixed amount per slot; a battery that remembers its orders."""

    def __init__(self, clock):
        self.clock = clock
        self.import_wh_per_slot, self.generation_wh_per_slot = 500, 200
        self.load_w, self.pv_w, self.soc_permille = 2_000, 0, 900
        self.discharge_w = 4_000
        self.registers = {"import_wh": 10_000, "export_wh": 0}
        self.away, self.refuses = 0, ""
        self.asked = 0
        self.signed, self.orders, self.released = [], [], 0

    async def sign_reading(self, slot):
        self.asked += 1
        if self.refuses:
            raise GatewayError(self.refuses, "never")
        if self.away:
            self.away -= 1
            raise GatewayError("DEVICE_LOST", "the meter does not answer")
        self.signed.append(slot)
        done = slot + 1 - SLOT
        reading = Reading(
            meter=KEY.id, seq=slot - SLOT + 100, slot=slot, time_ms=(slot + 1) * SLOT_MS,
            import_wh=10_000 + done * self.import_wh_per_slot, export_wh=0,
            generation_wh=5_000 + done * self.generation_wh_per_slot, previous=ZERO_DIGEST,
        )  # fmt: skip
        value = record_json(sign_record(reading, KEY, "chain"))
        return {"reading": value, "sealed": to_text(encode(value))}

    async def sign_receipt(self, address, slot):
        if slot - 1 not in self.signed:
            raise GatewayError("GAP", "no reading")
        return {"address": address, "slot": slot}

    async def state(self):
        return {
            "time_ms": self.clock.now_ms(), "grid_w": self.load_w - self.pv_w, "pv_w": self.pv_w,
            "battery_w": 0, "load_w": self.load_w, "soc_permille": self.soc_permille,
            **self.registers, "generation_wh": 0, "devices": {},
            "battery": {
                "capacity_wh": 10_000, "max_charge_w": 4_000, "max_discharge_w": self.discharge_w,
            },
        }  # fmt: skip

    async def set_battery(self, power_w, lease_s):
        self.orders.append((power_w, lease_s))
        return {"accepted_w": power_w}

    async def release_battery(self):
        self.released += 1


class Outbox:
    def __init__(self):
        self.operations = {}

    def add(self, operations):
        for key, operation in operations:
            self.operations.setdefault(key, operation)

    def keys(self, kind):
        return [key for key in self.operations if key.startswith(kind + "/")]

    @property
    def waiting(self):
        return len(self.operations)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "READ_AGAIN_S", 0.001)
    key = to_text(KEY.public)
    (tmp_path / "genesis.json").write_bytes(genesis_bytes(make_genesis(dso_box_key=key)))
    (tmp_path / "provisioning.toml").write_text(f"""
[home]
name = "home-01"
claim_code = "x"
data_dir = "data"
[broker]
port = 1883
[market]
name = "demo"
genesis = "genesis.json"
csmdb = "{KEY.id}"
csmdb_key = "{key}"
csmdb_box = "{key}"
[gateway]
socket = "/tmp/gw.sock"
[[devices]]
name = "meter"
kind = "sunspec-meter"
""")
    clock = StepClock(SLOT)
    made = HomeEnergyManager(load_provisioning(tmp_path / "provisioning.toml"), clock, SystemRng())
    made.gateway = FakeGateway(clock)
    made.outbox = Outbox()
    made.grant = parse(AddressGrant, grant_for(ADDRESS, start_slot=SLOT - 5, end_slot=SLOT + 50))
    made.wallet = Wallet(made.store, ADDRESS.id)
    yield made
    made.store.close()


async def register(home):
    await home.wallet.take_event(1, {"event": "address-registered", "address": ADDRESS.id})


async def begin(home, slot):
    home.clock.to(slot)
    await home._begin_slot(slot)


async def award(home, slot, side, energy_wh):
    row = {"address": ADDRESS.id, "side": side, "energyWh": energy_wh, "priceUcPerKwh": 150_000}
    event = {"event": "cleared", "slot": slot, "priceUcPerKwh": 150_000, "tradedWh": energy_wh}
    await home.wallet.take_event(2, {**event, "awards": [row]})


def teach(home, load_wh, pv_wh):
    """A day in which every slot was the same."""
    for slot in range(SLOT - 98, SLOT - 1):
        home.forecaster.observe(slot, load_wh, pv_wh)


async def test_a_slots_end_makes_a_reading_and_a_receipt(home):
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    assert home.gateway.signed == [SLOT - 1, SLOT]
    assert home.readings.waiting == 2
    assert home.outbox.keys("receipt") == [f"receipt/{SLOT}"], "the first has no reading before it"


async def test_closing_a_slot_twice_sends_one_receipt(home):
    for _ in range(2):
        await begin(home, SLOT)
        await begin(home, SLOT + 1)
    assert home.outbox.keys("receipt") == [f"receipt/{SLOT}"]


async def test_a_meter_that_is_away_for_a_moment_costs_no_reading(home):
    home.gateway.away = 3
    await begin(home, SLOT)
    assert home.gateway.signed == [SLOT - 1]


async def test_a_meter_that_stays_away_is_given_up_after_a_quarter_of_a_slot(home):
    home.gateway.away = 10**9
    task = asyncio.create_task(home._close_slot(SLOT))
    await asyncio.sleep(0.02)
    assert not task.done()
    home.clock.to(SLOT, 226)
    await asyncio.wait_for(task, 1)
    assert home.readings.waiting == 0


async def test_a_refusal_of_the_meter_is_final(home):
    home.gateway.refuses = "BACKWARDS"
    await asyncio.wait_for(begin(home, SLOT), 1)
    assert (home.gateway.asked, home.readings.waiting) == (1, 0)


async def test_a_gap_in_the_readings_is_not_taken_for_one_slots_generation(home, monkeypatch):
    learned = []
    monkeypatch.setattr(home.forecaster, "observe", lambda *row: learned.append(row))
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    home.gateway.away = 1
    home.clock.to(SLOT + 2, 300)
    await home._close_slot(SLOT + 2)
    await begin(home, SLOT + 3)
    await begin(home, SLOT + 4)
    assert [(slot - SLOT, pv_wh) for slot, _, pv_wh in learned] == [(0, 200), (3, 200)]


async def test_the_first_setpoint_of_a_slot_counts_that_slots_energy_only(home):
    await award(home, SLOT, "sell", 250)
    home.gateway.registers = {"import_wh": 10_000, "export_wh": 0}
    await begin(home, SLOT)
    # 250 Wh over 900 s are 1 kW to the grid, beside the load of 2 kW
    assert [power for power, _ in home.gateway.orders] == [3_000]


async def test_without_that_slots_reading_the_battery_is_left_alone(home):
    await begin(home, SLOT)
    await award(home, SLOT + 1, "sell", 250)
    home.clock.to(SLOT + 1, 400)
    home.gateway.away = 1
    await home._close_slot(SLOT + 1)
    await home._steer(SLOT + 1)
    assert home.gateway.orders == []


async def test_after_a_contracted_slot_the_battery_serves_the_home_again(home):
    await award(home, SLOT, "sell", 250)
    await begin(home, SLOT)
    await begin(home, SLOT + 1)
    await begin(home, SLOT + 2)
    assert home.gateway.released == 1


async def test_a_deficit_is_bid_for_and_the_reason_is_kept(home):
    await register(home)
    home.gateway.soc_permille = -1
    teach(home, 500, 0)
    home.clock.to(SLOT, 120)
    await home._bid(SLOT)
    (key,) = home.outbox.keys("bid")
    assert key == f"bid/{SLOT + 1}/0"
    assert home.outbox.operations[key]["side"] == "buy"
    assert "deficit" in home.decisions.get(SLOT + 1)["reason"]


@pytest.mark.parametrize("why", ["late", "not registered", "grant ended"])
async def test_no_bid_is_sent_that_cannot_count(home, why):
    teach(home, 500, 0)
    home.gateway.soc_permille = -1
    slot = SLOT + 50 if why == "grant ended" else SLOT
    if why != "not registered":
        await register(home)
    home.clock.to(slot, 601 if why == "late" else 120)
    await home._bid(slot)
    assert home.outbox.keys("bid") == []


def opened(slot, energy_wh=5_000, cap=290_000):
    return {
        "event": "auction-opened", "auction": "a-1", "template": "reverse", "slot": slot,
        "energyWh": energy_wh, "priceUcPerKwh": cap, "deadlineMs": slot * SLOT_MS - 300_000,
    }  # fmt: skip


def sell_orders(home):
    auctions = [o["energyWh"] for k, o in home.outbox.operations.items() if k.startswith("auction")]
    offers = [
        o["energyWh"]
        for k, o in home.outbox.operations.items()
        if k.startswith("bid/") and o["side"] == "sell"
    ]
    return auctions, offers


def sunny(home):
    """Every slot with more sun than the battery needs: it is full each noon and may sell."""
    for slot in range(SLOT - 98, SLOT - 1):
        home.forecaster.observe(slot, 100, 900 if slot % 96 >= 56 else 0)
    home.gateway.load_w, home.gateway.soc_permille = 400, 950


@pytest.mark.parametrize("first", ["auction", "bid"])
async def test_auction_and_market_do_not_sell_the_same_stored_energy(home, first):
    await register(home)
    sunny(home)
    home.gateway.soc_permille, home.gateway.discharge_w = 1_000, 1_600
    home.clock.to(SLOT, 120)
    steps = [lambda: home._take_auction(5, opened(SLOT + 1)), lambda: home._bid(SLOT)]
    sold_wh = []
    for step in steps if first == "auction" else reversed(steps):
        await step()
        auctions, offers = sell_orders(home)
        sold_wh.append(sum(auctions) + sum(offers))
    alone_wh, both_wh = sold_wh
    assert alone_wh > 0
    assert both_wh < 2 * alone_wh, "the second knows of the first"
    assert both_wh <= 1_600 * 900 // 3600 - home.forecaster.forecast(SLOT + 1).net_wh


async def test_an_auction_that_is_over_gets_no_answer(home):
    await register(home)
    sunny(home)
    home.clock.to(SLOT, 601)
    await home._take_auction(5, opened(SLOT + 1))
    assert sell_orders(home) == ([], [])


async def test_what_was_learned_survives_a_restart_and_nonsense_does_not_stop_it(home):
    teach(home, 500, 0)
    with home.store.atomic():
        home.store.put("forecaster", encode(home.forecaster.to_json()))
    assert home._restored_forecaster().forecast(SLOT).load_wh == 500
    with home.store.atomic():
        home.store.put("forecaster", encode({"history": "?"}))
    assert home._restored_forecaster().forecast(SLOT).load_wh == 0


def test_a_pledge_takes_energy_and_power_from_the_battery():
    battery = Battery(10_000, 4_000, 4_000, 1_000, 1_000)
    rest, soc_wh = after_pledge(battery, 5_000, 250, 900)
    assert (rest.max_discharge_w, rest.max_charge_w, soc_wh) == (3_000, 4_000, 4_750)
    rest, soc_wh = after_pledge(battery, 5_000, -250, 900)
    assert (rest.max_discharge_w, rest.max_charge_w, soc_wh) == (4_000, 3_000, 5_250)
    rest, soc_wh = after_pledge(battery, 100, 5_000, 900)
    assert (rest.max_discharge_w, soc_wh) == (0, 0)
