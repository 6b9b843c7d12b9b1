"""
A home whose gateway signs with a real meter book on disk, for tests of days offline and of clocks.

Energy flows in true time; what the home and its meter take for the time is the clock's business.
"""

from __future__ import annotations

from pathlib import Path

from home_at_hand import ADDRESS, StepClock, make_home, register
from support.chain_builder import FIRST_SLOT, grant_for

from hem.config import MarketFacts
from hem.ems.wallet import Wallet
from hem.gateway.client import GatewayError
from hem.gateway.meterbook import MeterBook
from hem.gateway.signer import Registers, SigningRefusedError
from hem.service import HomeEnergyManager
from runtime.ports import Store
from runtime.rng import SystemRng
from runtime.store import SqliteStore
from wire.certificates import AddressGrant, parse
from wire.keys import BoxKey, SigningKey, to_text
from wire.metering import Reading, load_record

METER = SigningKey(b"m" * 32)
DSO_BOX = BoxKey(bytes(range(32)))
START = FIRST_SLOT + 8
LAST = FIRST_SLOT + 400
"""Slots of the grant."""
LOAD_W = 2_000
LATE_SLOTS = 4


class BookGateway:
    """What the gateway process does about readings, in this process: real rules, real files."""

    def __init__(self, store: Store, clock: StepClock, facts: MarketFacts) -> None:
        self._clock, self._grid = clock, facts.grid
        self.book = MeterBook(METER, store, facts, 40_000, LATE_SLOTS)
        self.true_s = 0
        """Since when energy flows, by the sun."""
        self.signed: list[Reading] = []
        """In the order they were signed."""
        self.away = False

    async def sign_reading(self, slot):
        known = self.book.signed(slot)
        if known is not None:
            return known
        if self.away:
            raise GatewayError("DEVICE_LOST", "the meter does not answer")
        now_ms = self._clock.now_ms()
        if now_ms < self._grid.end_ms(slot):
            raise GatewayError("TOO_EARLY", f"slot {slot} has not ended")
        self._clock.market_ms += 2  # the devices take a moment to answer
        import_wh = 10_000 + LOAD_W * self.true_s // 3600
        row = self._by_rule(self.book.sign_reading, slot, now_ms, Registers(import_wh, 0, 0))
        self.signed.append(load_record(Reading, row["reading"]))
        return row

    async def sign_receipt(self, address, slot):
        return self._by_rule(self.book.sign_receipt, address, slot)

    async def state(self):
        return {
            "time_ms": self._clock.now_ms(), "grid_w": LOAD_W, "pv_w": 0, "battery_w": 0,
            "load_w": LOAD_W, "soc_permille": -1, "import_wh": 0, "export_wh": 0,
            "generation_wh": 0, "devices": {},
        }  # fmt: skip

    async def set_battery(self, power_w, lease_s):
        return {"accepted_w": power_w}

    async def release_battery(self):
        return

    def _by_rule(self, ask, *arguments):
        try:
            return ask(*arguments)
        except SigningRefusedError as error:
            raise GatewayError(error.code, str(error)) from None


def market_facts(home: HomeEnergyManager) -> MarketFacts:
    return MarketFacts(
        chainId=home.genesis.chain_id, slotLengthS=900, dsoBoxKey=to_text(DSO_BOX.public)
    )


def grant_terms() -> dict[str, object]:
    """What the grant says of our address."""
    meter_key = to_text(METER.derive(ADDRESS.id).public)
    return {"meter_key": meter_key, "start_slot": FIRST_SLOT, "end_slot": LAST}


def take_up_work(home: HomeEnergyManager, gateway: BookGateway) -> None:
    """Give a home its gateway, its grant and its wallet."""
    home.gateway = gateway
    home.addresses.grant = parse(AddressGrant, grant_for(ADDRESS, **grant_terms()))
    home.wallet = Wallet(home.store, ADDRESS.id)


async def metered_home(folder: Path) -> HomeEnergyManager:
    """A registered home at the beginning of slot `START`; its outbox is at hand."""
    home = make_home(folder)
    store = SqliteStore(folder / "registers.sqlite", synchronous="NORMAL")
    take_up_work(home, BookGateway(store, home.clock, market_facts(home)))
    home.take_up_trade()
    home.clock.to(START)
    await register(home)
    return home


def reborn(home: HomeEnergyManager, folder: Path) -> HomeEnergyManager:
    """Home and gateway after a power cut: what was on disk is all they have."""
    gateway = home.gateway
    home.store.close()
    home._queue.close()
    made = HomeEnergyManager(home.config, home.clock, SystemRng())
    store = SqliteStore(folder / "registers.sqlite", synchronous="NORMAL")
    fresh = BookGateway(store, home.clock, market_facts(made))
    fresh.true_s, fresh.signed = gateway.true_s, gateway.signed
    take_up_work(made, fresh)
    return made
