"""A home with a gateway, an outbox and a clock at hand, for tests of what the HEM does when."""

from __future__ import annotations

from types import SimpleNamespace

from support.chain_builder import grant_for, make_genesis

from hem.config import load_provisioning
from hem.ems.wallet import Wallet
from hem.gateway.client import GatewayError
from hem.service import HomeEnergyManager
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
LATE_SLOTS = 4
"""How far back the gateway closes slots."""


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
        self.readings, self.receipts, self.silent = {}, [], False

    async def sign_reading(self, slot):
        self.asked += 1
        if self.silent:
            raise GatewayError("UNAVAILABLE", "no such socket")
        if slot in self.readings:
            return self.readings[slot]
        if self.signed and slot <= self.signed[-1]:
            raise GatewayError("OUT_OF_ORDER", "a later slot is signed")
        if self.clock.now_ms() >= (slot + 1 + LATE_SLOTS) * SLOT_MS:
            raise GatewayError("TOO_LATE", "ended long ago")
        if self.refuses:
            raise GatewayError(self.refuses, "never")
        if self.away:
            self.away -= 1
            raise GatewayError("DEVICE_LOST", "the meter does not answer")
        self.signed.append(slot)
        done = self.clock.now_ms() // SLOT_MS - SLOT
        reading = Reading(
            meter=KEY.id, seq=slot - SLOT + 100, slot=slot, time_ms=self.clock.now_ms(),
            import_wh=10_000 + done * self.import_wh_per_slot, export_wh=0,
            generation_wh=5_000 + done * self.generation_wh_per_slot, previous=ZERO_DIGEST,
        )  # fmt: skip
        value = record_json(sign_record(reading, KEY, "chain"))
        self.readings[slot] = {"reading": value, "sealed": to_text(encode(value))}
        return self.readings[slot]

    async def sign_receipt(self, address, slot):
        if slot - 1 not in self.signed:
            raise GatewayError("GAP", "no reading")
        self.receipts.append(slot)
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
        self.operations, self.codes = {}, {}

    def add(self, operations, _slot):
        for key, operation in operations:
            self.operations.setdefault(key, operation)

    def state_of(self, key):
        return self.codes.get(key, "waiting" if key in self.operations else "")

    def keys(self, kind):
        return [key for key in self.operations if key.startswith(kind + "/")]

    @property
    def waiting(self):
        return len(self.operations)


def make_home(tmp_path):
    """A home that is enrolled, with its own folder."""
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
    made.addresses.grant = parse(
        AddressGrant, grant_for(ADDRESS, start_slot=SLOT - 5, end_slot=SLOT + 50)
    )
    made.wallet = Wallet(made.store, ADDRESS.id)
    made.client = SimpleNamespace(caught_up=True)
    made.take_up_trade()
    return made


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


def opened(slot, energy_wh=5_000, cap=290_000):
    return {
        "event": "auction-opened", "auction": "a-1", "template": "reverse", "slot": slot,
        "energyWh": energy_wh, "priceUcPerKwh": cap, "deadlineMs": slot * SLOT_MS - 300_000,
        "sealed": False,
    }  # fmt: skip


def sunny(home):
    """Every slot with more sun than the battery needs: it is full each noon and may sell."""
    for slot in range(SLOT - 98, SLOT - 1):
        home.forecaster.observe(slot, 100, 900 if slot % 96 >= 56 else 0)
    home.gateway.load_w, home.gateway.soc_permille = 400, 950
